"""Routers tell each other what they have under way, so that each prices the work of all.

A report holds, for each replica and incarnation, the turns running, the prefill work ahead and the
live tokens. It lives in the store for a few seconds: the work of a router that was killed is
forgotten with it.
"""

import asyncio
import logging
import secrets

import msgspec

from sessile.errors import StoreUnavailable
from sessile.router.outlook import Outlook
from sessile.router.pool import Pool
from sessile.sessions.store import Store

log = logging.getLogger("sessile.exchange")

_EVERY_S = 0.2
_LIVES_S = 2.0


class Work(msgspec.Struct, frozen=True, array_like=True):
    """One router's work at one replica."""

    running: int
    pending_work: float
    live_tokens: int


Report = dict[str, Work]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Report).decode


class Exchange:
    """One a router; `run` is a task of the flow."""

    def __init__(self, pool: Pool, store: Store) -> None:
        self._pool = pool
        self._store = store
        self._router = secrets.token_hex(6)

    async def run(self) -> None:
        """Exchange reports until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(_EVERY_S)

    async def once(self) -> None:
        """Tell, and be told. With the store away, nobody else's work is known."""
        outlooks = [replica.outlook for replica in self._pool]
        report = {_name(o): _work(o) for o in outlooks}
        try:
            told = await self._store.exchange(self._router, _encode(report), _LIVES_S)
        except StoreUnavailable:
            told = []
        others: list[Report] = []
        for data in told:
            try:
                others.append(_decode(data))
            except msgspec.DecodeError:
                log.warning("report of another router was not understood")
        for outlook in outlooks:
            name = _name(outlook)
            works = [report[name] for report in others if name in report]
            outlook.foreign_running = sum(work.running for work in works)
            outlook.foreign_work = sum(work.pending_work for work in works)
            outlook.foreign_tokens = sum(work.live_tokens for work in works)


def _name(outlook: Outlook) -> str:
    return f"{outlook.id}@{outlook.incarnation}"


def _work(outlook: Outlook) -> Work:
    return Work(len(outlook.runs), outlook.pending_work, outlook.holdings.live_tokens)
