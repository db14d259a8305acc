"""What a turn keeps in memory of its events, and what of it is to be written."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.live_turn import LiveTurn, Pace, TurnTaken
from sessile.sessions.stream_log import Accept


def live(**changes: Any) -> LiveTurn:
    noted: list[LiveTurn] = []
    turn = LiveTurn(("acme", "t"), 7, Accept("me", b"record"), noted.append, Pace(), **changes)
    turn.most_bytes = 100
    return turn


def test_a_turn_is_written_from_its_accept_to_its_end() -> None:
    """Each batch begins where the log goes on; the first opens it, the last ends it."""
    turn = live()
    assert turn.dirty and turn.batch().accept is not None and not turn.batch().events
    turn.tell([b"a", b"b"])
    opened = turn.batch()
    assert (opened.first, list(opened.events), opened.fence) == (0, [b"a", b"b"], 7)
    turn.tell([b"z"], ended=True)
    turn.wrote(2)
    last = turn.batch()
    assert (last.first, list(last.events), last.ended, last.accept) == (2, [b"z"], True, None)
    turn.wrote(3)
    assert not turn.dirty and not turn.batch().events


def test_nothing_is_told_behind_the_end() -> None:
    """Exactly one terminal event, however often somebody ends the turn."""
    turn = live()
    turn.tell([b"z"], ended=True)
    turn.tell([b"y"], ended=True)
    assert turn.since(-1) == [(0, b"z")] and turn.next == 1


def test_a_log_that_has_lost_the_turn_is_given_what_is_still_here() -> None:
    """With the accept, so that it is opened anew."""
    turn = live()
    turn.tell([b"a", b"b", b"c"])
    turn.wrote(3)
    turn.forgotten()
    again = turn.batch()
    assert (again.first, list(again.events)) == (0, [b"a", b"b", b"c"])
    assert again.accept == turn.accept


def test_a_turn_that_is_taken_over_goes_on_behind_what_was_told() -> None:
    """Its numbers begin there, and the log knows it."""
    turn = live(first=5, known=True)
    assert not turn.dirty
    turn.tell([b"f"])
    assert turn.since(4) == [(5, b"f")] and turn.since(3) is None
    assert turn.batch().first == 5 and turn.batch().accept is None


def test_a_turn_is_stopped_once() -> None:
    """Whoever stops it first; what is told to one that is lost goes nowhere."""
    turn, stops = live(), []
    turn.stop = lambda: stops.append(turn.stopped)
    turn.cancel()
    turn.cancel()
    turn.lose()
    assert stops == ["cancelled"] and turn.stopped == "lost"
    turn.tell([b"a"])
    assert turn.next == 0 and not turn.dirty


def test_a_batch_is_bounded() -> None:
    """In events and in bytes; one that is too long by itself travels alone."""
    turn = live()
    turn.most_bytes = 10**9
    turn.tell([b"x" * 40_000, b"y" * 40_000, *[b"z"] * 600])
    assert len(turn.batch().events) == 1
    turn.wrote(1)
    assert len(turn.batch().events) == 512
    turn.tell([b"w" * 100_000], ended=True)
    turn.wrote(602)
    assert turn.batch().ended and len(turn.batch().events) == 1


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=60),
    writes=st.lists(st.integers(0, 3), min_size=60, max_size=60),
)
def test_what_is_kept_is_the_newest_and_keeps_its_numbers(
    sizes: list[int], writes: list[int]
) -> None:
    """However much is told and written when: memory is bounded, a follower within it misses
    nothing, and a batch never begins before what is here."""
    turn = live()
    for number, size in enumerate(sizes):
        turn.tell([b"%d" % number + b"x" * size])
        kept = turn.since(turn.first - 1)
        assert kept is not None and kept[-1][0] == turn.next - 1 == number
        assert all(event.startswith(b"%d" % n) for n, event in kept)
        assert len(kept) == 1 or sum(len(event) for _, event in kept) <= 100
        batch = turn.batch()
        assert batch.first >= max(turn.first, turn.written)
        turn.wrote(batch.first + min(writes[number], len(batch.events)))


async def test_clients_are_told_what_the_log_has() -> None:
    """Or everything, where the log is late."""
    pace = Pace()
    turn = LiveTurn(("acme", "t"), 7, Accept("me", b"record"), lambda _: None, pace)
    turn.tell([b"a", b"b"])
    assert turn.safe == 0 and turn.since(-1, turn.safe) == []
    waiting = asyncio.create_task(turn.told())
    await asyncio.sleep(0)
    turn.wrote(1)
    assert turn.since(-1, turn.safe) == [(0, b"a")] and turn.since(0, turn.safe) == []
    await asyncio.sleep(0)
    assert not waiting.done()
    pace.late = True
    turn.wake()
    await waiting
    assert turn.since(0, turn.safe) == [(1, b"b")]


async def test_who_tells_a_turn_that_another_router_has_is_told_so() -> None:
    """However long it has waited for the log."""
    turn = live()
    turn.tell([b"a"])
    waiting = asyncio.create_task(turn.told())
    await asyncio.sleep(0)
    turn.lose()
    with pytest.raises(TurnTaken):
        await waiting


@pytest.mark.parametrize("word", ["sent", "written", "late", "lost"])
def test_who_does_not_wait_is_called_once_clients_may_be_told(word: str) -> None:
    """As soon as the log has all that there was when it asked, or is late, or has given the turn
    to another router; at once where nothing is to be waited for."""
    pace, calls = Pace(), []
    turn = LiveTurn(("acme", "t"), 7, Accept("me", b"record"), lambda _: None, pace)
    turn.tell([b"a", b"b"])
    turn.once_told(lambda: calls.append(turn.stopped))
    turn.tell([b"c"])
    turn.sends(1)
    assert not calls
    if word == "sent":
        turn.sends(2)
    elif word == "written":
        turn.wrote(2)
    elif word == "late":
        pace.late = True
        turn.wake()
    else:
        turn.lose()
    assert calls == (["lost"] if word == "lost" else [None])
    turn.wrote(3)
    turn.wake()
    assert len(calls) == 1
    turn.once_told(lambda: calls.append("now"))
    assert calls[1:] == ["now"]
