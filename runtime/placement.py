"""Steps 1 to 3 of a turn: which session, which binding holds for every router, which replica.

The pure rules are `sessions.identity` and `router.decide`; here they meet the store, and what this
router remembers stands in while the store is away.
"""

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from random import Random

import msgspec

from sessile.errors import NotSupported, SessionBusy, SessionExpired, StoreUnavailable
from sessile.router.decide import Decision, decide
from sessile.router.policy import Ask, Candidate, Policy
from sessile.router.pool import Pool
from sessile.sessions.binding import Standing, Standings
from sessile.sessions.record import Binding, SessionKey
from sessile.sessions.store import Store
from sessile.settings import RouterSettings, SessionSettings
from sessile.turn import Turn, TurnRequest

_MOST_LINEAGES = 50_000


class Placement:
    """Finds every turn its session and its replica. Made by `Flow`, one a router."""

    def __init__(
        self, *, pool: Pool, store: Store, standings: Standings, policy: Policy,
        router: RouterSettings, sessions: SessionSettings, random: Random,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._store = store
        self._standings = standings
        self._policy = policy
        self._gate_slack = router.gate_slack
        self._settings = sessions
        self._random = random
        self._lineages: OrderedDict[tuple[str, str, str], str] = OrderedDict()

    async def session_of(self, request: TurnRequest, model: str) -> str:
        """The session's id: named, or continued by its lineage, or new."""
        claims = request.claims
        if claims.explicit is not None:
            return claims.explicit
        if claims.lineage is not None and claims.lineage.known:
            for step in claims.lineage.known:
                if found := self._lineages.get((request.tenant, model, step)):
                    return found
            try:
                known = claims.lineage.known
                if found := await self._store.find_lineage(request.tenant, model, known):
                    return found
            except StoreUnavailable:
                pass  # a conversation that only another router has seen begins anew here
        return f"ses_{self._random.getrandbits(96):024x}"

    def remember_lineage(self, turn: Turn, step: str) -> None:
        """A later request whose messages lead to `step` continues the turn's session."""
        self._lineages[(turn.key.tenant, turn.key.model, step)] = turn.session
        if len(self._lineages) > _MOST_LINEAGES:
            self._lineages.popitem(last=False)

    def remember_held(self, turn: Turn) -> None:
        """The turn's replica now holds its prompt and reply."""
        standing = self._standings.get(turn.key)
        receipt = turn.receipt
        if standing is not None and receipt.prompt_tokens is not None:
            standing.context_tokens = receipt.prompt_tokens + (receipt.completion_tokens or 0)

    async def place(self, turn: Turn) -> Decision:
        """Decide, with the binding that holds for every router; leaves it in `turn.binding`.

        Costs a round trip to the store unless a binding was confirmed a moment ago. Raises
        `NoReplica`, `NotSupported`, `SessionBusy` or `SessionExpired`.
        """
        request = turn.request
        if request.stateful:
            await self._lock(turn)
        candidates = self._candidates(turn)
        standing = self._standings.get(turn.key)
        ask = Ask(
            session=turn.session,
            bound=standing.binding if standing is not None else None,
            context_tokens=standing.context_tokens if standing is not None else None,
            group=request.claims.group,
            near=self._near(turn) if standing is None else None,
        )
        if not self._policy.binds or not _can_continue(request):
            return self._decide(ask, candidates)
        if standing is not None and self._is_confirmed(standing):
            turn.binding = standing.binding
            decision = self._decide(ask, candidates)
        else:
            decision = await self._claim(turn, ask, candidates)
        if decision.binding == "rebind":
            decision = await self._rebind(turn, decision, candidates)
        return decision

    async def place_again(self, turn: Turn, failed: str) -> Decision | None:
        """A replica other than `failed`, the session re-bound to it; None if there is none."""
        candidates = self._candidates(turn)
        if all(c.id == failed for c in candidates):
            return None
        ask = Ask(session=turn.session, bound=turn.binding, group=turn.request.claims.group)
        decision = self._decide(ask, candidates, (failed,))
        if decision.binding == "rebind":
            decision = await self._rebind(turn, decision, candidates)
        return decision

    async def keep(self, turn: Turn) -> None:
        """Renew the binding of a turn that runs."""
        if turn.binding is not None:
            with suppress(StoreUnavailable):  # it may be back for the next round
                await self._store.refresh(turn.key, turn.binding)

    async def _claim(self, turn: Turn, ask: Ask, candidates: list[Candidate]) -> Decision:
        """Ask the store with a proposal: one round trip tells the binding in force, or makes it."""
        proposal = self._decide(ask, candidates)
        try:
            claim = await self._store.claim(turn.key, proposal.replica, proposal.incarnation)
        except StoreUnavailable:
            return self._without_store(turn, ask, candidates)
        if claim.state == "closed":
            self._standings.drop(turn.key)
            raise SessionExpired(f"session {turn.session!r} is closed; open a new one")
        turn.binding = claim.binding
        held = claim.context_tokens
        self._standings.put(turn.key, Standing(claim.binding, time.monotonic(), held))
        if claim.won:
            predicted = proposal.predicted_cached_tokens if proposal.reason == "bound" else 0
            return msgspec.structs.replace(
                proposal, binding="keep", predicted_cached_tokens=predicted
            )
        return self._decide(
            msgspec.structs.replace(ask, bound=claim.binding, context_tokens=held), candidates
        )

    def _without_store(self, turn: Turn, ask: Ask, candidates: list[Candidate]) -> Decision:
        """The store is away: what this router remembers, else what every router would choose."""
        turn.receipt.store = "degraded"
        decision = self._decide(msgspec.structs.replace(ask, shared=False), candidates)
        epoch = ask.bound.epoch if ask.bound is not None else 0
        turn.binding = Binding(decision.replica, decision.incarnation, epoch)
        self._standings.put(turn.key, Standing(turn.binding, None, ask.context_tokens))
        return msgspec.structs.replace(decision, binding="keep")

    async def _rebind(self, turn: Turn, decision: Decision, at: list[Candidate]) -> Decision:
        """Move the binding, unless another router has moved it first: then follow that one."""
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
        self._standings.put(turn.key, Standing(binding, confirmed, None))
        if (binding.replica, binding.incarnation) != (decision.replica, decision.incarnation):
            followed = self._decide(Ask(session=turn.session, bound=binding), at)
            if followed.binding == "keep":
                return followed
        return msgspec.structs.replace(decision, binding="keep")

    async def _lock(self, turn: Turn) -> None:
        """Take the session's turn lock, waiting for the turn that holds it."""
        began = time.monotonic()
        pause_s = 0.01
        while True:
            try:
                turn.fence = await self._store.acquire(turn.key, turn.id, self._settings.lock_ttl_s)
            except StoreUnavailable:
                return  # better two turns at once than none
            turn.receipt.queue_s = time.monotonic() - began
            if turn.fence is not None:
                return
            if turn.receipt.queue_s > self._settings.lock_wait_s:
                raise SessionBusy(
                    f"another turn of session {turn.session!r} is running", retry_after_s=1.0
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.25)

    def _decide(
        self, ask: Ask, candidates: list[Candidate], failed: tuple[str, ...] = ()
    ) -> Decision:
        return decide(ask, candidates, self._policy, gate_slack=self._gate_slack, failed=failed)

    def _candidates(self, turn: Turn) -> list[Candidate]:
        candidates = self._pool.candidates(turn.key.model)
        if turn.request.path == "/v1/embeddings" and candidates:
            able = [c for c in candidates if self._pool.get(c.id).engine.embeddings]
            if not able:
                raise NotSupported(f"the engine that serves {turn.key.model!r} makes no embeddings")
            return able
        return candidates

    def _near(self, turn: Turn) -> str | None:
        """Where the parent is, as far as this router knows: a child begins with its prefix."""
        parent = turn.request.claims.parent
        if parent is None:
            return None
        standing = self._standings.get(SessionKey(turn.key.tenant, turn.key.model, parent))
        return standing.binding.replica if standing is not None else None

    def _is_confirmed(self, standing: Standing) -> bool:
        at, store = standing.confirmed_at, self._store
        if at is None or not store.available or at < store.available_since:
            return False
        return time.monotonic() - at < self._settings.confirm_s


def _can_continue(request: TurnRequest) -> bool:
    """Whether a later request can belong to the same session, so that binding it pays."""
    claims = request.claims
    return request.stateful or claims.explicit is not None or claims.lineage is not None
