"""What every log of events must do, whatever it keeps them in."""

from typing import Any

import msgspec
import pytest

from sessile.sessions.stream_log import Accept, Batch, StreamLog, Written

ACCEPT = Accept("router-1", b"all of it")


@pytest.fixture
def log(bench: Any) -> StreamLog:
    """The log of a store of every kind in turn: 1,000 s a sequence, 100 s a lease, 40 events."""
    log: StreamLog = bench.store.events
    return log


def batch(first: int, *events: str, turn: str = "t", **changes: Any) -> Batch:
    told = [event.encode() for event in events]
    fields = {"tenant": "acme", "turn": turn, "fence": 7, "first": first, "events": told}
    return Batch(**{**fields, **changes})


async def write(log: StreamLog, *batches: Batch) -> list[str]:
    return [written.state for written in await log.append(batches)]


async def told(log: StreamLog, after: int = -1, turn: str = "t") -> list[tuple[int, bytes]]:
    """All that the log has behind a number, page by page."""
    events: list[tuple[int, bytes]] = []
    while page := await log.read("acme", turn, after):
        if not page.events:
            break
        events += page.events
        after = events[-1][0]
    return events


async def test_events_are_read_as_they_were_written(log: StreamLog) -> None:
    """Batches add up to one sequence, which can be read from behind any number."""
    opened, more = await log.append(
        [batch(0, "a", "b", accept=ACCEPT), batch(2, "ü" * 5000, "\x00\r\n{}")]
    )
    assert (opened, more) == (Written("ok", 2), Written("ok", 4))
    events = [b"a", b"b", ("ü" * 5000).encode(), b"\x00\r\n{}"]
    for after in range(-1, 5):
        assert await told(log, after) == list(enumerate(events))[after + 1 :]


async def test_an_accept_is_all_there_is_at_first(log: StreamLog) -> None:
    """A turn that was accepted is known before its first event, with what is needed to run it."""
    assert await log.look("acme", "t") is None and await log.read("acme", "t", -1) is None
    assert await write(log, batch(0, accept=ACCEPT)) == ["ok"]
    standing = await log.look("acme", "t")
    assert standing is not None and standing.accept == ACCEPT
    assert (standing.state, standing.next, standing.fence) == ("running", 0, 7)
    assert not standing.taken
    assert await told(log) == []


async def test_a_tenants_turn_is_not_anothers(log: StreamLog) -> None:
    """Whoever asks for it under another tenant is told that there is none."""
    await write(log, batch(0, "a", accept=ACCEPT))
    assert await log.read("other", "t", -1) is None and await log.look("other", "t") is None
    assert await log.cancel("other", "t") is False
    assert await write(log, batch(1, "b", tenant="other")) == ["gone"]


async def test_a_turn_that_is_not_known_takes_no_events(log: StreamLog) -> None:
    """It has to be opened, anew if it was lost; what came before can then not be read."""
    assert await write(log, batch(5, "f")) == ["gone"]
    assert await log.append([batch(5, "f", accept=ACCEPT)]) == [Written("ok", 6, missing=5)]
    assert await told(log) == [(5, b"f")]


async def test_a_batch_that_came_before_changes_nothing(log: StreamLog) -> None:
    """A repeated or overlapping batch is told where the log goes on, and no event is doubled."""
    await write(log, batch(0, "a", "b", "c", accept=ACCEPT))
    assert await log.append([batch(0, "a", "b", "c")]) == [Written("ok", 3)]
    assert await log.append([batch(2, "c", "d")]) == [Written("ok", 3)]
    assert [event for _, event in await told(log)] == [b"a", b"b", b"c"]


async def test_a_hole_is_numbers_that_are_missing(log: StreamLog) -> None:
    """What a writer could not keep is left out; what lies around it keeps its numbers."""
    await write(log, batch(0, "a", accept=ACCEPT), batch(10, "k", "l"))
    assert await told(log) == [(0, b"a"), (10, b"k"), (11, b"l")]
    assert await told(log, 5) == [(10, b"k"), (11, b"l")]


async def test_a_sequence_ends_once(log: StreamLog) -> None:
    """Nothing is written behind the terminal event, not even a second one."""
    await write(log, batch(0, "a", accept=ACCEPT), batch(1, "z", ended=True))
    assert await write(log, batch(2, "y", ended=True), batch(2, "y"), batch(2)) == ["ended"] * 3
    page = await log.read("acme", "t", -1)
    assert page is not None and page.state == "ended" and page.next == 2
    assert page.events == [(0, b"a"), (1, b"z")]
    assert await log.cancel("acme", "t") is False


async def test_a_turn_is_taken_once_its_lease_has_run_out(bench: Any, log: StreamLog) -> None:
    """Not before; then with a higher fence, and the one it was taken from writes no more."""
    await write(log, batch(0, "a", accept=ACCEPT))
    assert await log.take("acme", "t", "router-2") is None
    await bench.elapse(60)
    assert await write(log, batch(1)) == ["ok"]  # renewed
    await bench.elapse(60)
    assert await log.take("acme", "t", "router-2") is None
    await bench.elapse(60)
    page = await log.read("acme", "t", -1)
    assert page is not None and page.state == "orphaned"
    taken = await log.take("acme", "t", "router-2")
    assert taken is not None and taken.fence > 7
    assert (taken.next, taken.record, taken.cancel) == (1, b"all of it", False)
    assert await log.take("acme", "t", "router-3") is None
    assert await write(log, batch(1, "b"), batch(1), batch(1, "b", accept=ACCEPT)) == ["fenced"] * 3
    assert await write(log, batch(1, "B", fence=taken.fence, ended=True)) == ["ok"]
    assert await told(log) == [(0, b"a"), (1, b"B")]
    standing = await log.look("acme", "t")
    assert standing is not None and standing.taken
    assert standing.accept == Accept("router-2", b"all of it")


async def test_fences_grow(bench: Any, log: StreamLog) -> None:
    """Each router that takes a turn has a higher number than all before it."""
    await write(log, batch(0, accept=ACCEPT))
    fences = [7]
    for _ in range(3):
        await bench.elapse(101)
        taken = await log.take("acme", "t", "r")
        assert taken is not None
        fences.append(taken.fence)
    assert fences == sorted(set(fences))


async def test_nobody_takes_what_has_ended_or_never_was(bench: Any, log: StreamLog) -> None:
    """There is nothing left to run."""
    await write(log, batch(0, "z", accept=ACCEPT, ended=True))
    await bench.elapse(101)
    assert await log.take("acme", "t", "r") is None
    assert await log.take("acme", "never", "r") is None
    assert await log.orphans(10) == []


async def test_a_released_turn_can_be_taken_at_once(log: StreamLog) -> None:
    """A router that stops waits for no lease; one that has lost the turn releases nothing."""
    await write(log, batch(0, "a", accept=ACCEPT))
    await log.release("acme", "t", 6)
    assert await log.take("acme", "t", "r") is None
    await log.release("acme", "t", 7)
    assert await log.orphans(10) == [("acme", "t")]
    assert await log.take("acme", "t", "r") is not None


async def test_a_cancellation_is_told_to_the_owner(bench: Any, log: StreamLog) -> None:
    """With whatever it writes next, and to who takes the turn from it."""
    await write(log, batch(0, accept=ACCEPT))
    assert await log.cancel("acme", "t") is True
    assert await log.append([batch(0, "a")]) == [Written("ok", 1, True)]
    assert await log.append([batch(1)]) == [Written("ok", 1, True)]
    await log.release("acme", "t", 7)
    taken = await log.take("acme", "t", "r")
    assert taken is not None and taken.cancel
    assert await log.cancel("acme", "never") is False


async def test_a_sequence_is_gone_after_its_time(bench: Any, log: StreamLog) -> None:
    """Counted from its last write; every write and renewal begins it anew."""
    await write(log, batch(0, "a", accept=ACCEPT))
    await bench.elapse(700)
    await write(log, batch(1))
    await bench.elapse(700)
    assert await told(log) == [(0, b"a")]
    await bench.elapse(301)
    assert await log.look("acme", "t") is None and await told(log) == []


async def test_a_turn_that_is_forgotten_is_gone(log: StreamLog) -> None:
    """With its events, and nobody takes it; the next of that name begins anew."""
    await write(log, batch(0, "a", accept=ACCEPT))
    await log.release("acme", "t", 7)
    await log.forget("acme", "t")
    await log.forget("acme", "never")
    assert await log.look("acme", "t") is None and await told(log) == []
    assert await log.orphans(10) == []
    assert await write(log, batch(0, "b"), batch(0, "b", accept=ACCEPT)) == ["gone", "ok"]
    assert await told(log) == [(0, b"b")]


async def test_only_so_many_events_are_kept(log: StreamLog) -> None:
    """Over the limit the oldest go, the newest batch never."""
    await write(log, batch(0, accept=ACCEPT))
    for first in range(0, 100, 5):
        await write(log, batch(first, *(f"{first + n}" for n in range(5))))
    assert await told(log) == [(n, b"%d" % n) for n in range(60, 100)]
    big = "x" * 20_000
    await write(log, batch(100, big, ended=True))
    assert await told(log) == [(100, big.encode())]


async def test_orphans_are_told_the_oldest_first(bench: Any, log: StreamLog) -> None:
    """Those whose router has been silent for a lease, and no others."""
    for turn in ("a", "b", "c"):
        await write(log, batch(0, turn=turn, accept=ACCEPT))
    await write(log, batch(0, "z", turn="c", ended=True))
    assert await log.orphans(10) == []
    await log.release("acme", "b", 7)
    assert await log.orphans(10) == [("acme", "b")]


async def test_many_turns_in_one_call(log: StreamLog) -> None:
    """Each is told of by itself, in the order in which they were given."""
    batches = [batch(0, f"{n}", turn=f"t{n}", accept=ACCEPT if n % 2 else None) for n in range(20)]
    assert await write(log, *batches) == ["gone", "ok"] * 10
    assert await told(log, turn="t3") == [(0, b"3")]


async def test_long_sequences_come_in_pages(bench: Any) -> None:
    """However long it is, reading on from the last number gives all of it."""
    log: StreamLog = bench.store.events
    log.limits = msgspec.structs.replace(log.limits, most_events=10_000, most_bytes=10**7)
    await write(log, batch(0, accept=ACCEPT))
    for first in range(0, 3000, 30):
        await write(log, batch(first, *(f"{first + n}" for n in range(30))))
    assert [int(event) for _, event in await told(log)] == list(range(3000))


async def test_a_sessions_newest_turn_is_found(log: StreamLog) -> None:
    """The one that was accepted last, by its tenant; a turn without a session changes nothing."""
    assert await log.newest("acme", "s") is None
    for turn in ("t", "u"):
        accept = Accept("router-1", b"all of it", "s")
        await write(log, batch(0, turn=turn, accept=accept), batch(0, "a", turn=turn))
    await write(log, batch(0, turn="v", accept=ACCEPT))
    await write(log, batch(0, turn="w", tenant="other", accept=Accept("r", b"", "s2")))
    assert await log.newest("acme", "s") == "u"
    assert await log.newest("acme", "s2") is None and await log.newest("other", "s") is None


# -- steers


async def test_what_is_said_into_a_turn_is_kept_once(log: StreamLog) -> None:
    """In order, under its key; its owner hears of it with the next write, and whoever takes the
    turn over finds it."""
    assert await log.steer("acme", "t", "k1", b"Stop.", 2) == "gone"
    await write(log, batch(0, "a", accept=ACCEPT))
    assert await log.steers("acme", "t") == []
    assert await log.steer("acme", "t", "k2", b"Stop.", 2) == "ok"
    assert await log.steer("acme", "t", "k1 \u00fc", b"\x00\xff", 2) == "ok"
    assert await log.steer("acme", "t", "k2", b"Again.", 2) == "known"
    assert await log.steer("acme", "t", "k3", b"More.", 2) == "full"
    assert await log.append([batch(1, "b")]) == [Written("ok", 2, steers=2)]
    kept = [("k2", b"Stop."), ("k1 \u00fc", b"\x00\xff")]
    assert await log.steers("acme", "t") == kept
    assert await log.steer("other", "t", "k4", b"Stop.", 9) == "gone"
    assert await log.steers("other", "t") == []


async def test_nothing_is_said_into_a_turn_that_has_ended(log: StreamLog) -> None:
    """But what was said before is known to have been."""
    await write(log, batch(0, "a", accept=ACCEPT))
    await log.steer("acme", "t", "k1", b"Stop.", 2)
    await write(log, batch(1, "z", ended=True))
    assert await log.steer("acme", "t", "k1", b"Stop.", 2) == "known"
    assert await log.steer("acme", "t", "k2", b"Stop.", 2) == "ended"
    assert await log.steers("acme", "t") == [("k1", b"Stop.")]
