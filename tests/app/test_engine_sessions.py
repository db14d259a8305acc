"""The benchmark of an engine's own sessions, before a fake one that has them."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from sessile.errors import ReplicaRefused, ReplicaUnreachable
from sessile.lab.engine_sessions import Sample, Setup, compare, summed, table
from sessile.lab.engine_ways import Engine, NewIds
from sessile.lab.processes import cpu_s, family
from session_engine import SessionEngine

Serve = Callable[..., Awaitable[tuple[Any, str]]]
SMALL = {"turns": 6, "rounds": 2, "system_tokens": 50, "result_tokens": 40}


def turn_of(samples: list[Sample], how: str, turn: int) -> Sample:
    """One way's turn, in the first round."""
    (found,) = [s for s in samples if (s.how, s.round, s.turn) == (how, 0, turn)]
    return found


async def test_all_ways_hold_the_same_conversation(serve: Serve) -> None:
    """The prompts of ids, whole or in parts, are the same ids; all answers are the chat's; what is
    sent grows where all of it is sent, and nowhere else."""
    engine, url = await serve(SessionEngine())
    samples = await compare(Setup(url=url, **SMALL))
    chat, ids, session, streaming = summed(samples)
    assert [chat.how, ids.how, session.how, streaming.how] == [
        "chat", "ids", "session", "streaming",
    ]  # fmt: skip
    assert [each.as_ids for each in (chat, ids, session, streaming)] == 4 * [12]
    assert ids.prompt_tokens == session.prompt_tokens == streaming.prompt_tokens
    assert chat.last_bytes > chat.third_bytes + 3 * 160 and ids.last_bytes > ids.third_bytes + 200
    for new in (session, streaming):
        assert abs(new.last_bytes - new.third_bytes) < 0.2 * new.third_bytes
        assert 0 < new.prompt_tokens - new.cached_tokens < new.prompt_tokens / 3
    assert all(sample.ttft_s is not None for sample in samples)
    assert table([chat, ids, session, streaming]).row_count == 4


async def test_no_way_profits_from_another(serve: Serve) -> None:
    """The first turn of each finds nothing cached; sessions are opened as they are to be, and are
    closed when a round is over."""
    engine, url = await serve(SessionEngine())
    samples = await compare(Setup(url=url, **SMALL))
    for how in ("ids", "session", "streaming"):
        assert turn_of(samples, how, 1).cached_tokens == 0
    spaces = {body["extra_key"] for body in engine.generated}
    assert len(spaces) == 3 * 2 and not spaces & {seen.body["extra_key"] for seen in engine.seen}
    assert [body["streaming"] for body in engine.opened] == 2 * [False, True]
    assert engine.sessions == {}


async def test_cpu_may_be_told_instead_of_time(serve: Serve) -> None:
    """Of the server and what it has started; a turn takes some, and less than all there was."""
    engine, url = await serve(SessionEngine())
    samples = await compare(Setup(url=url, pid=os.getpid(), **SMALL))
    used = [sample.ttft_s for sample in samples if sample.ttft_s is not None]
    assert len(used) == len(samples) and min(used) >= 0
    assert 0 < sum(used) < sum(map(cpu_s, family(os.getpid())))


async def test_a_server_without_streaming_sessions_is_not_asked_for_them(serve: Serve) -> None:
    """It would refuse to open one."""
    engine, url = await serve(SessionEngine(streaming=False))
    samples = await compare(Setup(url=url, **SMALL))
    assert [each.how for each in summed(samples)] == ["chat", "ids", "session"]


async def test_an_answer_that_ended_by_itself_is_not_ended_twice(serve: Serve) -> None:
    """Its ids have the token that ends it."""
    engine, url = await serve(SessionEngine())
    setup = Setup(url=url, turns=3, rounds=1, system_tokens=10, result_tokens=5, output_tokens=500)
    chat, ids, session, _ = summed(await compare(setup))
    assert (ids.as_ids, session.as_ids) == (3, 3)
    (end,) = engine.ids("<end>")
    for body in engine.generated:
        whole = body["input_ids"]
        assert (end, end) not in list(zip(whole, whole[1:], strict=False))


async def test_a_lost_session_is_an_error_also_in_a_stream(serve: Serve) -> None:
    """The engine answers with a 200 and a word that nobody said."""
    engine, url = await serve(SessionEngine())
    async with httpx2.AsyncClient(base_url=url) as http:
        asked = Engine(http, "m", 4)
        new = await asked.ids([{"role": "user", "content": "Hi"}])
        way = NewIds(asked, "space", streaming=False)
        await way.turn("Hi", new)
        engine.sessions.clear()
        with pytest.raises(ReplicaRefused, match="space does not exist"):
            await way.turn("Hi", new)


async def test_where_no_engine_answers_it_says_so() -> None:
    """In one sentence, with what to do."""
    with pytest.raises(ReplicaUnreachable, match="--replica"):
        await compare(Setup(url="http://127.0.0.1:9"))
