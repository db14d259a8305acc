"""A swap through the command line, before sessions that run and never stop: two routers in
processes of their own, one Redis, two pools."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx2

from sessile.lab.fake_replica import serve_fake

SESSILE = str(Path(sys.executable).with_name("sessile"))
CHAT = "/v1/chat/completions"
OLD, NEW = "fake", "fake@green"


class Talk:
    """Sessions that come one after the other and each take turns at alternating routers, and what
    every turn was served by: its variant and its reason."""

    def __init__(self, http: httpx2.AsyncClient, urls: list[str]) -> None:
        self._http = http
        self._urls = urls
        self._over = False
        self.seen: list[list[tuple[str, str]]] = []
        self.failed: list[str] = []

    async def run(self) -> None:
        """Until it is over: a new session every tenth of a second, each of at most 60 turns."""
        async with asyncio.TaskGroup() as group:
            while not self._over:
                self.seen.append([])
                group.create_task(self._session(f"s{len(self.seen)}", self.seen[-1]))
                await asyncio.sleep(0.1)

    def end(self) -> None:
        """Every session ends after its turn."""
        self._over = True

    async def more(self, sessions: int, turns: int = 1) -> list[list[tuple[str, str]]]:
        """So many that begin from now on, once each has had so many turns."""
        first = len(self.seen)
        return await self.had(range(first, first + sessions), turns)

    async def had(self, which: range, turns: int) -> list[list[tuple[str, str]]]:
        """Those sessions, once each has had so many turns altogether."""
        while len(self.seen) < which.stop or any(len(self.seen[n]) < turns for n in which):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return [self.seen[n] for n in which]

    async def next_turns(self) -> list[tuple[str, str]]:
        """The last turn of each session that runs now, once each has had two more."""
        counts = [len(turns) for turns in self.seen]
        running = [n for n, count in enumerate(counts) if count < 55]
        while any(len(self.seen[n]) < counts[n] + 2 for n in running):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return [self.seen[n][-1] for n in running]

    async def _session(self, name: str, seen: list[tuple[str, str]]) -> None:
        body = {"model": "fake", "messages": [{"role": "user", "content": f"hello {name}"}]}
        while not self._over and len(seen) < 60:
            url = self._urls[len(seen) % len(self._urls)]
            answer = await self._http.post(url + CHAT, json=body, headers={"x-session-id": name})
            if answer.status_code != 200:
                self.failed.append(answer.text)
            variant = answer.headers.get("x-sessile-variant", OLD)
            pool = "green" if variant == NEW else "blue"
            assert answer.headers["x-sessile-replica"].startswith(pool)
            seen.append((variant, answer.headers["x-sessile-reason"]))
            await asyncio.sleep(0.5)


def moves(turns: list[tuple[str, str]]) -> int:
    """How often the session changed its variant; each change says so, and nothing else does."""
    changed = [turn for last, turn in zip(turns, turns[1:], strict=False) if turn[0] != last[0]]
    assert all(reason == "swapped" for _, reason in changed)
    assert len(changed) == sum(reason == "swapped" for _, reason in turns)
    return len(changed)


async def cli(url: str, *arguments: str) -> str:
    """What the command says; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        SESSILE, *arguments, "--url", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def until_ready(http: httpx2.AsyncClient, url: str) -> None:
    """Both replicas are."""
    while (await http.get(url + "/ready")).json()["replicas"]["ready"] < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def in_force(url: str) -> dict[str, Any]:
    """The release, once what was commanded last holds."""
    while True:
        (release,) = json.loads(await cli(url, "swap", "--json"))
        if not release["in_force_in_s"]:
            return release


async def test_a_swap_fails_no_turn_and_mixes_no_session(
    mortal: Any, redis_server: Any, tmp_path: Path
) -> None:
    """Canary, more of it, roll back, again with a deadline: sessions change sides when they are
    told to, once, and at both routers alike."""
    async with serve_fake() as blue, serve_fake() as green, httpx2.AsyncClient(timeout=30) as http:
        config = tmp_path / "sessile.toml"
        config.write_text(
            f'[store]\nurl = "{redis_server.url}"\n'
            f'[[pool]]\nname = "blue"\nengine = "sglang"\nurls = ["{blue.url}"]\n'
            f'[[pool]]\nname = "green"\nengine = "sglang"\nurls = ["{green.url}"]\n'
            "standby = true\n"
        )
        routers = [mortal("-c", str(config)) for _ in range(2)]
        for router in routers:
            await router.start()
        one, two = (router.url for router in routers)
        for url in (one, two):
            await until_ready(http, url)
        talk = Talk(http, [one, two])
        async with asyncio.TaskGroup() as group:
            group.create_task(talk.run())
            await swap(talk, one, two)
            talk.end()
        assert talk.failed == []
        assert all(moves(turns) <= 2 for turns in talk.seen)


async def swap(talk: Talk, one: str, two: str) -> None:
    """The story, told to either router in turn."""
    running = await talk.more(5, turns=2)

    said = await cli(one, "swap", "fake", "--to", "green", "--percent", "30")
    assert f"{OLD} 70 %, {NEW} 30 %" in said
    await in_force(two)
    canary = await talk.more(30)
    share = sum(turns[0][0] == NEW for turns in canary)
    assert 1 <= share <= 20
    assert all({variant for variant, _ in turns} == {OLD} for turns in running)
    assert "swap fake  under way" in await cli(two, "status", "--once")

    await cli(two, "swap", "fake", "--percent", "80")
    release = await in_force(one)
    grown = await talk.more(20)
    assert sum(turns[0][0] == NEW for turns in grown) >= 10
    assert [side["turns"] > 0 for side in release["variants"]] == [True, True]
    assert all(moves(turns) == 0 for turns in talk.seen)

    await cli(one, "swap", "fake", "--roll-back")
    await in_force(two)
    assert {variant for variant, _ in await talk.next_turns()} == {OLD}
    assert all(moves(turns) <= 1 for turns in talk.seen)
    assert any(moves(turns) == 1 for turns in talk.seen)

    await cli(two, "swap", "fake", "--to", "green", "--deadline", "3s")
    await in_force(one)
    assert {turns[0][0] for turns in await talk.more(3)} == {NEW}
    while json.loads(await cli(one, "swap", "--json"))[0]["variants"][0]["moves_in_s"]:
        pass
    assert {variant for variant, _ in await talk.next_turns()} == {NEW}
    await cli(one, "swap", "fake", "--finish")
    (release,) = json.loads(await cli(two, "swap", "fake", "--json"))
    assert release["state"] == "finished"
    assert "TTFT" in await cli(two, "swap")
