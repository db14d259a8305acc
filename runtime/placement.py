"""Steps 1 to 3 of a turn: which session, which binding holds for every router, which replica.

The pure rules are `sessions.identity`, `router.scheduler` and, for the policies that price nothing,
`router.decide`; here they meet the store, and what this router remembers stands in while the store
is away.
"""

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from random import Random

import msgspec

from sessile.errors import (
    NotSupported,
    Overloaded,
    SessionBusy,
    SessionExpired,
    StoreUnavailable,
)
from sessile.router.blocks import tip_of
from sessile.router.decide import Decision, decide
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask, Candidate, Policy
from sessile.router.pool import Pool
from sessile.router.scheduler import Limits, Scheduler
from sessile.sessions.binding import Standing, Standings
from sessile.sessions.prefix import BLOCK_BYTES, read_prompt
from sessile.sessions.record import Binding, SessionKey
from sessile.sessions.store import Claim, Store
from sessile.settings import RouterSettings, SessionSettings
from sessile.sizes import Sizes
from sessile.turn import Turn, TurnRequest

_MOST_LINEAGES = 50_000
_LOOK_S = 0.25  # how often the queue is looked at when nothing happens


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
        self._priced = policy.name == "session"
        self._gate_slack = router.gate_slack
        self._settings = sessions
        self._random = random
        self._lineages: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self._programs: OrderedDict[str, str] = OrderedDict()  # of sessions with a parent
        self.scheduler = Scheduler(
            Limits(fill=router.kv_fill, margin=router.margin, most_queued=router.most_queued),
            dict(router.tenant_weights),
        )
        self._sizes: defaultdict[str, Sizes] = defaultdict(Sizes)
        self._waiting: dict[str, asyncio.Future[Decision]] = {}
        self._followers: dict[str, list[asyncio.Future[bool]]] = {}
        self._clock: asyncio.TimerHandle | None = None

    @property
    def hears(self) -> Scheduler | None:
        """Whom news of other routers are of use to: nobody, with a policy that prices nothing."""
        return self.scheduler if self._priced else None

    # -- 1: the session

    async def session_of(self, request: TurnRequest, model: str) -> str:
        """The id of a session that was not named: continued by its lineage, or new."""
        claims = request.claims
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

    # -- 2 and 3: the binding and the replica

    async def place(self, turn: Turn) -> Decision:
        """Decide, with the binding that holds for every router; leaves it in `turn.binding`.

        Costs a round trip to the store unless a binding was confirmed a moment ago, and as long as
        it takes until a replica's memory fits the turn. Raises `NoReplica`, `NotSupported`,
        `SessionBusy`, `SessionExpired` or `Overloaded`.
        """
        request = turn.request
        if request.stateful:
            await self._lock(turn)
        standing = self._standings.get(turn.key)
        ask = self._ask(turn, standing)
        moved = standing.binding if standing is not None and standing.moved else None
        if not self._policy.binds or not _can_continue(request):
            ask = msgspec.structs.replace(ask, bound=None)
            return self._decide(turn, ask) or await self._wait(turn)
        if standing is not None and self._is_confirmed(standing):
            turn.binding = standing.binding
            standing.moved = False
        else:
            proposal = self._propose(turn, ask)
            try:
                claim = await self._claim(turn, proposal)
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
        decision = self._decide(turn, ask) or await self._wait(turn)
        binding = turn.binding
        assert binding is not None
        if (binding.replica, binding.incarnation) != (decision.replica, decision.incarnation):
            return await self._rebind(turn, ask, decision)
        return decision

    async def place_again(self, turn: Turn, *failed: str) -> Decision | None:
        """A replica other than those that `failed`, the session re-bound to it; None if there is
        none."""
        if all(o.id in failed for o in self._outlooks(turn)):
            return None
        standing = self._standings.get(turn.key)
        ask = msgspec.structs.replace(self._ask(turn, standing), bound=turn.binding)
        self.scheduler.end(turn.id, time.monotonic())
        self.lead(turn.id, done=False)
        decision = self._decide(turn, ask, failed)
        assert decision is not None
        if decision.binding == "rebind" and turn.binding is not None:
            decision = await self._rebind(turn, ask, decision)
        return decision

    def follows(self, turn: Turn) -> bool:
        """Whether another turn computes at the replica what this one shares with it."""
        return self.scheduler.leader(turn.id) is not None

    async def follow(self, turn: Turn) -> None:
        """Wait while another turn computes at the replica what this one shares with it: a fan-out
        computes its parent's prefix once there, and a session that is back while it is prewarmed
        joins that."""
        while (found := self.scheduler.leader(turn.id)) is not None:
            leader, until = found
            future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            followers = self._followers.setdefault(leader, [])
            followers.append(future)
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    done = await future
            except TimeoutError:
                return
            finally:
                if future in followers:
                    followers.remove(future)
            if not done:
                self.scheduler.take_over(turn.id)

    def lead(self, turn: str, done: bool) -> None:
        """The turn has computed its prompt, or never will: those who wait for it go on."""
        for future in self._followers.pop(turn, ()):
            if not future.done():
                future.set_result(done)

    # -- moves

    def elsewhere(self, ask: Ask, free: Collection[str]) -> Decision | None:
        """Which of the replicas in `free` a session that pauses should go on at; None: it is well
        where it is, or fits nowhere."""
        assert ask.bound is not None
        open_to = {*free, ask.bound.replica}
        outlooks = [o for o in self._pool.outlooks(ask.model) if o.id in open_to]
        if ask.base is not None:  # nothing is loaded for who only may come back
            outlooks = [o for o in outlooks if ask.model in o.shelf.loaded]
        if not outlooks:
            return None
        if self._priced:
            decision = self.scheduler.decide(ask, outlooks, time.monotonic())
        else:
            candidates = [c for c in self._pool.candidates(ask.model) if c.id in open_to]
            decision = decide(ask, candidates, self._policy, gate_slack=self._gate_slack)
        return decision if decision is not None and decision.binding == "rebind" else None

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

    # -- what becomes of a turn

    def first_token(self, turn: Turn) -> None:
        """The first bytes of a streamed answer have come."""
        self.scheduler.first_token(turn.id, time.monotonic())
        self.lead(turn.id, done=True)

    def end(self, turn: Turn) -> bool:
        """The turn is over: what it took is learned, what it leaves behind is remembered. Returns
        whether its session pauses now."""
        receipt = turn.receipt
        well = receipt.outcome == "ok" and receipt.prompt_tokens is not None
        ask = turn.ask if receipt.outcome == "steered" else None
        pause = None
        goes_on = _can_continue(turn.request) and not turn.request.hints.final
        if (well or ask is not None) and goes_on:
            pause = turn.waits_for
        prompt_tokens = receipt.prompt_tokens if well else None
        counted = prompt_tokens
        if ask is not None:  # cut before its engine counted; what follows it comes at once
            counted = ask.prompt_tokens
        now = time.monotonic()
        self.scheduler.end(
            turn.id, now, prompt_tokens=counted, cached_tokens=receipt.cached_tokens,
            output_tokens=receipt.completion_tokens, tpot_s=receipt.tpot_s, pause=pause,
        )  # fmt: skip
        self.lead(turn.id, done=well)
        if prompt_tokens is not None:
            sizes = self._sizes[turn.key.model]
            ratio = sizes.learn(turn.prompt_size, prompt_tokens, receipt.completion_tokens)
            standing = self._standings.get(turn.key)
            if standing is not None:
                standing.context_tokens = prompt_tokens + (receipt.completion_tokens or 0)
                standing.tokens_per_byte = ratio
            if pause is not None and turn.request.hints.hold_s is not None:
                self.scheduler.live.lease(turn.key.text, now, turn.request.hints.hold_s)
        self._admit()
        return pause is not None

    def close_session(self, tenant: str, session: str) -> None:
        """Nothing is remembered or held for the session any more, under any model."""
        for model in self._pool.models():
            self.scheduler.close(SessionKey(tenant, model, session).text)
        self._standings.drop_session(tenant, session)
        self._admit()

    def lease(self, tenant: str, session: str, seconds: float) -> bool:
        """Hold the session's memory for so long, under whichever model it pauses."""
        now = time.monotonic()
        keys = [SessionKey(tenant, model, session).text for model in self._pool.models()]
        held = [self.scheduler.live.lease(key, now, seconds) for key in keys]
        self._admit()
        return any(held)

    def aclose(self) -> None:
        """Stop looking at the queue."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def released(self) -> Iterator[tuple[SessionKey, str]]:
        """Each session whose memory has been let go of since this was last asked, and the replica;
        those that run there again are left out."""
        released = self.scheduler.live.released
        while released:
            session, replica = released.popleft()
            if not self.scheduler.live.is_home(session, replica):
                yield SessionKey.read(session), replica

    # -- deciding

    def _ask(self, turn: Turn, standing: Standing | None) -> Ask:
        request, key = turn.request, turn.key
        sizes = self._sizes[key.model]
        adapter = self._pool.adapters.get(key.model)
        space = key.tenant if adapter is None else f"{key.tenant}\x1f{key.model}"
        prompt = read_prompt(request.document, space)
        turn.prompt_size = prompt.size
        ratio = sizes.tokens_per_byte
        if standing is not None and standing.tokens_per_byte is not None:
            ratio = standing.tokens_per_byte
        hints, parent = request.hints, request.claims.parent
        deadline = None
        if hints.deadline_s is not None:
            deadline = turn.began + hints.deadline_s
        text = key.text
        program = hints.program
        if program is None and parent is not None:
            program = self._program(text, SessionKey(key.tenant, key.model, parent).text)
        ask = Ask(
            session=text,
            bound=standing.binding if standing is not None else None,
            context_tokens=standing.context_tokens if standing is not None else None,
            group=request.claims.group,
            near=self._near(turn) if standing is None else None,
            turn=turn.id,
            attribution=turn.attribution,
            model=key.model,
            tenant=key.tenant,
            program=program or text,
            blocks=prompt.blocks,
            block_tokens=max(1, round(BLOCK_BYTES * ratio)),
            prompt_tokens=max(1, round(prompt.size * ratio)),
            output_tokens=sizes.reply(hints.output_tokens),
            priority=hints.priority,
            deadline=deadline,
        )
        if adapter is None:
            return ask
        base = adapter.base
        return msgspec.structs.replace(
            ask, base=base, load_s=self._pool.adapters.load_s(base),
            attribution=tip_of(turn.attribution, key.model),
        )  # fmt: skip

    def _program(self, child: str, parent: str) -> str:
        """The session that began the tree of this parent; remembered of the child, too."""
        program = self._programs[child] = self._programs.get(parent, parent)
        if len(self._programs) > _MOST_LINEAGES:
            self._programs.popitem(last=False)
        return program

    def _decide(self, turn: Turn, ask: Ask, failed: tuple[str, ...] = ()) -> Decision | None:
        """By price or by rule, and booked; None: the turn waits in the queue."""
        now = time.monotonic()
        turn.ask = ask
        outlooks = self._outlooks(turn)
        if self._priced and ask.shared:
            return self.scheduler.submit(ask, outlooks, now, failed)
        decision = decide(
            ask, self._candidates(turn), self._policy, gate_slack=self._gate_slack, failed=failed
        )
        if ask.claimed is not None and decision.reason == "bound":
            decision = msgspec.structs.replace(decision, reason=ask.claimed)
        self.scheduler.book(ask, decision, outlooks, now)
        return decision

    async def _wait(self, turn: Turn) -> Decision:
        """The decision, once the queue has let the turn through."""
        began = time.monotonic()
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._waiting[turn.id] = future
        self._admit()
        try:
            return await future
        finally:
            self._waiting.pop(turn.id, None)
            self.scheduler.queue.remove(turn.id)
            waited_s = time.monotonic() - began
            turn.receipt.queue_s = (turn.receipt.queue_s or 0.0) + waited_s

    def _admit(self) -> None:
        """Let those of the queue go whose turn has come, and look again soon if any are left."""
        now = time.monotonic()
        if not self.scheduler.queue:
            self.scheduler.live.expire(now)
            return
        for admitted in self.scheduler.admit(self._pool.outlooks, now):
            future = self._waiting.get(admitted.ask.turn)
            if future is None or future.done():
                self.scheduler.end(admitted.ask.turn, time.monotonic())
            elif admitted.decision is not None:
                future.set_result(admitted.decision)
            else:
                future.set_exception(
                    Overloaded("the turn's deadline passed while it waited for KV memory")
                )
        if self.scheduler.queue and self._clock is None:
            self._clock = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._clock = None
        self._admit()

    async def _claim(self, turn: Turn, proposal: Decision) -> Claim:
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

    def _propose(self, turn: Turn, ask: Ask) -> Decision:
        """Where the session would go now; nothing is booked."""
        if self._priced:
            outlooks, now = self._outlooks(turn), time.monotonic()
            decision = self.scheduler.decide(ask, outlooks, now)
            if decision is None:  # it will wait, and is bound to where it would be cheapest now
                decision = self.scheduler.decide(ask, outlooks, now, force=True)
            assert decision is not None
            return decision
        return decide(ask, self._candidates(turn), self._policy, gate_slack=self._gate_slack)

    def _without_store(self, turn: Turn, ask: Ask) -> Decision:
        """The store is away: what this router remembers, else what every router would choose."""
        turn.receipt.store = "degraded"
        decision = self._decide(turn, msgspec.structs.replace(ask, shared=False))
        assert decision is not None
        epoch = ask.bound.epoch if ask.bound is not None else 0
        turn.binding = Binding(decision.replica, decision.incarnation, epoch)
        self._standings.put(
            turn.key, Standing(turn.binding, None, ask.context_tokens, self._ratio(turn))
        )
        return decision

    async def _rebind(self, turn: Turn, ask: Ask, decision: Decision) -> Decision:
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
        self._standings.put(turn.key, Standing(binding, confirmed, None, self._ratio(turn)))
        if (binding.replica, binding.incarnation) != (decision.replica, decision.incarnation):
            for outlook in self._outlooks(turn):
                if (outlook.id, outlook.incarnation) == (binding.replica, binding.incarnation):
                    followed = msgspec.structs.replace(
                        decision, replica=outlook.id, incarnation=outlook.incarnation,
                        reason="bound", predicted_cached_tokens=None, predicted_ttft_s=None,
                    )  # fmt: skip
                    self.scheduler.book(ask, followed, (outlook,), time.monotonic())
                    return followed
        return decision

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

    def _ratio(self, turn: Turn) -> float | None:
        standing = self._standings.get(turn.key)
        return standing.tokens_per_byte if standing is not None else None

    def _outlooks(self, turn: Turn) -> list[Outlook]:
        """The replicas that may take the turn, for the scheduler."""
        outlooks = self._pool.outlooks(turn.key.model)
        if turn.request.path == "/v1/embeddings" and outlooks:
            outlooks = [o for o in outlooks if self._pool.get(o.id).engine.embeddings]
            if not outlooks:
                raise NotSupported(f"the engine that serves {turn.key.model!r} makes no embeddings")
        return outlooks

    def _candidates(self, turn: Turn) -> list[Candidate]:
        """The same, for the rules."""
        able = {outlook.id for outlook in self._outlooks(turn)}
        return [c for c in self._pool.candidates(turn.key.model) if c.id in able]

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
