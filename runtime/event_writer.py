"""Writes the events of this router's turns to the log: many turns at once, every few ms.

Clients are told an event once it is on its way. They wait for no more than 20 ms: a log that is
late, or away, holds nobody up until it has caught up. While the store is away, events wait in
memory, a bounded part of each turn; what fell out of that before it could be written is missing in
the log for good, and counted.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from functools import cached_property

from sessile.errors import StoreUnavailable
from sessile.live_turn import LiveTurn, Pace
from sessile.sessions.stream_log import Accept, StreamLog, Written

log = logging.getLogger("sessile.events")

_LINGER_S = 0.002  # that an event waits for those of other turns
_APART_S = 0.006  # from flush to flush: one costs the CPU of many events
_FIRST_TELLS = 3  # of a turn do not wait for that: engines begin with a chunk or two without text
_LATE_S = 0.02
_RETRY_S = 0.1
_RENEWALS = 4  # in the time of a lease
_TRUSTED = 2  # a lease is counted on for half its time: clocks and stalls have the rest
_CLOSING_S = 1.0
_MOST_LEFT = 2_000  # turns that have ended and could not be written yet


class EventWriter:
    """One a router; `run` is its task."""

    def __init__(self, log: StreamLog, available: Callable[[], bool]) -> None:
        self.owner = secrets.token_hex(6)
        self.lost_events = 0
        self._pace = Pace()
        self._log = log
        self._available = available
        self._turns: dict[tuple[str, str], LiveTurn] = {}
        self._dirty: dict[LiveTurn, None] = {}
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0  # by the loop's clock
        self._patience: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0  # by the loop's clock
        self._waiting_since: float | None = None  # for the log's word, by the loop's clock

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop that all turns run on; asking for it costs a system call."""
        return asyncio.get_running_loop()

    def begin(
        self, tenant: str, turn: str, record: bytes, *, session: str | None = None,
        fence: int | None = None, first: int = 0,
    ) -> LiveTurn:  # fmt: skip
        """Accept a turn, or with a `fence` go on with one that was taken over."""
        live = LiveTurn(
            (tenant, turn),
            int(time.time() * 1_000_000) if fence is None else fence,
            Accept(self.owner, record, session),
            self._note,
            self._pace,
            first,
            known=fence is not None,
        )
        self._turns[live.key] = live
        self._note(live)
        return live

    def find(self, tenant: str, turn: str) -> LiveTurn | None:
        """The turn, if it runs here, or has just ended here."""
        return self._turns.get((tenant, turn))

    def forget(self, live: LiveTurn) -> None:
        """Leave a turn to whoever takes it; nothing of it is written any more."""
        self._dirty.pop(live, None)
        if self._turns.get(live.key) is live:
            del self._turns[live.key]

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew())
            while True:
                await self._due.wait()
                self._due.clear()
                if not await self.flush():
                    await asyncio.sleep(_RETRY_S)
                if self._dirty:
                    self._soon()

    async def flush(self) -> bool:
        """Write what there is, a batch of each turn; False while the store is away."""
        turns = list(self._dirty)
        if not turns:
            return True
        if not self._available():
            self._give_way()
            self._drop_left()
            return False
        self._dirty.clear()
        self._flushed_at = self._loop.time()
        return await self._write(turns)

    async def aclose(self) -> None:
        """Write what is left, as far as the store takes it in a second."""
        for timer in (self._timer, self._patience):
            if timer is not None:
                timer.cancel()
        until = time.monotonic() + _CLOSING_S
        while self._dirty and time.monotonic() < until and await self.flush():
            pass

    async def _write(self, turns: list[LiveTurn]) -> bool:
        batches = [live.batch() for live in turns]
        began = time.monotonic()

        def sent() -> None:
            now = time.monotonic()
            for live, batch in zip(turns, batches, strict=True):
                if now < live.leased_until:
                    live.sends(batch.first + len(batch.events))

        try:
            written = await self._log.append(batches, sent)
        except StoreUnavailable:
            self._dirty |= dict.fromkeys(live for live in turns if live.dirty)
            self._give_way()
            return False
        self._in_time()
        leased_until = began + self._log.limits.lease_s / _TRUSTED
        for live, told in zip(turns, written, strict=True):
            if told.missing != live.missing:
                self._compare(live, told)
            if told.state != "ok":
                self._settle(live, told)
                continue
            live.leased_until = leased_until
            live.wrote(told.next)
            live.steered = told.steers
            if told.cancel and not live.ended:
                live.cancel()
            if live.written < live.next or live.ended:
                self._go_on(live)
        return True

    def _compare(self, live: LiveTurn, told: Written) -> None:
        """Count what the log says it was never given, whichever of the writes it skipped: the
        reply to that one may have been lost."""
        if told.state in ("ok", "ended"):
            if live.missing is not None and told.missing > live.missing:
                self._count_lost(live, told.missing - live.missing)
            live.missing = told.missing

    def _settle(self, live: LiveTurn, told: Written) -> None:
        """What becomes of a turn of which the log has taken nothing."""
        if told.state == "gone":
            live.forgotten()
        elif told.state == "ended":  # the reply to an earlier try was lost on its way
            live.wrote(live.next)
        else:
            log.warning("turn was taken over by another router turn=%s", live.key[1])
            self.forget(live)
            live.lose()
            return
        self._go_on(live)

    def _go_on(self, live: LiveTurn) -> None:
        """Write what there is still of a turn; one that is written to its end is forgotten."""
        if live.dirty:
            self._dirty[live] = None
        elif live.ended:
            self.forget(live)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._log.limits.lease_s / _RENEWALS)
            quiet = [live for live in self._turns.values() if live not in self._dirty]
            if quiet and self._available():
                await self._write(quiet)
                if self._dirty:
                    self._soon()

    def _note(self, live: LiveTurn) -> None:
        self._dirty[live] = None
        if self._waiting_since is None:
            self._be_patient()
        if 0 < live.tells <= _FIRST_TELLS:
            self._at_once()
        elif self._timer is None:
            self._soon()

    def _soon(self) -> None:
        if self._timer is None and not self._due.is_set():
            now = self._loop.time()
            self._fire_at(max(now + _LINGER_S, self._flushed_at + _APART_S), now)

    def _at_once(self) -> None:
        """Write now, or where something was written just now, soon after: turns that begin together
        are many."""
        if self._due.is_set():
            return
        now, soon = self._loop.time(), self._flushed_at + _LINGER_S
        if soon <= now:
            self._fire()
        elif self._timer is None or self._fires_at > soon:
            self._fire_at(soon, now)

    def _fire_at(self, when: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = when
        self._timer = self._loop.call_later(when - now, self._fire)

    def _fire(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due.set()

    def _in_time(self) -> None:
        """The log has what there was: what has come since has all its time."""
        self._pace.late = False
        self._waiting_since = None
        if self._dirty:
            self._be_patient()

    def _be_patient(self) -> None:
        """From now on the log is waited for. The timer runs on as long as events come, and is not
        set anew for each flush."""
        self._waiting_since = self._loop.time()
        if self._patience is None:
            self._patience = self._loop.call_later(_LATE_S, self._check_patience)

    def _check_patience(self) -> None:
        self._patience = None
        if self._waiting_since is None:
            return
        left_s = self._waiting_since + _LATE_S - self._loop.time()
        if left_s > 0:
            self._patience = self._loop.call_later(left_s, self._check_patience)
        else:
            self._give_way()

    def _give_way(self) -> None:
        """The log is late: nobody waits for it."""
        if not self._pace.late:
            self._pace.late = True
            for live in self._turns.values():
                live.wake()

    def _drop_left(self) -> None:
        """Of the turns that are over, keep so many for the store's return."""
        over = [live for live in self._dirty if live.ended]
        for live in over[: max(0, len(over) - _MOST_LEFT)]:
            self._count_lost(live, live.next - live.written)
            self.forget(live)

    def _count_lost(self, live: LiveTurn, count: int) -> None:
        self.lost_events += count
        log.warning("events were not kept turn=%s count=%d", live.key[1], count)
