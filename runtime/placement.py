"""Steps 1 to 3 of a turn: which session, which binding holds for every router, which replica.

The pure rules are `sessions.identity`, `router.scheduler` and, for the policies that price nothing,
`router.decide`; here they meet the store, and what this router remembers stands in while the store
is away.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from random import Random

import msgspec

from sessile.admission import Admission
from sessile.asks import Asks
from sessile.bindings import Bindings
from sessile.decider import Decider
from sessile.errors import NoReplica, StoreUnavailable
from sessile.router.decide import Decision
from sessile.router.policy import Ask, Policy
from sessile.router.pool import Pool
from sessile.router.scheduler import Limits, Scheduler
from sessile.sessions.binding import Standings
from sessile.sessions.record import SessionKey
from sessile.sessions.store import Store
from sessile.settings import RouterSettings, SessionSettings
from sessile.shared_prefill import SharedPrefill
from sessile.turn import Turn
from sessile.turn_request import TurnRequest

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
        self._random = random
        self._lineages: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self.scheduler = Scheduler(
            Limits(fill=router.kv_fill, margin=router.margin, most_queued=router.most_queued),
            dict(router.tenant_weights),
        )
        self.bindings = Bindings(store, standings, sessions)
        self._asks = Asks(pool, standings)
        self.decider = Decider(pool, self.scheduler, policy, gate_slack=router.gate_slack)
        self._admission = Admission(self.scheduler, pool)
        self.shared = SharedPrefill(self.scheduler)

    @property
    def hears(self) -> Scheduler | None:
        """Whom news of other routers are of use to: nobody, with a policy that prices nothing."""
        return self.scheduler if self.decider.prices else None

    # -- 1: the session

    async def session_of(self, request: TurnRequest, model: str) -> tuple[str, bool]:
        """The id of a session that was not named, and whether it is known: continued by its
        lineage, or new."""
        claims = request.claims
        if claims.lineage is not None and claims.lineage.known:
            for step in claims.lineage.known:
                if found := self._lineages.get((request.tenant, model, step)):
                    return found, True
            try:
                known = claims.lineage.known
                if found := await self._store.find_lineage(request.tenant, model, known):
                    return found, True
            except StoreUnavailable:
                pass  # a conversation that only another router has seen begins anew here
        return f"ses_{self._random.getrandbits(96):024x}", False

    def remember_lineage(self, turn: Turn, step: str) -> None:
        """A later request whose messages lead to `step` continues the turn's session."""
        self._lineages[(turn.key.tenant, turn.served or turn.key.model, step)] = turn.session
        if len(self._lineages) > _MOST_LINEAGES:
            self._lineages.popitem(last=False)

    # -- 2 and 3: the binding and the replica

    async def place(self, turn: Turn) -> Decision:
        """Decide, with the binding that holds for every router; leaves it in `turn.binding`.

        Costs a round trip to the store unless a binding was confirmed a moment ago, and as long as
        it takes until a replica's memory fits the turn. Raises `NoReplica`, `NotSupported`,
        `SessionBusy`, `SessionExpired` or `Overloaded`.
        """
        request, variant = turn.request, turn.receipt.variant
        if variant is not None and not self._pool.outlooks(variant):
            self._pool.miss(request.model)
            raise NoReplica(
                f"no replica of {variant!r} is ready, the variant of {turn.receipt.model!r} that "
                "the session belongs to; `sessile swap` shows them, and --roll-back or --finish "
                "moves its sessions to the other",
                retry_after_s=2.0,
            )
        if request.stateful or request.hints.when_busy is not None:
            await self.bindings.lock(turn)
            if turn.receipt.left is not None:
                await self.bindings.outlast(turn, turn.receipt.left)
        standing = self._standings.get(turn.key)
        ask = self._asks.of(turn, standing)
        moved = standing.binding if standing is not None and standing.moved else None
        if not self._policy.binds or not request.can_continue:
            ask = msgspec.structs.replace(ask, bound=None)
            return self.decider.decide(turn, ask) or await self._admission.wait(turn)
        if standing is not None and self.bindings.is_confirmed(standing):
            turn.binding = standing.binding
            standing.moved = False
        else:
            proposal = self.decider.propose(turn, ask)
            try:
                claim = await self.bindings.claim(turn, proposal)
            except StoreUnavailable:
                return self._without_store(turn, ask)
            ask = msgspec.structs.replace(
                ask,
                bound=claim.binding,
                context_tokens=claim.context_tokens,
                claimed=proposal.reason if claim.won else None,
            )
        if moved is not None and turn.binding == moved:
            ask = msgspec.structs.replace(ask, claimed="moved")
        decision = self.decider.decide(turn, ask) or await self._admission.wait(turn)
        binding = turn.binding
        assert binding is not None
        if (binding.replica, binding.incarnation) != (decision.replica, decision.incarnation):
            return await self._rebind(turn, ask, decision)
        return decision

    async def place_again(self, turn: Turn, *failed: str) -> Decision | None:
        """A replica other than those that `failed`, the session re-bound to it; None if there is
        none."""
        if all(o.id in failed for o in self.decider.outlooks(turn)):
            return None
        standing = self._standings.get(turn.key)
        ask = msgspec.structs.replace(self._asks.of(turn, standing), bound=turn.binding)
        self.scheduler.end(turn.id, time.monotonic())
        self.shared.lead(turn.id, done=False)
        decision = self.decider.decide(turn, ask, failed)
        assert decision is not None
        if decision.binding == "rebind" and turn.binding is not None:
            decision = await self._rebind(turn, ask, decision)
        return decision

    def _without_store(self, turn: Turn, ask: Ask) -> Decision:
        """The store is away: what this router remembers, else what every router would choose."""
        turn.receipt.store = "degraded"
        decision = self.decider.decide(turn, msgspec.structs.replace(ask, shared=False))
        assert decision is not None
        self.bindings.assume(turn, ask, decision)
        return decision

    async def _rebind(self, turn: Turn, ask: Ask, decision: Decision) -> Decision:
        """Move the binding, unless another router has moved it first: then follow that one."""
        binding = await self.bindings.rebind(turn, decision)
        if (binding.replica, binding.incarnation) != (decision.replica, decision.incarnation):
            for outlook in self.decider.outlooks(turn):
                if (outlook.id, outlook.incarnation) == (binding.replica, binding.incarnation):
                    followed = msgspec.structs.replace(
                        decision, replica=outlook.id, incarnation=outlook.incarnation,
                        reason="bound", predicted_cached_tokens=None, predicted_ttft_s=None,
                    )  # fmt: skip
                    self.scheduler.book(ask, followed, (outlook,), time.monotonic())
                    return followed
        return decision

    # -- what becomes of a turn

    def first_token(self, turn: Turn) -> None:
        """The first bytes of a streamed answer have come."""
        self.scheduler.first_token(turn.id, time.monotonic())
        self.shared.lead(turn.id, done=True)

    def end(self, turn: Turn) -> bool:
        """The turn is over: what it took is learned, what it leaves behind is remembered. Returns
        whether its session pauses now."""
        receipt = turn.receipt
        well = receipt.outcome == "ok" and receipt.prompt_tokens is not None
        ask = turn.ask if receipt.outcome == "steered" else None
        pause = None
        if (well or ask is not None) and not turn.request.is_last:
            pause = turn.waits_for
        prompt_tokens = receipt.prompt_tokens if well else None
        counted = prompt_tokens
        if ask is not None:  # cut before its engine counted; what follows it comes at once
            counted = ask.prompt_tokens
        now = time.monotonic()
        self.scheduler.end(
            turn.id, now, prompt_tokens=counted, cached_tokens=receipt.cached_tokens,
            output_tokens=receipt.completion_tokens, tpot_s=receipt.tpot_s,
            yielded=receipt.acceptance_length or turn.yielded, pause=pause,
            refused=turn.status >= 400,
        )  # fmt: skip
        self.shared.lead(turn.id, done=well)
        if prompt_tokens is not None:
            ratio = self._asks.learn(turn, prompt_tokens, receipt.completion_tokens)
            standing = self._standings.get(turn.key)
            if standing is not None:
                standing.context_tokens = prompt_tokens + (receipt.completion_tokens or 0)
                standing.tokens_per_byte = ratio
            if pause is not None and turn.request.hints.hold_s is not None:
                self.scheduler.live.lease(turn.key.text, now, turn.request.hints.hold_s)
        self._admission.admit()
        return pause is not None

    def close_session(self, tenant: str, session: str) -> None:
        """Nothing is remembered or held for the session any more, under any model."""
        for model in self._pool.names():
            self.scheduler.close(SessionKey(tenant, model, session).text)
        self._standings.drop_session(tenant, session)
        self._admission.admit()

    def forget(self, key: SessionKey) -> None:
        """The session goes on under another key: nothing is held for it under this one."""
        self.scheduler.close(key.text)
        self._standings.drop(key)

    def lease(self, tenant: str, session: str, seconds: float) -> bool:
        """Hold the session's memory for so long, under whichever model it pauses."""
        now = time.monotonic()
        keys = [SessionKey(tenant, model, session).text for model in self._pool.names()]
        held = [self.scheduler.live.lease(key, now, seconds) for key in keys]
        self._admission.admit()
        return any(held)

    def aclose(self) -> None:
        """Stop looking at the queue."""
        self._admission.aclose()

    def released(self) -> Iterator[tuple[SessionKey, str]]:
        """Each session whose memory has been let go of since this was last asked, and the replica;
        those that run there again are left out."""
        released = self.scheduler.live.released
        while released:
            session, replica = released.popleft()
            if not self.scheduler.live.is_home(session, replica):
                yield SessionKey.read(session), replica
