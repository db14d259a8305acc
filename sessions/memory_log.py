"""The reference log of events: one router's memory. The oldest ended turns go when it is full."""

import time
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Literal

import msgspec

from sessile.sessions.stream_log import (
    Accept,
    Batch,
    LogLimits,
    Page,
    Standing,
    Steered,
    Taken,
    Written,
)

_MOST_IN_ALL_BYTES = 64 * 2**20
_PAGE = 1024
_MOST_SESSIONS = 10_000


class _Turn(msgspec.Struct):
    fence: int
    accept: Accept
    next: int
    until: float
    expires: float
    events: list[tuple[int, bytes]] = []
    size: int = 0
    ended: bool = False
    cancel: bool = False
    taken: bool = False
    missing: int = 0
    steers: dict[str, bytes] = {}


class MemoryLog:
    """Implements `StreamLog`. Every step is atomic because none of them awaits."""

    def __init__(
        self,
        limits: LogLimits,
        clock: Callable[[], float] = time.time,
        most_bytes_in_all: int = _MOST_IN_ALL_BYTES,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._most_in_all = most_bytes_in_all
        self._turns: OrderedDict[tuple[str, str], _Turn] = OrderedDict()
        self._newest: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._size = 0

    async def append(
        self, batches: Sequence[Batch], sent: Callable[[], None] | None = None
    ) -> list[Written]:
        return [self._append(batch) for batch in batches]

    def _append(self, batch: Batch) -> Written:
        key, now = (batch.tenant, batch.turn), self._clock()
        turn = self._find(key)
        if turn is None:
            if batch.accept is None:
                return Written("gone")
            turn = _Turn(batch.fence, batch.accept, 0, now, now)
            self._turns[key] = turn
            if batch.accept.session is not None:
                self._note(batch.tenant, batch.accept.session, batch.turn)
        if turn.fence != batch.fence:
            return Written("fenced")
        if turn.ended:
            return Written("ended", missing=turn.missing)
        turn.until = now + self.limits.lease_s
        turn.expires = now + self.limits.ttl_s
        self._turns.move_to_end(key)
        if batch.events and batch.first >= turn.next:
            turn.missing += batch.first - turn.next
            turn.events += enumerate(batch.events, batch.first)
            turn.next = batch.first + len(batch.events)
            turn.ended = batch.ended
            self._count(turn, sum(map(len, batch.events)))
            self._trim(turn)
        return Written("ok", turn.next, turn.cancel, turn.missing, len(turn.steers))

    async def read(self, tenant: str, turn: str, after: int) -> Page | None:
        found = self._find((tenant, turn))
        if found is None:
            return None
        start = bisect(found.events, after, key=itemgetter(0))
        return Page(found.events[start : start + _PAGE], self._state(found), found.next)

    async def look(self, tenant: str, turn: str) -> Standing | None:
        found = self._find((tenant, turn))
        if found is None:
            return None
        return Standing(
            self._state(found), found.next, found.fence, found.cancel, found.accept, found.taken
        )

    async def take(self, tenant: str, turn: str, owner: str) -> Taken | None:
        found = self._find((tenant, turn))
        if found is None or self._state(found) != "orphaned":
            return None
        now = self._clock()
        found.taken = True
        found.fence = max(int(now * 1_000_000), found.fence + 1)
        found.accept = Accept(owner, found.accept.record)
        found.until, found.expires = now + self.limits.lease_s, now + self.limits.ttl_s
        return Taken(found.fence, found.next, found.cancel, found.accept.record)

    async def release(self, tenant: str, turn: str, fence: int) -> None:
        found = self._find((tenant, turn))
        if found is not None and found.fence == fence:
            found.until = self._clock()

    async def cancel(self, tenant: str, turn: str) -> bool:
        found = self._find((tenant, turn))
        if found is None or found.ended:
            return False
        found.cancel = True
        return True

    async def steer(self, tenant: str, turn: str, key: str, said: bytes, most: int) -> Steered:
        found = self._find((tenant, turn))
        if found is None:
            return "gone"
        if key in found.steers:
            return "known"
        if found.ended:
            return "ended"
        if len(found.steers) >= most:
            return "full"
        found.steers[key] = said
        return "ok"

    async def steers(self, tenant: str, turn: str) -> list[tuple[str, bytes]]:
        found = self._find((tenant, turn))
        return [] if found is None else list(found.steers.items())

    async def newest(self, tenant: str, session: str) -> str | None:
        turn = self._newest.get((tenant, session))
        return turn if turn is not None and self._find((tenant, turn)) is not None else None

    async def forget(self, tenant: str, turn: str) -> None:
        if (tenant, turn) in self._turns:
            self._drop((tenant, turn))

    async def orphans(self, most: int) -> list[tuple[str, str]]:
        left = [(turn.until, key) for key, turn in self._turns.items()
                if not turn.ended and turn.until <= self._clock()]  # fmt: skip
        return [key for _, key in sorted(left)[:most]]

    def _note(self, tenant: str, session: str, turn: str) -> None:
        self._newest[tenant, session] = turn
        self._newest.move_to_end((tenant, session))
        if len(self._newest) > _MOST_SESSIONS:
            self._newest.popitem(last=False)

    def _find(self, key: tuple[str, str]) -> _Turn | None:
        turn = self._turns.get(key)
        if turn is not None and turn.expires <= self._clock():
            self._drop(key)
            return None
        return turn

    def _state(self, turn: _Turn) -> Literal["running", "orphaned", "ended"]:
        if turn.ended:
            return "ended"
        return "running" if turn.until > self._clock() else "orphaned"

    def _trim(self, turn: _Turn) -> None:
        """Keep to the limits: of this turn the oldest events go, of all the oldest ended turn."""
        over = max(0, len(turn.events) - self.limits.most_events)
        size = turn.size - sum(len(event) for _, event in turn.events[:over])
        while size > self.limits.most_bytes and over < len(turn.events) - 1:
            size -= len(turn.events[over][1])
            over += 1
        del turn.events[:over]
        self._count(turn, size - turn.size)
        while self._size > self._most_in_all:
            key = next((key for key, kept in self._turns.items() if kept.ended), None)
            if key is None:
                return
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        self._size -= self._turns.pop(key).size

    def _count(self, turn: _Turn, size: int) -> None:
        turn.size += size
        self._size += size
