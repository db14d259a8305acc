"""Many routers as processes of their own, on one real Redis: they agree, they forget one that is
killed, and they outlive their store."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sessile.engines.supervisor import free_ports
from sessile.lab.fake_replica import FakeReplica, Fault, serve_fake
from sessile.sessions.record import SessionKey
from sessile.sessions.redis_store import RedisStore
from sessile.sessions.store import StoreLimits

SESSILE = str(Path(sys.executable).with_name("sessile"))
CHAT = "/v1/chat/completions"


class Fleet:
    """Routers before two replicas."""

    def __init__(self, redis: Any, replicas: list[FakeReplica], http: httpx2.AsyncClient) -> None:
        self.redis = redis
        self.replicas = replicas
        self.http = http
        self.routers: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self, count: int) -> None:
        """Start so many, and wait until each is ready and has heard of the others."""
        named = [part for r in self.replicas for part in ("--replica", f"openai={r.url}")]
        settings = {"SESSILE_STORE__TIMEOUT_S": "0.5", "SESSILE_STORE__RETRY_AFTER_S": "0.2"}
        for port in free_ports(count):
            command = [SESSILE, "serve", *named, "--redis", self.redis.url, "--port", str(port)]
            self.routers[f"http://127.0.0.1:{port}"] = _started(command, settings)
        for url in self.routers:
            await self.until(url, "/ready", lambda told: told["replicas"]["ready"] == 2)
        for url in self.routers:
            await self.until(url, "/sessile/v1/policy", lambda told: told["routers"] == count)

    async def turn(self, url: str, session: str, text: str = "hello there") -> httpx2.Response:
        """One plain turn."""
        body = {"model": "fake", "messages": [{"role": "user", "content": text}]}
        return await self.http.post(url + CHAT, json=body, headers={"x-session-id": session})

    async def until(self, url: str, path: str, true: Any) -> None:
        """Wait until a page says what it must come to say."""
        while True:
            try:
                if true((await self.http.get(url + path)).json()):
                    return
            except httpx2.TransportError:
                assert self.routers[url].poll() is None, "the router has ended"
            await asyncio.sleep(0.05)

    async def until_elsewhere(self, url: str, running: int) -> None:
        """Wait until the router knows of so many turns at the others."""

        def told(page: dict[str, Any]) -> bool:
            return sum(r["running_elsewhere"] for r in page["replicas"]) == running

        await self.until(url, "/sessile/v1/policy", told)

    def kill(self, url: str) -> None:
        """As a crash does."""
        process = self.routers.pop(url)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End them, those too that do not want to."""
        for process in self.routers.values():
            process.send_signal(signal.SIGINT)
        for process in self.routers.values():
            try:
                process.wait(30)
            finally:
                process.kill()


def _started(command: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, env={**os.environ, **settings})


@pytest.fixture
async def fleet(redis_server: Any) -> AsyncIterator[Fleet]:
    """Two replicas and no router yet."""
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(serve_fake()) for _ in range(2)]
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=30, trust_env=False))
        fleet = Fleet(redis_server, replicas, http)
        stack.callback(fleet.stop)
        yield fleet


async def epochs(url: str, sessions: list[str]) -> list[int]:
    """Of the sessions' bindings, as they are stored."""
    store = RedisStore(url, StoreLimits(), timeout_s=5.0)
    await store.open()
    try:
        keys = [SessionKey("default", "fake", session) for session in sessions]
        claims = [await store.claim(key, "nobody", "never") for key in keys]
        assert not any(claim.won for claim in claims)
        return [claim.binding.epoch for claim in claims]
    finally:
        await store.aclose()


async def test_a_sessions_turns_alternate_between_routers(fleet: Fleet) -> None:
    """First turns at three routers at once, later ones in turn: one binding, claimed once and never
    moved, and every later turn finds the cache."""
    await fleet.start(3)
    urls = list(fleet.routers)
    sessions = [f"s{number}" for number in range(12)]
    homes: dict[str, str] = {}
    for session in sessions:
        text = f"the opening of {session} "
        first = await asyncio.gather(*(fleet.turn(url, session, text) for url in urls))
        assert {reply.status_code for reply in first} == {200}
        assert len({reply.headers["x-sessile-replica"] for reply in first}) == 1
        homes[session] = first[0].headers["x-sessile-replica"]
    for number in range(4):
        for start, session in enumerate(sessions):
            url = urls[(start + number) % len(urls)]
            reply = await fleet.turn(url, session, f"the opening of {session} ")
            assert reply.headers["x-sessile-replica"] == homes[session]
            assert reply.headers["x-sessile-reason"] == "bound"
            assert reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert len(set(homes.values())) == 2
    assert await epochs(fleet.redis.url, sessions) == [1] * len(sessions)


async def test_a_router_killed_in_the_middle_of_a_turn(fleet: Fleet) -> None:
    """Another knows of the turn while it runs, forgets it once it is not told any more, and takes
    the session on where it is."""
    await fleet.start(2)
    doomed, other = fleet.routers
    home = (await fleet.turn(other, "s")).headers["x-sessile-replica"]
    for replica in fleet.replicas:
        replica.fail(Fault(hang=True))
    body = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    asked = asyncio.create_task(
        fleet.http.post(doomed + CHAT, json=body, headers={"x-session-id": "s"})
    )
    await fleet.until_elsewhere(other, 1)
    fleet.kill(doomed)
    with pytest.raises(httpx2.TransportError):
        await asked
    await fleet.until_elsewhere(other, 0)
    await fleet.until(
        other, "/sessile/v1/policy",
        lambda page: not any(r["live_tokens"] or r["running"] for r in page["replicas"]),
    )  # fmt: skip
    for replica in fleet.replicas:
        await replica.until(lambda replica: replica.running == 0)
        replica._next.clear()
    reply = await fleet.turn(other, "s")
    assert (reply.headers["x-sessile-replica"], reply.headers["x-sessile-reason"]) == (
        home,
        "bound",
    )
    assert await epochs(fleet.redis.url, ["s"]) == [1]


async def test_redis_killed_and_restarted_in_the_middle(fleet: Fleet) -> None:
    """No turn fails, sessions stay where they are, and routers hear each other again."""
    await fleet.start(2)
    urls = list(fleet.routers)
    sessions = [f"s{number}" for number in range(6)]
    homes: dict[str, str] = {}
    stop = False

    async def agent(number: int, session: str) -> int:
        """Turns at one router after the other, until it is enough."""
        turns = 0
        while not stop or turns < 4:
            reply = await fleet.turn(urls[(number + turns) % 2], session)
            assert reply.status_code == 200
            home = reply.headers["x-sessile-replica"]
            assert homes.setdefault(session, home) == home
            turns += 1
            await asyncio.sleep(0.02)
        return turns

    def store_is(state: str) -> Any:
        return lambda told: told["store"] == state

    async with asyncio.TaskGroup() as group:
        agents = [group.create_task(agent(n, session)) for n, session in enumerate(sessions)]
        await asyncio.sleep(0.5)
        fleet.redis.kill()
        for url in urls:
            await fleet.until(url, "/ready", store_is("degraded"))
        fleet.redis.start()
        for url in urls:
            await fleet.until(url, "/ready", store_is("ok"))
        stop = True
    assert sum(task.result() for task in agents) >= 4 * len(sessions) == 4 * len(homes)
    for replica in fleet.replicas:
        replica.fail(Fault(hang=True))
    asked = asyncio.create_task(fleet.turn(urls[0], "s0"))
    await fleet.until_elsewhere(urls[1], 1)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
