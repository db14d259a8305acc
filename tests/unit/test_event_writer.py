"""What the writer of events does when the log fails it in ways that a store rarely shows."""

from collections.abc import Sequence

from sessile.errors import StoreUnavailable
from sessile.event_writer import EventWriter
from sessile.sessions.memory_log import MemoryLog
from sessile.sessions.stream_log import Batch, LogLimits, Written


class _Deaf(MemoryLog):
    """A log whose replies can be lost, with or without what was to be written."""

    loses = ""

    async def append(self, batches: Sequence[Batch]) -> list[Written]:
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
