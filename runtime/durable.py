"""Turns that outlive their client and their router: their events are logged, they may run without
anybody who listens, and those of a router that is gone are taken over.

Decided here: when a turn is taken over, and what is left to others when this router stops. How a
turn is run, and what becomes of one that was taken over, is its protocol's business.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from sessile.errors import StoreUnavailable
from sessile.event_feed import EventFeed
from sessile.event_writer import EventWriter
from sessile.live_turn import LiveTurn
from sessile.sessions.store import Store
from sessile.sessions.stream_log import Steered

log = logging.getLogger("sessile.events")

_SWEEPS = 2  # in the time of a lease
_MOST_TAKEN = 16  # in one sweep; the next one takes more


class Orphan(msgspec.Struct, frozen=True):
    """A turn that was taken over: how it was accepted, what its clients were told, and whether it
    is to be cancelled. Its next event is told to `live`."""

    tenant: str
    turn: str
    record: bytes
    told: list[bytes]
    cancel: bool
    live: LiveTurn


class Durable:
    """One a router. `resume` brings a turn that was taken over to its end; it never raises. None is
    taken before this router is `able` to run one."""

    def __init__(
        self, store: Store, resume: Callable[[Orphan], Coroutine[Any, Any, None]],
        able: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._store = store
        self._log = store.events
        self._resume = resume
        self._able = able
        self._runs: dict[asyncio.Task[Any], LiveTurn] = {}
        self._beside: list[asyncio.Task[None]] = []
        self.writer = EventWriter(self._log, lambda: store.available)
        self.feed = EventFeed(self._log, self.writer, self.adopt)
        self.stopping = False
        self._there_since = 0.0  # when the store was first seen
        self.taken = 0

    def open(self) -> None:
        """Start writing, and looking for orphans."""
        loop = asyncio.get_running_loop()
        self._there_since = self._store.available_since
        self._beside = [
            loop.create_task(self.writer.run(), name="write events"),
            loop.create_task(self._sweep(), name="look for orphans"),
        ]

    async def aclose(self) -> None:
        """Stop what runs without a client, write what was told, and leave the rest to others."""
        self.stopping = True
        left = dict(self._runs)
        for task in [*left, *self._beside]:
            task.cancel()
        await asyncio.gather(*left, *self._beside, return_exceptions=True)
        await self.writer.aclose()
        for live in left.values():
            if not live.ended and live.stopped is None:
                await _quietly(self._log.release(*live.key, live.fence))

    def spawn(self, live: LiveTurn, run: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a turn whether or not anybody listens; it is cancelled where the turn is."""
        task = asyncio.get_running_loop().create_task(run)
        self._runs[task] = live
        task.add_done_callback(self._over)
        live.stop = task.cancel
        return task

    async def steer(self, tenant: str, turn: str, key: str, said: bytes, most: int) -> Steered:
        """Say something into a turn that runs by itself, at whichever router, once under its key:
        whoever brings the turn to its end takes it in, `most` of them. Raises `StoreUnavailable`
        where the turn does not run here and the log is away."""
        live = self.writer.find(tenant, turn)
        if live is None or live.ended:
            return await self._log.steer(tenant, turn, key, said, most)
        if key in live.steers:
            return "known"
        if len(live.steers) >= most:
            return "full"
        live.steers[key] = said
        try:
            if not live.known:
                await self.writer.flush()
            await self._log.steer(tenant, turn, key, said, most)
        except StoreUnavailable:
            log.warning("a steer is known to its router only turn=%s", turn)
        return "ok"

    async def said_into(self, live: LiveTurn) -> dict[str, bytes]:
        """All that was said into a turn of this router, by its keys, in order."""
        if live.steered > len(live.steers):
            try:
                return {**dict(await self._log.steers(*live.key)), **live.steers}
            except StoreUnavailable:
                log.warning("what was said elsewhere into a turn is not known turn=%s", live.key[1])
        return live.steers

    async def adopt(self, tenant: str, turn: str, seen: int) -> bool:
        """Take over a turn whose lease has run out, and bring it to its end here.

        `seen` is the last number that a client of it has seen: what is told from now on goes on
        behind that, even where the log had not been given it. False: it runs elsewhere, or it
        cannot be told, since the store has only just come back and its router may be about to.
        """
        back_at = self._store.available_since
        was_away = back_at not in (0.0, self._there_since)
        if (
            self.stopping
            or not self._able()
            or (was_away and time.monotonic() - back_at < self._log.limits.lease_s)
        ):
            return False
        try:
            taken = await self._log.take(tenant, turn, self.writer.owner)
            if taken is None:
                return False
            told = await self._told(tenant, turn)
            steers = await self._log.steers(tenant, turn)
        except StoreUnavailable:
            return False
        log.info("turn was taken over turn=%s next=%d", turn, taken.next)
        self.taken += 1
        first = max(taken.next, seen + 1)
        live = self.writer.begin(tenant, turn, taken.record, fence=taken.fence, first=first)
        live.steers = dict(steers)
        orphan = Orphan(tenant, turn, taken.record, told, taken.cancel, live)
        self.spawn(live, self._resume(orphan))
        return True

    async def _told(self, tenant: str, turn: str) -> list[bytes]:
        events: list[bytes] = []
        after = -1
        while (page := await self._log.read(tenant, turn, after)) and page.events:
            events += [event for _, event in page.events]
            after = page.events[-1][0]
        return events

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._log.limits.lease_s / _SWEEPS)
            if not (self._store.available and self._able()):
                continue
            try:
                for tenant, turn in await self._log.orphans(_MOST_TAKEN):
                    if self.writer.find(tenant, turn) is None:
                        await self.adopt(tenant, turn, -1)
            except StoreUnavailable:
                log.debug("orphans were not looked for")

    def _over(self, task: "asyncio.Task[Any]") -> None:
        self._runs.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.debug("turn without a client failed why=%r", str(task.exception()))


async def _quietly(work: Awaitable[None]) -> None:
    try:
        await work
    except StoreUnavailable:
        log.debug("turn was not released")
