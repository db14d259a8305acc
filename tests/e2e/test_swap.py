"""A swap through the command line, before sessions that run and never stop: two routers in
processes of their own, one Redis, two pools."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from sessile.cli import app
from sessile.lab.fake_replica import serve_fake

CHAT = "/v1/chat/completions"
OLD, NEW = "fake", "fake@green"


_TURNS = 12  # of a session


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
        """Until it is over: at most 20 sessions at a time, one every tenth of a second."""
        places = asyncio.Semaphore(20)
        async with asyncio.TaskGroup() as group:
            while not self._over:
                await places.acquire()
                self.seen.append([])
                task = group.create_task(self._session(f"s{len(self.seen)}", self.seen[-1]))
                task.add_done_callback(lambda _: places.release())
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

    async def release(self, url: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The release as the router shows it, once that is so."""
        while True:
            shown = (await self._http.get(url + "/sessile/v1/releases")).json()
            if shown["releases"] and true(shown["releases"][0]):
                return dict(shown["releases"][0])
            await asyncio.sleep(0.05)

    async def next_turns(self) -> list[tuple[str, str]]:
        """The last turn of each session that runs now, once each has had two more."""
        counts = [len(turns) for turns in self.seen]
        running = [n for n, count in enumerate(counts) if count < _TURNS - 2]
        while any(len(self.seen[n]) < counts[n] + 2 for n in running):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return [self.seen[n][-1] for n in running]

    async def _session(self, name: str, seen: list[tuple[str, str]]) -> None:
        body = {"model": "fake", "messages": [{"role": "user", "content": f"hello {name}"}]}
        while not self._over and len(seen) < _TURNS:
            url = self._urls[len(seen) % len(self._urls)]
            answer = await self._http.post(url + CHAT, json=body, headers={"x-session-id": name})
            if answer.status_code != 200:
                self.failed.append(answer.text)
            variant = answer.headers.get("x-sessile-variant", OLD)
            pool = "green" if variant == NEW else "blue"
            assert answer.headers["x-sessile-replica"].startswith(pool)
            seen.append((variant, answer.headers["x-sessile-reason"]))
            await asyncio.sleep(0.4)


def moves(turns: list[tuple[str, str]]) -> int:
    """How often the session changed its variant; each change says so, and nothing else does."""
    changed = [turn for last, turn in zip(turns, turns[1:], strict=False) if turn[0] != last[0]]
    assert all(reason == "swapped" for _, reason in changed)
    assert len(changed) == sum(reason == "swapped" for _, reason in turns)
    return len(changed)


async def cli(url: str, *arguments: str) -> str:
    """What the command says; it must succeed."""
    command = [*arguments, "--url", url]
    result = await asyncio.to_thread(CliRunner().invoke, app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


async def until_ready(http: httpx2.AsyncClient, url: str) -> None:
    """Both replicas are."""
    while (await http.get(url + "/ready")).json()["replicas"]["ready"] < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


@pytest.mark.timeout(300)
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


def holds(state: str, percent: float) -> Callable[[dict[str, Any]], bool]:
    """Whether that was commanded last, and is in force."""

    def true(release: dict[str, Any]) -> bool:
        target = release["variants"][1]
        is_so = release["state"] == state and target["percent"] == percent
        return is_so and not release["in_force_in_s"]

    return true


def moved(release: dict[str, Any]) -> bool:
    """Nobody may stay at the source any more."""
    return release["variants"][0]["moves_in_s"] == 0


async def swap(talk: Talk, one: str, two: str) -> None:
    """The story, told to either router in turn."""
    running = await talk.more(5, turns=2)

    said = await cli(one, "swap", "fake", "--to", "green", "--percent", "30")
    assert f"{OLD} 70 %, {NEW} 30 %" in said
    await talk.release(two, holds("under_way", 30))
    canary = await talk.more(30)
    share = sum(turns[0][0] == NEW for turns in canary)
    assert 1 <= share <= 20
    assert all({variant for variant, _ in turns} == {OLD} for turns in running)
    assert "swap fake  under way" in await cli(two, "status", "--once")

    await cli(two, "swap", "fake", "--percent", "80")
    release = await talk.release(one, holds("under_way", 80))
    grown = await talk.more(30)
    assert sum(turns[0][0] == NEW for turns in grown) >= 12
    assert [side["turns"] > 0 for side in release["variants"]] == [True, True]
    assert all(moves(turns) == 0 for turns in talk.seen)

    await cli(one, "swap", "fake", "--roll-back")
    await talk.release(two, holds("rolled_back", 0))
    assert {variant for variant, _ in await talk.next_turns()} == {OLD}
    assert all(moves(turns) <= 1 for turns in talk.seen)
    assert any(moves(turns) == 1 for turns in talk.seen)

    await cli(two, "swap", "fake", "--to", "green", "--deadline", "3s")
    await talk.release(one, holds("under_way", 100))
    assert {turns[0][0] for turns in await talk.more(3)} == {NEW}
    await talk.release(one, moved)
    assert {variant for variant, _ in await talk.next_turns()} == {NEW}
    await cli(one, "swap", "fake", "--finish")
    (release,) = json.loads(await cli(two, "swap", "fake", "--json"))
    assert release["state"] == "finished"
    assert "TTFT" in await cli(two, "swap")
