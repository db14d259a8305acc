"""Moves sessions while they pause, so that their next turn finds its cache where it goes.

A replica that drains, died, restarted or is overloaded loses its sessions at their next turn, and
with them all that they have cached. Before that turn comes, each is bound elsewhere, those that are
expected back first, and its last prompt is run there with one token of reply. That gives way to
turns: it is begun only where nobody waits, one at a time a replica. What is decided is
`router.scheduler`'s; a turn that has begun meanwhile wins.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from heapq import nlargest
from random import Random

import msgspec

from sessile.errors import ReplicaError
from sessile.placement import Placement
from sessile.prewarm import Kept, carry, prewarm
from sessile.router.decide import Decision
from sessile.router.engine import Usage
from sessile.router.outlook import Outlook
from sessile.router.pool import Pool
from sessile.router.replica import Replica
from sessile.sessions.record import SessionKey
from sessile.telemetry import Telemetry
from sessile.turn import Turn

log = logging.getLogger("sessile.mover")

_MOST_BYTES = 64 * 2**20
_SOONEST = 16  # how many of a replica's sessions are looked at at once
_BUSY_S = 0.05  # how soon to look again while some are still to be moved
_IDLE_S = 1.0
_LONG_WAIT_S = 1.0  # a replica where turns wait longer is overloaded
_SOON_RATE = 0.5  # returns a second; an overload of now says nothing of who comes later
_ABORT_TIMEOUT_S = 2.0
_PATHS = ("/v1/chat/completions", "/v1/completions")


class Mover:
    """One a router, made by `Flow`; `run` is a task of the flow. Keeps at most 64 MiB of prompts,
    the newest."""

    def __init__(
        self, *, pool: Pool, placement: Placement, telemetry: Telemetry,
        salt: Callable[[str], str | None], random: Random,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._placement = placement
        self._telemetry = telemetry
        self._salt = salt
        self._random = random
        self._kept: OrderedDict[SessionKey, Kept] = OrderedDict()
        # The same, by replica and incarnation.
        self._at: dict[tuple[str, str], dict[SessionKey, Kept]] = {}
        self._bytes = 0
        self._moving: dict[SessionKey, asyncio.Task[None]] = {}
        self._carrying: dict[SessionKey, asyncio.Task[None]] = {}
        self._targets: set[str] = set()  # where something is prewarmed now
        self._wake = asyncio.Event()

    # -- what is told

    def keep(self, turn: Turn) -> None:
        """The turn is over and its session pauses: keep what it takes to prewarm it elsewhere."""
        request, ask, binding = turn.request, turn.ask, turn.binding
        if ask is None or binding is None or request.path not in _PATHS:
            return
        tokens = turn.receipt.prompt_tokens or ask.prompt_tokens
        size = len(request.body) or turn.prompt_size
        body = request.body or request.document
        self._drop(turn.key)
        self._add(Kept(turn.key, ask, binding, tokens, request.path, body, size))
        self._bytes += size
        while self._bytes > _MOST_BYTES:
            self._drop(next(iter(self._kept)))
        if not self._stands(binding.replica, binding.incarnation):
            self._wake.set()

    def returned(self, key: SessionKey) -> None:
        """A turn of the session has begun. What is being prewarmed goes on: the turn joins it."""
        if self._kept:
            self._drop(key)

    def is_moving(self, key: SessionKey) -> bool:
        """Whether the session is being moved now."""
        return key in self._moving

    async def overtaken(self, key: SessionKey) -> None:
        """The session's turn is to be sent: nothing is prewarmed for it any more. What is being
        carried is waited for: the turn would wait for a slot there just as long."""
        carrying = self._carrying.get(key)
        if carrying is not None:
            await asyncio.wait((carrying,))
        self._stop(key)

    def _stop(self, key: SessionKey) -> None:
        task = self._moving.get(key)
        if task is not None:
            task.cancel()

    def close_session(self, tenant: str, session: str) -> None:
        """The session is over."""
        for model in self._pool.names():
            self.forget(SessionKey(tenant, model, session))

    def left(self, replica_id: str) -> int:
        """Sessions that pause at the replica, or whose memory is being carried from any."""
        kept = sum(len(there) for (home, _), there in self._at.items() if home == replica_id)
        return kept + len(self._carrying)

    def forget(self, key: SessionKey) -> None:
        """The session goes on under another key."""
        self._drop(key)
        self._stop(key)

    def look(self) -> None:
        """A replica has come or gone, or drains."""
        self._wake.set()

    async def run(self) -> None:
        """Move what is to be moved, until cancelled."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_BUSY_S if self._begin() else _IDLE_S):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            moving = list(self._moving.values())
            for task in moving:
                task.cancel()
            await asyncio.gather(*moving, return_exceptions=True)

    # -- what is to be moved

    def _begin(self) -> bool:
        """Begin the moves that can be begun now; whether to look again soon, for a free replica.
        The end of a move is a reason of its own."""
        free = {r.id for r in self._pool if r.state == "ready" and self._is_free(r.outlook)}
        waits = False
        for home in list(self._at):
            stands = self._stands(*home)
            if stands and not self._is_crowded(home[0]):
                continue
            if not free or not self._is_ripe(*home):
                waits = waits or not stands
                continue
            for kept in self._soonest(self._at[home], _SOON_RATE if stands else 0.0):
                decision = self._placement.decider.elsewhere(kept.ask(), free)
                if decision is not None:
                    free.discard(decision.replica)
                    self._start(kept, decision)
        return waits

    def _start(self, kept: Kept, decision: Decision) -> None:
        self._targets.add(decision.replica)
        task = asyncio.create_task(self._move(kept, decision), name=f"move {kept.key.session}")
        self._moving[kept.key] = task
        task.add_done_callback(lambda _: self._done(kept.key, decision.replica))

    def _done(self, key: SessionKey, target: str) -> None:
        del self._moving[key]
        self._targets.discard(target)
        self._wake.set()

    def _soonest(self, kept: Mapping[SessionKey, Kept], least: float) -> list[Kept]:
        """Those that are most likely to be back in the next moment, at this rate or more; who is
        not expected at all is forgotten."""
        now, rate = time.monotonic(), self._placement.scheduler.live.return_rate
        rates = []
        for each in list(kept.values()):
            expected = rate(each.key.text, now)
            if expected is None:
                self._drop(each.key)
            elif expected >= least and each.key not in self._moving:
                rates.append((expected, each))
        return [each for _, each in nlargest(_SOONEST, rates, key=lambda pair: pair[0])]

    def _stands(self, replica_id: str, incarnation: str) -> bool:
        replica = self._pool.find(replica_id)
        return (
            replica is not None and replica.state == "ready" and replica.incarnation == incarnation
        )

    def _is_ripe(self, replica_id: str, incarnation: str) -> bool:
        """Not while its memory could be carried, but for a slot that is to come free: to compute
        it anew would take far longer."""
        replica = self._pool.find(replica_id)
        if replica is None or replica.spec.folder is None or replica.incarnation != incarnation:
            return True
        slots = replica.outlook.slots
        return replica.state == "down" or slots is None or replica.in_flight < slots

    def _is_crowded(self, replica_id: str) -> bool:
        outlook = self._pool.get(replica_id).outlook
        return outlook.queued > 0 or outlook.wait_s(time.monotonic()) > _LONG_WAIT_S

    def _is_free(self, outlook: Outlook) -> bool:
        """Nothing waits there, nor would wait for a prefill."""
        if outlook.id in self._targets or outlook.queued or outlook.pending_work:
            return False
        return outlook.slots is None or outlook.in_flight < outlook.slots

    # -- moving

    async def _move(self, kept: Kept, decision: Decision) -> None:
        """Bind the session elsewhere, then prewarm it there."""
        before = kept.binding
        replica, old = self._pool.find(decision.replica), self._pool.find(before.replica)
        if old is not None and old.incarnation != before.incarnation:
            old = None  # it holds nothing of the session
        binding = await self._placement.bindings.move(kept.key, before, decision)
        if binding is None or replica is None:
            self._drop(kept.key)
            return
        if self._kept.get(kept.key) is not kept:
            return  # its turn has begun while the store was asked
        self._forget(kept)
        kept.binding = binding
        self._add(kept)
        outcome = "failed"
        usage = Usage()
        turn = f"warm_{self._random.getrandbits(96):024x}"
        ask = msgspec.structs.replace(kept.ask(), turn=turn)
        scheduler = self._placement.scheduler
        scheduler.move(ask, decision, self._pool.outlooks(ask.model), time.monotonic())
        replica.in_flight += 1
        try:
            if old is not None:
                await self._carry(kept, old, replica, f"{turn}.kv")
            usage = await prewarm(kept, replica, turn, self._salt(kept.key.tenant))
            outcome = "prewarmed"
        except ReplicaError as error:
            log.info("session was not prewarmed session=%s replica=%s why=%r", kept.key.session,
                     replica.id, error.message)  # fmt: skip
        except asyncio.CancelledError:
            outcome = "overtaken"
            raise
        finally:
            replica.in_flight -= 1
            scheduler.moved(
                turn, time.monotonic(), prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
            )  # fmt: skip
            self._placement.shared.lead(turn, done=outcome == "prewarmed")
            self._telemetry.moves[decision.reason, outcome] += 1
            log.info(
                "session moved session=%s replica=%s reason=%s outcome=%s prompt_tokens=%s "
                "cached_tokens=%s", kept.key.session, replica.id, decision.reason, outcome,
                usage.prompt_tokens, usage.cached_tokens,
            )  # fmt: skip
            call = replica.engine.abort_call(turn) if outcome == "overtaken" else None
            if call is not None and replica.state != "down":
                with suppress(ReplicaError):
                    await replica.upstream.call(call, _ABORT_TIMEOUT_S)

    async def _carry(self, kept: Kept, old: Replica, new: Replica, file: str) -> None:
        work = carry(kept.path, kept.document(), old, new, file)
        self._carrying[kept.key] = carrying = asyncio.create_task(work)
        try:
            await carrying
        finally:
            del self._carrying[kept.key]

    # -- what is kept

    def _add(self, kept: Kept) -> None:
        self._kept[kept.key] = kept
        self._at.setdefault(kept.home, {})[kept.key] = kept

    def _drop(self, key: SessionKey) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.size
            self._forget(kept)

    def _forget(self, kept: Kept) -> None:
        """It is not at its replica any more."""
        there = self._at[kept.home]
        del there[kept.key]
        if not there:
            del self._at[kept.home]
