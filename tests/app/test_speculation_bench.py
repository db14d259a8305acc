"""The speculation benchmark before real servers: two fake engines and a router before both."""

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from sessile.errors import ReplicaRefused, SettingsError
from sessile.lab.fake_replica import FakeReplica, Fault
from sessile.lab.speculation_bench import Setup, main, measure
from sessile.lab.speculation_load import Side, run_pass
from sessile.lab.speculation_rows import better, rows
from sessile.lab.speculation_texts import Script

Serve = Callable[..., Awaitable[tuple[Any, str]]]


class Speculating(FakeReplica):
    """It tells of its steps as SGLang does: half as many as tokens, and one before them all."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/metrics":
            await super().__call__(scope, receive, send)
            return
        tokens = sum(seen.body["max_tokens"] - 1 for seen in self.seen)
        page = f'sglang:spec_verify_calls_total{{model="m"}} {1 + tokens / 2}\n'
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": page.encode()})


async def measured(setup: Setup, **urls: str) -> list[Any]:
    """All passes of a run over those servers."""
    sides = [Side(name, url, "key") for name, url in urls.items()]
    try:
        for side in sides:
            await side.find()
        return [each async for each in measure(setup, sides)]
    finally:
        for side in sides:
            await side.aclose()


def said(replica: FakeReplica) -> list[str]:
    """What the user said last in each request, in order."""
    return [seen.body["messages"][-1]["content"] for seen in replica.seen]


SLOW = Fault(pause_s=0.005)  # its words come one by one
SLOWER = Fault(pause_s=0.1)
SMALL = Setup(kinds=("json",), batches=(2,), output=8, turns=2, rounds=2, name="t")


async def test_the_servers_take_turns_with_the_same_texts(serve: Serve) -> None:
    """Every turn asks for the same of both, with its history, under a session of its own; the one
    that tells its steps has an acceptance."""
    off, off_url = await serve(FakeReplica(model="m", always=SLOW))
    on, on_url = await serve(Speculating(model="m", always=SLOW))
    passes = await measured(SMALL, off=off_url, on=on_url + "/v1")
    assert [(each.side, each.round) for each in passes] == [
        ("off", 0), ("on", 0), ("on", 1), ("off", 1),
    ]  # fmt: skip
    assert sorted(said(off)) == sorted(said(on)) and len(set(said(off))) == 8
    first, later = off.seen[0].body["messages"], off.seen[2].body["messages"]
    assert [m["role"] for m in later] == 2 * ["user", "assistant"] + ["user"]
    assert len(first) == 3
    assert len({seen.headers["x-session-id"] for seen in off.seen}) == 4
    assert all(seen.body["ignore_eos"] and seen.body["temperature"] == 0 for seen in on.seen)
    over = [each.headers.get("x-dynamo-session-final") for each in off.seen]
    assert over == 2 * [None, None, "true", "true"]
    (row,) = rows(passes)
    assert row.acceptance == pytest.approx(2.0)
    assert row.off_tok_s > 0 and row.auto_tok_s is None


async def test_a_router_has_texts_of_its_own_and_says_where_its_turns_went(
    start: Any, serve: Serve
) -> None:
    """Else an engine would know them from the pass before."""
    off, off_url = await serve(FakeReplica(model="m", always=SLOW))
    engines = [FakeReplica(model="m", always=SLOW) for _ in range(2)]
    router = await start(engines)
    passes = await measured(SMALL, off=off_url, on=off_url, auto=router.url)
    auto = [each for each in passes if each.side == "auto"]
    assert sum(sum(each.turns_at.values()) for each in auto) == 8
    assert set(auto[0].turns_at) <= {"one", "two"}
    through = [words for engine in engines for words in said(engine)]
    assert len(through) == 8 and not set(through) & set(said(off))


async def test_the_engines_of_a_router_are_told_by_their_sides(start: Any, http: Any) -> None:
    """Where they are those that are measured by themselves; another has its own name."""
    router = await start([FakeReplica(model="m", always=SLOW) for _ in range(2)])
    listed = (await http.get(f"{router.url}/sessile/v1/replicas")).json()["replicas"]
    urls = {each["id"]: each["url"] for each in listed}
    side = Side("auto", router.url, "key", engines={urls["one"] + "/": "on"})
    await side.find()
    assert side.sides == {"one": "on"}
    script = Script([], ["say a"])
    passed, _ = await run_pass(side, "json", 8 * [script], "p", batch=8, number=0, tokens=8)
    assert set(passed.turns_at) <= {"on", "two"} and sum(passed.turns_at.values()) == 8
    await side.aclose()


async def test_what_is_held_again_is_known_to_all(serve: Serve) -> None:
    """The conversations of all rounds are the same, and come once before, under other sessions."""
    off, off_url = await serve(FakeReplica(model="m", always=SLOW))
    setup = msgspec.structs.replace(SMALL, again=True)
    passes = await measured(setup, off=off_url, on=off_url)
    assert len(passes) == 4
    sessions = [seen.headers["x-session-id"] for seen in off.seen]
    before = [name for name in sessions if "-learn-" in name]
    assert len(set(before)) == 4 and sessions[: len(before)] == before
    assert {words: said(off).count(words) for words in said(off)} == dict.fromkeys(said(off), 6)


async def test_the_next_prompt_holds_what_the_script_says_was_answered(serve: Serve) -> None:
    """Whatever was; without that it holds the answer, and the script comes back with it."""
    replica, url = await serve(FakeReplica(model="m", always=SLOW))
    side = Side("on", url, "key", "m")
    script = Script([], ["say a", "say b"], ["told before", "unused"])
    await run_pass(side, "json", [script], "one", batch=1, number=0, tokens=8)
    free = Script([], ["say a", "say b"])
    _, (said_again,) = await run_pass(side, "json", [free], "two", batch=1, number=0, tokens=8)
    await side.aclose()
    second, fourth = (replica.seen[n].body["messages"][1]["content"] for n in (1, 3))
    assert second == "told before"
    assert fourth == said_again.answers[0] != "told before"


async def test_a_pass_may_hold_more_than_run_at_once(serve: Serve) -> None:
    """One after another, so that one that is drawn well or badly does not make the figure."""
    replica, url = await serve(FakeReplica(model="m", always=SLOW))
    setup = msgspec.structs.replace(SMALL, batches=(1,), least=3, rounds=1)
    passes = await measured(setup, off=url, on=url)
    assert [each.batch for each in passes] == [1, 1]
    sessions = [seen.headers["x-session-id"] for seen in replica.seen]
    assert len(set(sessions)) == 6 and sessions[::2] == sessions[1::2]


async def test_the_router_has_passes_to_learn_from(start: Any, serve: Serve) -> None:
    """As many as were asked for, an engine one of them: there is nothing that it could learn."""
    off, off_url = await serve(FakeReplica(model="m", always=SLOW))
    replica = FakeReplica(model="m", always=SLOW)
    router = await start([replica])
    setup = msgspec.structs.replace(SMALL, rounds=1, learn=3)
    passes = await measured(setup, off=off_url, on=off_url, auto=router.url)
    assert len(passes) == 3
    learned = [n for each in off.seen if "-learn-" in (n := each.headers["x-session-id"])]
    assert len(set(learned)) == 4
    assert len(replica.seen) == 2 * (6 + 2)


async def test_further_rounds_are_of_the_router_and_the_better_engine(
    start: Any, serve: Serve
) -> None:
    """The one that the first rounds show to be faster."""
    _, slow_url = await serve(FakeReplica(model="m", always=SLOWER))
    _, fast_url = await serve(FakeReplica(model="m", always=SLOW))
    router = await start([FakeReplica(model="m", always=SLOW)])
    setup = msgspec.structs.replace(SMALL, rounds=1, more=2)
    passes = await measured(setup, off=slow_url, on=fast_url, auto=router.url)
    first, further = passes[:3], passes[3:]
    assert [(each.side, each.round) for each in first] == [("off", 0), ("on", 0), ("auto", 0)]
    again = ("auto", better(first))
    assert {(each.side, each.round) for each in further} == {(s, n) for s in again for n in (1, 2)}
    assert len(further) == 4


async def test_a_turn_that_fails_ends_the_run(serve: Serve) -> None:
    """With the engine's own words, for a figure without it would be of another load."""
    _, off_url = await serve(FakeReplica(model="m", always=SLOW))
    _, on_url = await serve(FakeReplica(model="m", always=Fault(status=500)))
    with pytest.raises(ReplicaRefused, match=r"--on http.* failed a turn: 500 .*The engine broke"):
        await measured(SMALL, off=off_url, on=on_url)


async def test_on_shared_cores_what_an_engine_computes_is_its_time(serve: Serve) -> None:
    """Not the time that passes."""
    _, url = await serve(FakeReplica(model="m"))
    side = Side("off", url, "key", pids={url + "/v1": os.getpid()})
    await side.find()
    watch, began = side.watch(), time.process_time()
    while time.process_time() - began < 0.1:
        pass
    assert watch("") > 0.08
    watch = side.watch()
    await asyncio.sleep(0.5)
    assert watch("") < 0.4
    await side.aclose()


async def test_a_turn_has_the_time_of_the_replica_that_ran_it(
    start: Any, serve: Serve, http: Any
) -> None:
    """A router tells which that was, and the URLs of all; the other computes beside it."""
    router = await start([FakeReplica(model="m", always=SLOW) for _ in range(2)])
    listed = (await http.get(f"{router.url}/sessile/v1/replicas")).json()["replicas"]
    urls = [each["url"] for each in listed]
    parent, own = os.getppid(), os.getpid()
    side = Side("auto", router.url, "key", pids=dict(zip(urls, (own, parent), strict=True)))
    await side.find()
    watch, began = side.watch(), time.process_time()
    while time.process_time() - began < 0.1:
        pass
    assert watch("one") > 0.08 > watch("two")
    await side.aclose()
    lacking = Side("auto", router.url, "key", pids={urls[0]: own})
    with pytest.raises(SettingsError, match=rf"there is none of {urls[1]}; add {urls[1]}=PID"):
        await lacking.find()
    await lacking.aclose()
    _, url = await serve(FakeReplica(model="m"))
    engine = Side("off", url, "key", pids={urls[0]: own})
    with pytest.raises(SettingsError, match=f"there is none of {url}, and it is no router"):
        await engine.find()
    await engine.aclose()


async def test_an_address_where_nothing_answers_is_told_with_what_to_do() -> None:
    """It names the argument."""
    with pytest.raises(SettingsError, match=r"--on http://127.0.0.1:9: .*start it first"):
        await measured(SMALL, on="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--kinds", "edits,poems"], "there is no 'poems'; there are edits, json, code, prose"),
        (["--batches", "1,x"], "'1,x' is not numbers"),
        (["--output", "1"], "--output at 2"),
        (["--json", "/nowhere/f.json"], "there is no folder /nowhere"),
        (["--pids", "http://o=x"], "--pids: 'http://o=x' is not URL=PID"),
        (["--pids", "http://o=0"], "--pids: there is no process 0 to be timed"),
        (["--on", ""], "--off and --on are the engines to compare"),
        (["--table", "/nowhere/f.json"], "--table: /nowhere/f.json is no file of this benchmark"),
        ([], "--off http://127.0.0.1:9: no OpenAI-compatible server"),
    ],
)
def test_bad_arguments_are_one_sentence(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is measured."""
    nowhere = ["--off", "http://127.0.0.1:9", "--on", "http://127.0.0.1:9"]
    monkeypatch.setattr(sys, "argv", ["speculation_bench", *nowhere, *arguments])
    with pytest.raises(SystemExit, match=told):
        main()


async def test_the_file_has_all_figures(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Setup, rows and passes; the table is for people."""
    _, url = await serve(FakeReplica(model="m", always=SLOW))
    file = tmp_path / "f.json"
    line = ["--off", url, "--on", url, "--kinds", "prose", "--batches", "1", "--output", "5"]
    monkeypatch.setattr(
        sys, "argv", ["bench", *line, "--turns", "1", "--rounds", "1", "--json", str(file)]
    )
    await asyncio.to_thread(main)
    whole = msgspec.json.decode(file.read_bytes())
    assert [row["kind"] for row in whole["rows"]] == ["prose"]
    assert whole["setup"]["output"] == 5 and len(whole["passes"]) == 2
    assert "prose" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench", "--table", str(file), str(file)])
    main()
    assert capsys.readouterr().out.count("prose") == 2


async def test_a_run_that_is_cut_off_shows_what_it_has(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The points of which both engines have a pass by then; the file has every pass."""
    _, url = await serve(FakeReplica(model="m", always=SLOW))
    _, on_url = await serve(FakeReplica(model="m", faults=deque([SLOW, Fault(hang=True)])))
    file = tmp_path / "f.json"
    line = ["--off", url, "--on", on_url, "--kinds", "json,prose", "--batches", "1"]
    more = ["--output", "5", "--turns", "1", "--rounds", "1", "--seconds", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["bench", *line, *more])
    await asyncio.to_thread(main)
    told = capsys.readouterr()
    assert "json" in told.out and "prose" not in told.out
    assert "cut off after 2 s, with 3 of 4 passes" in told.err
    whole = msgspec.json.decode(file.read_bytes())
    assert (len(whole["rows"]), len(whole["passes"])) == (1, 3)
