"""What the writer of events does when the log fails it in ways that a store rarely shows."""

import asyncio
from collections.abc import Callable, Sequence

from sessile.errors import StoreUnavailable
from sessile.event_writer import EventWriter
from sessile.sessions.memory_log import MemoryLog
from sessile.sessions.stream_log import Batch, LogLimits, Written


class _Deaf(MemoryLog):
    """A log whose replies can be lost, with or without what was to be written."""

    loses = ""

    async def append(
        self, batches: Sequence[Batch], sent: Callable[[], None] | None = None
    ) -> list[Written]:
        written = [] if self.loses == "batch" else await super().append(batches)
        if self.loses:
            raise StoreUnavailable("no reply came")
        return written


async def _lost(loses: str) -> tuple[int, list[int]]:
    """One turn of 20 events, of which memory holds the newest when the log is heard again: how many
    are said to be lost, and the numbers that the log has."""
    log = _Deaf(LogLimits())
    writer = EventWriter(log, lambda: True)
    live = writer.begin("acme", "t", b"record")
    live.most_bytes = 100
    live.tell([b"a" * 10] * 3)
    assert await writer.flush()
    live.tell([b"b" * 10] * 5)
    log.loses = loses
    assert not await writer.flush()
    log.loses = ""
    live.tell([b"c" * 10] * 12, ended=True)
    while await writer.flush() and writer.find("acme", "t") is not None:
        pass
    await writer.aclose()
    page = await log.read("acme", "t", -1)
    assert page is not None and page.state == "ended" and page.next == 20
    return writer.lost_events, [number for number, _ in page.events]


async def test_what_was_written_without_a_reply_is_not_lost() -> None:
    """The log says what it was never given."""
    lost, kept = await _lost("reply")
    assert lost == 20 - len(kept) and set(range(8)) <= set(kept) and lost


async def test_what_was_not_written_and_is_no_longer_here_is_lost() -> None:
    """All of it, and no more."""
    lost, kept = await _lost("batch")
    assert lost == 20 - len(kept) and not set(range(3, 8)) & set(kept)


class _Slow(MemoryLog):
    """A log that says when a batch is on its way, and answers when it may."""

    def __init__(self) -> None:
        super().__init__(LogLimits())
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def append(
        self, batches: Sequence[Batch], sent: Callable[[], None] | None = None
    ) -> list[Written]:
        if sent is not None:
            sent()
        await self.may_answer.wait()
        return await super().append(batches)


async def test_what_is_on_its_way_is_told_while_no_other_router_can_have_the_turn() -> None:
    """The accept waits for the log's word, which grants the lease; then nothing does until that is
    half over."""
    log = _Slow()
    writer = EventWriter(log, lambda: True)
    live = writer.begin("acme", "t", b"record")

    async def told_before_the_answer(event: bytes) -> bool:
        live.tell([event])
        log.may_answer.clear()
        writing = asyncio.create_task(writer.flush())
        await asyncio.sleep(0)
        told = live.safe == live.next
        log.may_answer.set()
        assert await writing and live.safe == live.next
        return told

    assert not await told_before_the_answer(b"a")
    assert await told_before_the_answer(b"b")
    live.leased_until = 0.0
    assert not await told_before_the_answer(b"c")
    assert await told_before_the_answer(b"d")
    await writer.aclose()


class _Counted(MemoryLog):
    """A log that counts how often it was written to."""

    writes = 0

    async def append(
        self, batches: Sequence[Batch], sent: Callable[[], None] | None = None
    ) -> list[Written]:
        self.writes += 1
        return await super().append(batches)


async def test_what_comes_as_a_flush_is_due_goes_with_it() -> None:
    """However densely events come, they are written no more often than every few ms."""
    log = _Counted(LogLimits())
    writer = EventWriter(log, lambda: True)
    running = asyncio.create_task(writer.run())
    live = writer.begin("acme", "t", b"record")
    live.tells = 3  # the first of a turn are written at once
    loop = asyncio.get_running_loop()
    began = loop.time()
    while log.writes < 40:
        live.tell([b"a"])
        await asyncio.sleep(0)
    assert loop.time() - began > 39 * 0.005
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await writer.aclose()
