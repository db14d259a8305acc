"""A turn runs once: a repeated idempotency key is given the first one's answer.

A key is held by a lease that its router renews while the turn runs. One whose lease has run out
belongs to nobody, and the next request with it runs, unless the turn can be followed elsewhere.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sessile.errors import KeyReused, SessionBusy, StoreUnavailable
from sessile.sessions.store import HeldKey, OnceKey, Running, Store, StoredResult
from sessile.turn import Turn

log = logging.getLogger("sessile.flow")

_RENEWALS = 4  # in the time of a lease
_MOST_LEFT = 256  # turns that have ended while the store was away
_APPEAR_S = 1.0  # that the events of a turn that has ended may come to the log after its key


async def _nowhere(turn: str) -> bool:
    return False


class OnceKeys:
    """The keys that turns of this router run under. One a router, made by `Flow`; `run` is its
    task."""

    def __init__(self, store: Store, wait_s: float) -> None:
        self._store = store
        self._wait_s = wait_s
        self._lease_s = store.events.limits.lease_s
        self._there_since = 0.0  # when the store was first seen
        self._held: set[HeldKey] = set()
        self._left: dict[HeldKey, StoredResult | None] = {}  # how turns ended, not told yet

    async def run(self) -> None:
        """Renew the leases until cancelled, all in one call, and tell what was left to tell."""
        self._there_since = self._store.available_since
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS)
            if not self._store.available:
                continue
            with suppress(StoreUnavailable):
                if self._held:
                    await self._store.renew_once(list(self._held))
                for held, result in list(self._left.items()):
                    await self._store.end_once(held, result)
                    del self._left[held]

    async def begin(
        self, tenant: str, once: OnceKey, turn: str,
        is_told: Callable[[str], Awaitable[bool]] = _nowhere,
    ) -> StoredResult | Running | None:  # fmt: skip
        """Take the key for `turn`, or find the turn whose answer is there, or which can be followed
        as `is_told` says.

        Waits for one that runs and cannot; raises `SessionBusy` if that takes too long, `KeyReused`
        where something else was asked under the key, and `StoreUnavailable`.
        """
        began = time.monotonic()
        pause_s = 0.02
        while True:
            found = await self._store.begin_once(tenant, once, turn)
            if found is None:
                self._held.add(HeldKey(tenant, once.key, turn))
                return None
            is_there = isinstance(found, StoredResult) and found.body != b""
            is_there = is_there or await is_told(found.turn)
            waited_s = time.monotonic() - began
            if not is_there and self._is_gone(found, waited_s):
                await self._store.end_once(HeldKey(tenant, once.key, found.turn), None)
                continue
            _check_same(once, found)
            if is_there:
                return found
            if waited_s > self._wait_s:
                raise SessionBusy(
                    f"turn {found.turn} with the same idempotency key is still running",
                    retry_after_s=1.0,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.25)

    async def end(self, tenant: str, once: OnceKey, turn: str, result: StoredResult | None) -> None:
        """Keep the turn's answer under its key; None frees the key for another try. While the store
        is away that is left for later."""
        held = HeldKey(tenant, once.key, turn)
        self._held.discard(held)
        try:
            await self._store.end_once(held, result)
        except StoreUnavailable as error:
            if len(self._left) < _MOST_LEFT:
                self._left[held] = result
            else:
                log.warning("idempotency key was not settled turn=%s why=%r", turn, error.message)

    def leave(self, tenant: str, once: OnceKey, turn: str) -> None:
        """Another router brings the turn to its end."""
        self._held.discard(HeldKey(tenant, once.key, turn))

    def _is_gone(self, found: Running | StoredResult, waited_s: float) -> bool:
        """Whether a turn that cannot be followed now never will be. While the store was away nobody
        could renew: when it is back, each router has the time of a lease for that."""
        if isinstance(found, StoredResult):
            return waited_s > _APPEAR_S
        back_at = self._store.available_since
        was_away = back_at not in (0.0, self._there_since)
        is_soon = was_away and time.monotonic() - back_at < self._lease_s
        return not found.leased and not is_soon


def _check_same(once: OnceKey, found: Running | StoredResult) -> None:
    """Raise `KeyReused` unless the same was asked under the key before, or that is not known."""
    if once.asked and found.asked and once.asked != found.asked:
        raise KeyReused(
            f"the idempotency key {once.key!r} was used for another request; a new request "
            "takes a new key", param="idempotency-key",
        )  # fmt: skip


async def begin_once(keys: OnceKeys, turn: Turn) -> bool:
    """Whether the turn's key has been answered before; the turn then gives that answer. Without
    the store there is no memory of earlier tries: the turn runs."""
    request = turn.request
    assert request.idempotency_key is not None
    try:
        found = await keys.begin(request.tenant, request.idempotency_key, turn.id)
    except StoreUnavailable:
        request.idempotency_key = None
        return False
    if isinstance(found, StoredResult):
        turn.replay(found)
    return found is not None


async def end_once(keys: OnceKeys, turn: Turn) -> None:
    """Keep a good answer under the key; after any other, free the key for another try."""
    once = turn.request.idempotency_key
    assert once is not None
    result = None
    if turn.receipt.outcome == "ok" and (body := turn.kept()):
        kind = turn.content_type.decode("latin-1")
        result = StoredResult(turn.id, turn.status, kind, body, once.asked)
    await keys.end(turn.request.tenant, once, turn.id, result)
