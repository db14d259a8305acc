"""A turn's events as this router tells them: the newest stay in memory, for those who follow here.

An event is told to clients once it is on its way to the log, so that no client is ever ahead of
what another router could tell: while the lease that the log last granted holds, no other router has
the turn, and what is on its way arrives even if this router ends. Without that, an event is told
once the log says that it has it; and where the log is late, which the writer says, clients do not
wait for it. What is neither in memory nor written any more is a hole, which numbers tell.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from sessile.sessions.stream_log import Accept, Batch

_MOST_KEPT_BYTES = 2**20
_MOST_AT_ONCE = 512
_MOST_AT_ONCE_BYTES = 64 * 1024

Stop = Literal["cancelled", "lost"]


class TurnTaken(Exception):
    """Another router has the turn: nothing that is made of it here counts any more. No
    `SessileError`: the turn has not failed, and nobody is to be told that it has."""

    code = "taken_over"  # of the engine's call that was stopped


class Pace:
    """How the log keeps up, for all turns of a router: while it is `late`, nobody waits for it."""

    __slots__ = ("late",)

    def __init__(self) -> None:
        self.late = False


class LiveTurn:
    """One running turn of this router. Made by the writer; events have the numbers `first` to
    `next`, those before `written` are in the log, those before `sent` at least on their way.

    `pace` says whether the log is to be waited for. `stop` is called once, when somebody wants
    the turn cancelled or another router has it; `stopped` says which. `steers` is what was said
    into it here, by its keys, `steered` how much the log says that was said anywhere. `tells` is
    how often something was told of it. Until `leased_until`, by the monotonic clock, no other
    router has it.
    """

    __slots__ = (
        "_bytes", "_changed", "_events", "_give", "_give_at", "_loop", "_pace", "_teller", "_told",
        "accept", "ended", "fence", "first", "key", "known", "leased_until", "missing",
        "most_bytes", "next", "sent", "steered", "steers", "stop", "stopped", "tells", "written",
    )  # fmt: skip

    def __init__(
        self,
        key: tuple[str, str],
        fence: int,
        accept: Accept,
        told: Callable[["LiveTurn"], None],
        pace: Pace,
        first: int = 0,
        known: bool = False,
    ) -> None:
        self.key = key
        self.fence = fence
        self.accept = accept
        self.first = self.next = self.written = self.sent = first
        self.known = known  # to the log
        # How many events the log has never been given; of one taken over, it is yet to say so.
        self.missing: int | None = None if known else 0
        self.ended = False
        self.stopped: Stop | None = None
        self.most_bytes = _MOST_KEPT_BYTES
        self.stop: Callable[[], object] | None = None
        self.leased_until = 0.0
        self.steers: dict[str, bytes] = {}
        self.steered = 0
        self.tells = 0
        self._told = told
        self._pace = pace
        self._events: list[bytes] = []
        self._bytes = 0
        self._changed: asyncio.Future[None] | None = None
        self._teller: asyncio.Future[None] | None = None
        self._give: Callable[[], None] | None = None
        self._give_at = first
        self._loop: asyncio.AbstractEventLoop | None = None  # asking for it costs a system call

    def tell(self, events: Sequence[bytes], ended: bool = False) -> None:
        """The next events; never waits. Nothing is told behind the terminal one."""
        if self.ended or self.stopped == "lost":
            return
        self.tells += 1
        self._events += events
        self.next += len(events)
        for event in events:
            self._bytes += len(event)
        self.ended = ended
        if self._bytes > self.most_bytes:
            self._trim()
        if self._pace.late:
            self.wake()
        self._told(self)

    @property
    def safe(self) -> int:
        """Clients may be told the events before this number."""
        return self.next if self._pace.late else max(self.sent, self.first)

    async def told(self) -> None:
        """Wait until clients may be told everything; for who tells it. Raises `TurnTaken`."""
        upto = self.next
        while self._waits_for(upto):
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._teller = self._loop.create_future()
            await self._teller
        if self.stopped == "lost":
            raise TurnTaken

    def once_told(self, give: Callable[[], None]) -> None:
        """As `told`, without a task that waits: `give` is called once clients may be told
        everything there is now, or another router has the turn. One at a time."""
        if self._waits_for(self.next):
            self._give, self._give_at = give, self.next
        else:
            give()

    def _waits_for(self, upto: int) -> bool:
        return self.sent < upto and not self._pace.late and self.stopped != "lost"

    def since(self, after: int, upto: int | None = None) -> list[tuple[int, bytes]] | None:
        """The numbered events behind `after` and before `upto`, perhaps none yet; None if memory
        begins later."""
        start = after + 1 - self.first
        if start < 0:
            return None
        end = start + _MOST_AT_ONCE
        if upto is not None:
            end = min(end, max(start, upto - self.first))
        return list(enumerate(self._events[start:end], after + 1))

    async def changed(self) -> None:
        """Wait until there is something new to know."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    @property
    def is_steered(self) -> bool:
        """Whether something was said into it, here or at another router."""
        return bool(self.steers) or self.steered > 0

    @property
    def dirty(self) -> bool:
        """Whether the log lacks something of it."""
        return (self.written < self.next or not self.known) and self.stopped != "lost"

    def batch(self) -> Batch:
        """What is to be written next; with nothing new, the renewal of the lease."""
        begin = self.written if self.written > self.first else self.first
        start = begin - self.first
        events = self._events[start : start + _MOST_AT_ONCE]
        if len(events) > 1:
            _cut(events)
        tenant, turn = self.key
        return Batch(
            tenant=tenant,
            turn=turn,
            fence=self.fence,
            first=begin,
            events=events,
            ended=self.ended and bool(events) and begin + len(events) == self.next,
            accept=None if self.known else self.accept,
        )

    def sends(self, upto: int) -> None:
        """The events before number `upto` are on their way, under a lease that holds, or there."""
        if upto > self.sent:
            self.sent = upto
            self.wake()

    def wrote(self, upto: int) -> None:
        """The log goes on at number `upto`."""
        self.known = True
        self.written = upto = upto if upto < self.next else self.next
        if upto > self.sent:
            self.sends(upto)

    def forgotten(self) -> None:
        """The log has lost the turn: it is given all that is still here."""
        self.known = False
        self.written = self.first

    def lose(self) -> None:
        """Another router has the turn: what is told here counts no more."""
        self._stop("lost")
        self.wake()

    def cancel(self) -> None:
        """Somebody wants the turn to end."""
        self._stop("cancelled")

    def _stop(self, why: Stop) -> None:
        first, self.stopped = self.stopped is None, why
        if first and self.stop is not None:
            self.stop()

    def wake(self) -> None:
        """There is something new to know."""
        if self._give is not None and not self._waits_for(self._give_at):
            give, self._give = self._give, None
            give()
        if (teller := self._teller) is not None:
            self._teller = None
            if not teller.done():
                teller.set_result(None)
        if (changed := self._changed) is not None:
            self._changed = None
            if not changed.done():
                changed.set_result(None)

    def _trim(self) -> None:
        """Keep the newest three quarters of what may be kept, and the last event always."""
        dropped = 0
        while self._bytes > self.most_bytes * 3 // 4 and dropped < len(self._events) - 1:
            self._bytes -= len(self._events[dropped])
            dropped += 1
        del self._events[:dropped]
        self.first += dropped


def _cut(events: list[bytes]) -> None:
    """Leave only as many as one batch may hold, and one at least."""
    size = 0
    for count, event in enumerate(events):
        size += len(event)
        if size > _MOST_AT_ONCE_BYTES and count:
            del events[count:]
            return
