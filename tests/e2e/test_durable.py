"""Streams that survive a router: two of them as processes of their own, on one real Redis."""

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
from openai import APIConnectionError, AsyncOpenAI
from redis.asyncio import Redis

from sessile.engines.guard import guarded
from sessile.engines.supervisor import free_ports
from sessile.lab.fake_replica import FakeReplica, Fault, serve_fake

SESSILE = str(Path(sys.executable).with_name("sessile"))
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
WORDS = " ".join(f"w{n}" for n in range(40))


class Fleet:
    """Two routers before one replica that takes its time."""

    def __init__(self, redis: Any, replica: FakeReplica) -> None:
        self.redis = redis
        self.replica = replica
        self.routers: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self, engine: str = "openai") -> tuple[str, str]:
        """Start them, and wait until both are ready and their stores have been there for long."""
        settings = {"SESSILE_EVENTS__LEASE_S": "1", "SESSILE_STORE__TIMEOUT_S": "0.5"}
        for port in free_ports(2):
            command = [SESSILE, "serve", "--replica", f"{engine}={self.replica.url}",
                       "--redis", self.redis.url, "--port", str(port)]  # fmt: skip
            self.routers[f"http://127.0.0.1:{port}"] = _started(command, settings)
        async with httpx2.AsyncClient(trust_env=False) as http:
            for url in self.routers:
                while not await _ready(http, url):
                    assert self.routers[url].poll() is None, "the router has ended"
                    await asyncio.sleep(0.05)
        one, two = self.routers
        return one, two

    def kill(self, url: str) -> None:
        """As a crash does."""
        process = self.routers.pop(url)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self.routers.values():
            process.send_signal(signal.SIGINT)
        for process in self.routers.values():
            try:
                process.wait(30)
            finally:
                process.kill()


def _started(command: list[str], settings: dict[str, str]) -> "subprocess.Popen[bytes]":
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        guarded(command), stdout=quiet, stderr=quiet, env={**os.environ, **settings}
    )


async def _ready(http: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url + "/ready")).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
async def fleet(redis_server: Any) -> AsyncIterator[Fleet]:
    """Not started yet."""
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(serve_fake())
        fleet = Fleet(redis_server, replica)
        stack.callback(fleet.stop)
        yield fleet


def client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


async def seen_until(stream: Any, count: int) -> list[Any]:
    """So many deltas, and what came before them."""
    events = []
    async for event in stream:
        events.append(event)
        count -= event.type == "response.output_text.delta"
        if not count:
            break
    return events


async def left(client: AsyncOpenAI, response: str, after: int) -> list[Any]:
    """The events behind a number."""
    async with await client.responses.retrieve(
        response, stream=True, starting_after=after
    ) as stream:
        return [event async for event in stream]


async def completed(client: AsyncOpenAI, response: str) -> Any:
    """The response, once it is that; until then it runs."""
    while True:
        found = await client.responses.retrieve(response)
        if found.status == "completed":
            return found
        assert found.status in ("queued", "in_progress")
        await asyncio.sleep(0.05)


async def test_a_router_killed_in_the_middle_of_a_stream(fleet: Fleet) -> None:
    """OpenAI's client comes back at the other router, is told what it has missed at once, and then
    exactly one last event, with a code that says why; no number comes twice or is left out."""
    one, two = await fleet.start()
    fleet.replica.fail(Fault(pause_s=0.05))
    async with client(one) as first, client(two) as other:
        async with await first.responses.create(
            model="fake", input=WORDS, background=True, stream=True
        ) as stream:
            seen = await seen_until(stream, 8)
            response = seen[0].response.id
            await asyncio.sleep(0.3)  # more is told than this client reads
            fleet.kill(one)
        kept = seen[:-4]
        rest = await left(other, response, kept[-1].sequence_number)
        events = [*kept, *rest]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert rest[:4] == seen[-4:]
        assert [e.type for e in events if e.type in TERMINAL] == ["response.failed"]
        failed = rest[-1].response
        assert failed.error.code == "server_error" and "router" in failed.error.message
        said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        assert failed.output_text == said and f"echo: {WORDS}".startswith(said)
        assert (await other.responses.retrieve(response)).status == "failed"
        assert await left(other, response, kept[-1].sequence_number) == rest
    await fleet.replica.until(lambda replica: replica.running == 0)


async def test_a_router_killed_in_the_middle_of_a_text(fleet: Fleet) -> None:
    """Before an engine that can go on from a text, the client is told all of it at the other
    router, as one sequence: no word is missing or comes twice."""
    one, two = await fleet.start("sglang")
    fleet.replica.fail(Fault(pause_s=0.05))
    async with client(one) as first, client(two) as other:
        async with await first.responses.create(model="fake", input=WORDS, stream=True) as stream:
            seen = await seen_until(stream, 8)
            response = seen[0].response.id
            await asyncio.sleep(0.3)  # more is told than this client reads
            fleet.kill(one)
        rest = await left(other, response, seen[-1].sequence_number)
        events = [*seen, *rest]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        assert said == f"echo: {WORDS}"
        assert [e.type for e in events if e.type in TERMINAL] == ["response.completed"]
        assert rest[-1].response.output_text == said
        assert [e.type for e in rest].count("response.sessile.continued") == 1
        assert (await other.responses.retrieve(response)).output_text == said
    await fleet.replica.until(lambda replica: replica.running == 0)


async def test_a_router_killed_before_the_first_token(fleet: Fleet) -> None:
    """Nobody has to come back: the other router runs the turn, once, and it is there when asked
    for."""
    one, two = await fleet.start()
    fleet.replica.fail(Fault(hang=True))
    async with client(one) as first, client(two) as other:
        made = await first.responses.create(model="fake", input=WORDS, background=True)
        assert made.status == "queued"
        await fleet.replica.until(lambda replica: replica.running == 1)
        fleet.kill(one)
        assert (await completed(other, made.id)).output_text == f"echo: {WORDS}"
        events = await left(other, made.id, 0)
        assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
    assert len(fleet.replica.seen) == 2
    async with Redis.from_url(fleet.redis.url) as redis:
        async for key in redis.scan_iter():
            assert await redis.pttl(key) > 0, key


async def test_a_router_that_is_told_to_stop_hands_on_its_turns(fleet: Fleet) -> None:
    """A turn in the background that has told nothing is run by the other router."""
    one, two = await fleet.start()
    fleet.replica.fail(Fault(hang=True))
    async with client(one) as first, client(two) as other:
        made = await first.responses.create(model="fake", input=WORDS, background=True)
        await fleet.replica.until(lambda replica: replica.running == 1)
        fleet.routers[one].send_signal(signal.SIGINT)
        assert fleet.routers.pop(one).wait(30) == 0
        assert (await completed(other, made.id)).output_text == f"echo: {WORDS}"


async def test_a_router_killed_under_an_idempotency_key(fleet: Fleet) -> None:
    """A chat completion is in no log, and nobody takes it over: the key's lease ends, and the same
    request at the other router runs; a third is given its answer."""
    one, two = await fleet.start()
    fleet.replica.fail(Fault(hang=True))
    ask: dict[str, Any] = {
        "model": "fake", "messages": [{"role": "user", "content": WORDS}],
        "extra_headers": {"Idempotency-Key": "k"},
    }  # fmt: skip
    async with client(one) as first, client(two) as other:
        lost = asyncio.ensure_future(first.chat.completions.create(**ask))
        await fleet.replica.until(lambda replica: replica.running == 1)
        fleet.kill(one)
        with pytest.raises(APIConnectionError):
            await lost
        again = await other.chat.completions.create(**ask)
        assert again.choices[0].message.content == f"echo: {WORDS}"
        assert await other.chat.completions.create(**ask) == again
    assert len(fleet.replica.seen) == 2
