"""The binding of a session, and its turn lock: what the store says, which holds for every router.

While the store is away, what this router remembers stands in: better two turns at once, or a
session in two places, than none.
"""

import asyncio
import secrets
import time
from contextlib import suppress

from sessile.errors import SessionBusy, SessionExpired, StoreUnavailable
from sessile.router.decide import Decision
from sessile.router.policy import Ask
from sessile.sessions.binding import Standing, Standings
from sessile.sessions.record import Binding, SessionKey
from sessile.sessions.store import Claim, Store
from sessile.settings import SessionSettings
from sessile.turn import Turn


class Bindings:
    """Claims, moves and renews them; `standings` is what is remembered. Made by `Placement`, one a
    router."""

    def __init__(self, store: Store, standings: Standings, settings: SessionSettings) -> None:
        self._store = store
        self._standings = standings
        self._settings = settings

    async def lock(self, turn: Turn) -> None:
        """Take the session's turn lock. Where another turn holds it: wait for that, be refused, or
        go on as a session of its own, as the request declares. Raises `SessionBusy`."""
        when = turn.request.hints.when_busy
        wait_s = self._settings.lock_wait_s if when in (None, "queue") else 0.0
        try:
            turn.fence = await self._acquire(turn, turn.key, wait_s)
        except SessionBusy:
            if when != "fork":
                raise
            turn.fork("ses_" + secrets.token_hex(12))
            turn.fence = await self._acquire(turn, turn.key, wait_s)

    async def outlast(self, turn: Turn, left: str) -> None:
        """Wait for the turn that runs under the variant that the session has left."""
        key = SessionKey(turn.key.tenant, left, turn.session)
        if await self._acquire(turn, key, self._settings.lock_wait_s) is not None:
            with suppress(StoreUnavailable):
                await self._store.release(key, turn.id)

    async def _acquire(self, turn: Turn, key: SessionKey, wait_s: float) -> int | None:
        """The lock's number; None while the store is away."""
        began = time.monotonic() - (turn.receipt.queue_s or 0.0)
        pause_s = 0.01
        while True:
            try:
                fence = await self._store.acquire(key, turn.id, self._settings.lock_ttl_s)
            except StoreUnavailable:
                return None  # better two turns at once than none
            turn.receipt.queue_s = time.monotonic() - began
            if fence is not None:
                return fence
            if turn.receipt.queue_s > wait_s or not wait_s:
                raise SessionBusy(
                    f"another turn of session {turn.session!r} is running", retry_after_s=1.0
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.25)

    def is_confirmed(self, standing: Standing) -> bool:
        """Whether the store has said so a moment ago, and has been there since."""
        at, store = standing.confirmed_at, self._store
        if at is None or not store.available or at < store.available_since:
            return False
        return time.monotonic() - at < self._settings.confirm_s

    async def claim(self, turn: Turn, proposal: Decision) -> Claim:
        """Ask the store with a proposal: one round trip tells the binding in force, or makes it.

        Raises `SessionExpired` and `StoreUnavailable`.
        """
        claim = await self._store.claim(turn.key, proposal.replica, proposal.incarnation)
        if claim.state == "closed":
            self._standings.drop(turn.key)
            raise SessionExpired(f"session {turn.session!r} is closed; open a new one")
        turn.binding = claim.binding
        self._standings.put(
            turn.key,
            Standing(claim.binding, time.monotonic(), claim.context_tokens, self._ratio(turn)),
        )
        return claim

    def assume(self, turn: Turn, ask: Ask, decision: Decision) -> None:
        """The store is away: the session is where this router sends it."""
        epoch = ask.bound.epoch if ask.bound is not None else 0
        turn.binding = Binding(decision.replica, decision.incarnation, epoch)
        self._standings.put(
            turn.key, Standing(turn.binding, None, ask.context_tokens, self._ratio(turn))
        )

    async def rebind(self, turn: Turn, decision: Decision) -> Binding:
        """Move the turn's binding, unless another router has moved it first. Returns the one in
        force."""
        seen = turn.binding
        assert seen is not None
        confirmed: float | None = time.monotonic()
        try:
            binding = await self._store.rebind(
                turn.key, seen, decision.replica, decision.incarnation
            )
        except StoreUnavailable:
            binding = Binding(decision.replica, decision.incarnation, seen.epoch)
            confirmed = None
            turn.receipt.store = "degraded"
        turn.binding = binding
        self._standings.put(turn.key, Standing(binding, confirmed, None, self._ratio(turn)))
        return binding

    async def move(self, key: SessionKey, seen: Binding, decision: Decision) -> Binding | None:
        """Bind a session that pauses to another replica. None: a turn of it, or another router, was
        first, or the store is away."""
        try:
            binding = await self._store.rebind(key, seen, decision.replica, decision.incarnation)
        except StoreUnavailable:
            return None
        standing = self._standings.get(key)
        won = (binding.replica, binding.incarnation) == (decision.replica, decision.incarnation)
        if standing is None or standing.binding != seen:
            return None  # a turn has begun, and has followed the binding in force
        tokens, ratio = standing.context_tokens, standing.tokens_per_byte
        self._standings.put(key, Standing(binding, time.monotonic(), tokens, ratio, moved=won))
        return binding if won else None

    async def keep(self, turn: Turn) -> None:
        """Renew the binding of a turn that runs."""
        if turn.binding is not None:
            with suppress(StoreUnavailable):  # it may be back for the next round
                await self._store.refresh(turn.key, turn.binding)

    def _ratio(self, turn: Turn) -> float | None:
        standing = self._standings.get(turn.key)
        return standing.tokens_per_byte if standing is not None else None
