"""Routers tell each other what they have under way and what became of it, so that each prices the
work of all and knows what the replicas hold.

A report holds, for each replica and incarnation, the turns running and the prefill work ahead. It
is a lease of a few seconds: the work of a router that was killed is forgotten with it. News are
what the scheduler tells (`router.peers`), once, in order, to those who are there; while a router is
alone it makes none. Whatever is lost on the way costs worse decisions, nothing else.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence

import msgspec

from sessile.errors import StoreUnavailable
from sessile.router.outlook import Outlook
from sessile.router.peers import News
from sessile.router.pool import Pool
from sessile.router.scheduler import Scheduler
from sessile.sessions.binding import Standings
from sessile.sessions.record import SessionKey
from sessile.sessions.store import Store, Told

log = logging.getLogger("sessile.exchange")

_EVERY_S = 0.2
_LIVES_S = 1.5
_MOST_AT_ONCE = 500  # news in one message
_IN_A_ROW = 50  # news that are taken in before turns are served again


class Work(msgspec.Struct, frozen=True, array_like=True):
    """One router's work at one replica: turns as they are booked there, and open answers."""

    running: int
    pending_work: float
    streams: int = 0


Report = dict[str, Work]

_encode = msgspec.msgpack.Encoder().encode
_report = msgspec.msgpack.Decoder(Report).decode
_news = msgspec.msgpack.Decoder(list[News]).decode


class Exchange:
    """One a router; `run` is a task of the flow. `scheduler` is None where news are of no use."""

    def __init__(
        self, pool: Pool, store: Store, standings: Standings, scheduler: Scheduler | None
    ) -> None:
        self._pool = pool
        self._store = store
        self._standings = standings
        self._scheduler = scheduler
        self._router = secrets.token_hex(6)
        self._others: dict[str, tuple[Report, float]] = {}
        self._seen = ""

    @property
    def routers(self) -> int:
        """How many there are, this one too."""
        return 1 + len(self._others)

    async def run(self) -> None:
        """Exchange until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(_EVERY_S)

    async def once(self) -> None:
        """Tell, and be told. With the store away, what was told holds until its lease ends."""
        if self._store.available:  # else news wait here, as many as the scheduler keeps
            report = {
                _name(r.outlook): Work(
                    len(r.outlook.runs), r.outlook.pending_work, r.upstream.streams
                )
                for r in self._pool
            }
            try:
                told = await self._store.exchange(
                    self._router, _encode(report), _LIVES_S, news=self._batch(), seen=self._seen
                )
            except StoreUnavailable:
                log.debug("news were lost on their way")
            else:
                await self._take(told)
        self._forget(time.monotonic())
        self._add_up()

    def _outlooks(self) -> list[Outlook]:
        return [replica.outlook for replica in self._pool]

    def _batch(self) -> bytes:
        """The oldest news that are to be told, b"" for none."""
        if self._scheduler is None or not self._scheduler.live.news:
            return b""
        waiting = self._scheduler.live.news
        batch = [waiting.popleft() for _ in range(min(len(waiting), _MOST_AT_ONCE))]
        try:
            return _encode(batch)
        except UnicodeEncodeError:  # a client's id that no wire carries: its session goes untold
            return _encode([told for told in batch if _is_text(told.session)])

    async def _take(self, told: Told) -> None:
        self._seen = told.seen
        now = time.monotonic()
        for router, data in told.reports.items():
            try:
                self._others[router] = (_report(data), now)
            except msgspec.DecodeError:
                log.warning("report of another router was not understood router=%s", router)
        for router, data in told.news:
            try:
                await self._hear(router, _news(data))
            except (msgspec.DecodeError, ValueError):
                log.warning("news of another router were not understood router=%s", router)

    async def _hear(self, router: str, news: Sequence[News]) -> None:
        if self._scheduler is None:
            return
        for start in range(0, len(news), _IN_A_ROW):
            some = news[start : start + _IN_A_ROW]
            self._scheduler.hear(some, self._outlooks(), time.monotonic(), router)
            for told in some:
                key = SessionKey.read(told.session)
                if told.state == "closed":
                    self._standings.drop(key)
                elif told.replica:
                    lasts = told.state == "pauses"
                    self._standings.hear(key, told.replica, told.incarnation, lasts=lasts)
                    if key.model in self._pool.adapters:
                        self._pool.used(key.model, told.replica)
            await asyncio.sleep(0)

    def _forget(self, now: float) -> None:
        """Routers whose lease has ended. Alone, this one has nobody to tell; whether it is, it does
        not know while the store is away, and a moment after."""
        for router in [r for r, (_, at) in self._others.items() if now - at > _LIVES_S]:
            del self._others[router]
            if self._scheduler is not None:
                self._scheduler.live.lose(router)
            log.info("router is gone, its work is forgotten router=%s", router)
        if self._scheduler is None:
            return
        if self._others:
            self._scheduler.live.peers = True
        elif self._store.available and now - self._store.available_since > _LIVES_S:
            self._scheduler.live.peers = False
            self._scheduler.live.news.clear()

    def _add_up(self) -> None:
        reports = [report for report, _ in self._others.values()]
        for replica in self._pool:
            outlook = replica.outlook
            name = _name(outlook)
            works = [report[name] for report in reports if name in report]
            outlook.foreign_running = sum(work.running for work in works)
            outlook.foreign_work = sum(work.pending_work for work in works)
            replica.foreign_streams = sum(work.streams for work in works)


def _name(outlook: Outlook) -> str:
    return f"{outlook.id}@{outlook.incarnation}"


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
