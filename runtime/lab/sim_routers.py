"""The routers of the simulator, one class a way of deciding: by price, by a policy, by knowing all.

Each is given what a router can know: its own turns, what the others tell now and then, and the
bindings; only the oracle looks into the engines.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from random import Random
from typing import Protocol

from sessile.errors import NoReplica
from sessile.lab.sim_engine import Hardware, Request, SimEngine
from sessile.router.decide import Decision, decide
from sessile.router.holdings import Holdings
from sessile.router.outlook import Outlook
from sessile.router.policy import POLICIES, Ask, Candidate, Prefix, Session, make_policy
from sessile.router.price import Traffic
from sessile.router.scheduler import Admitted, Limits, Scheduler

ORACLE = "oracle"
SIMULATED = (*POLICIES, Prefix.name, ORACLE)
"""All that can be compared in virtual time."""

_GATE_SLACK = 2


class SimPool:
    """The replicas of one world, as every router sees them: which are down, how often each has
    started anew, and how many sessions were bound to each."""

    def __init__(self, hardware: Hardware, engines: Sequence[SimEngine]) -> None:
        self.hardware = hardware
        self.engines = {f"r{number}": engine for number, engine in enumerate(engines)}
        self.down: set[str] = set()
        self.starts = {name: 1 for name in self.engines}
        self.bound: Counter[str] = Counter()
        self.changes = 0

    def leave(self, name: str) -> None:
        """It takes turns no longer."""
        self.down.add(name)
        self.changes += 1

    def join(self, name: str) -> None:
        """It has started anew."""
        self.down.discard(name)
        self.starts[name] += 1
        self.changes += 1

    def up(self) -> list[str]:
        """Those that take turns."""
        return [name for name in self.engines if name not in self.down]


class SimRouter(Protocol):
    """One router process."""

    def submit(self, ask: Ask, now: float, failed: Collection[str]) -> Decision | None:
        """Decide for a turn and count it; None: it waits, and comes out of `admit`."""

    def first_token(self, ask: Ask, now: float) -> None: ...

    def end(self, ask: Ask, now: float, done: Request | None, pause: str | None) -> None:
        """The turn is over; `done` is None if nothing came of it here. `pause` names the tool that
        its session waits for now, as far as the router can tell."""

    def admit(self, now: float) -> list[Admitted]: ...

    def waiting(self) -> int:
        """How many turns wait in this router."""

    def hear(self, others: Sequence["SimRouter"], now: float) -> None:
        """What the others have to tell since they were last heard."""

    def heard(self) -> None:
        """All others have heard this one."""


def make_router(
    policy: str, pool: SimPool, limits: Limits, random: Random, peers: bool
) -> SimRouter:
    """A router that starts now, and knows nothing."""
    if policy == ORACLE:
        return OracleRouter(pool)
    if policy == Session.name:
        return PricedRouter(pool, limits, peers)
    return PolicyRouter(policy, pool, random)


class PricedRouter:
    """The `session` policy: the real scheduler."""

    def __init__(self, pool: SimPool, limits: Limits, peers: bool) -> None:
        self._pool = pool
        self._scheduler = Scheduler(limits, peers=peers)
        self._outlooks = {name: Outlook(name) for name in pool.engines}
        for outlook in self._outlooks.values():
            outlook.resize(pool.hardware.kv_tokens, pool.hardware.host_tokens)
            outlook.slots = pool.hardware.slots
        self._open: list[Outlook] = []
        self._seen = -1

    def submit(self, ask: Ask, now: float, failed: Collection[str]) -> Decision | None:
        open_to = self._open_to()
        if ask.shared or ask.bound is not None:
            return self._scheduler.submit(ask, open_to, now, failed)
        # The store is away and this router has not seen the session: what all would choose.
        seen = [Candidate(o.id, o.incarnation, o.in_flight, o.queued) for o in open_to]
        decision = decide(ask, seen, Session(), gate_slack=_GATE_SLACK, failed=failed)
        self._scheduler.book(ask, decision, open_to, now)
        return decision

    def first_token(self, ask: Ask, now: float) -> None:
        self._scheduler.first_token(ask.turn, now)

    def end(self, ask: Ask, now: float, done: Request | None, pause: str | None) -> None:
        if done is None:
            self._scheduler.end(ask.turn, now)
            return
        self._scheduler.end(
            ask.turn, now, prompt_tokens=done.prompt_tokens, cached_tokens=done.cached_tokens,
            output_tokens=done.output_tokens, pause=pause,
            tpot_s=(now - done.first_at) / max(1, done.output_tokens - 1),
        )  # fmt: skip

    def admit(self, now: float) -> list[Admitted]:
        return self._scheduler.admit(lambda model: self._open_to(), now)

    def waiting(self) -> int:
        return len(self._scheduler.queue)

    def hear(self, others: Sequence[SimRouter], now: float) -> None:
        priced = [other for other in others if isinstance(other, PricedRouter)]
        for name, outlook in self._outlooks.items():
            theirs = [other._outlooks[name] for other in priced]
            outlook.foreign_running = sum(len(o.runs) for o in theirs)
            outlook.foreign_work = sum(o.pending_work for o in theirs)
        open_to = self._open_to()
        for other in priced:
            self._scheduler.hear(other._scheduler.live.news, open_to, now)

    def heard(self) -> None:
        self._scheduler.live.news.clear()

    def _open_to(self) -> list[Outlook]:
        pool = self._pool
        if self._seen != pool.changes:
            self._seen = pool.changes
            self._open = [o for name, o in self._outlooks.items() if name not in pool.down]
            for outlook in self._open:
                incarnation = str(pool.starts[outlook.id])
                if outlook.incarnation != incarnation:
                    outlook.reset(incarnation)
        return self._open


class PolicyRouter:
    """A policy that sees bindings, loads and, for `prefix`, what it has sent where."""

    def __init__(self, name: str, pool: SimPool, random: Random) -> None:
        self._pool = pool
        self._policy = make_policy(name, random)
        self._sent: dict[str, str] = {}
        self._running: Counter[str] = Counter()
        self._foreign: Counter[str] = Counter()
        self._holdings: dict[tuple[str, int], Holdings] = {}

    def submit(self, ask: Ask, now: float, failed: Collection[str]) -> Decision | None:
        seen = [self._candidate(name, ask) for name in self._pool.up()]
        decision = decide(ask, seen, self._policy, gate_slack=_GATE_SLACK, failed=failed)
        self.end(ask, now, None, None)
        self._sent[ask.turn] = decision.replica
        self._running[decision.replica] += 1
        self._touch(ask, decision.replica, ask.prompt_tokens)
        return decision

    def first_token(self, ask: Ask, now: float) -> None:
        pass

    def end(self, ask: Ask, now: float, done: Request | None, pause: str | None) -> None:
        replica = self._sent.pop(ask.turn, None)
        if replica is not None:
            self._running[replica] -= 1
            if done is not None:
                self._touch(ask, replica, done.prompt_tokens + done.output_tokens)

    def admit(self, now: float) -> list[Admitted]:
        return []

    def waiting(self) -> int:
        return 0

    def hear(self, others: Sequence[SimRouter], now: float) -> None:
        self._foreign.clear()
        for other in others:
            if isinstance(other, PolicyRouter):
                self._foreign.update(other._running)

    def heard(self) -> None:
        pass

    def _candidate(self, name: str, ask: Ask) -> Candidate:
        pool = self._pool
        running = self._running[name] + self._foreign[name]
        queued = max(0, running - pool.hardware.slots)
        incarnation = str(pool.starts[name])
        held = 0
        if self._policy.name == Prefix.name:
            held = self._held(name).held(ask.session, ask.blocks)
        return Candidate(name, incarnation, running, queued, pool.bound[name], held)

    def _held(self, name: str) -> Holdings:
        hardware, start = self._pool.hardware, self._pool.starts[name]
        found = self._holdings.get((name, start))
        if found is None:
            found = Holdings(hardware.kv_tokens + hardware.host_tokens)
            self._holdings[name, start] = found
        return found

    def _touch(self, ask: Ask, replica: str, tokens: int) -> None:
        if self._policy.name == Prefix.name:
            holdings = self._held(replica)
            holdings.use(ask.session, ask.blocks, ask.block_tokens, tokens)
            holdings.release(ask.session)


class OracleRouter:
    """Knows every cache and every queue, and sends each turn where it and the others lose least,
    those that are still to come among them: the best that can be done turn by turn, without
    foresight and without holding anything back."""

    def __init__(self, pool: SimPool) -> None:
        self._pool = pool
        self._traffic = {name: Traffic() for name in pool.engines}

    def submit(self, ask: Ask, now: float, failed: Collection[str]) -> Decision | None:
        slope_s = 1.0 / self._pool.hardware.prefill_rate
        best, best_s, best_work = None, 0.0, 0.0
        for name in self._pool.up():
            engine = self._pool.engines[name]
            prefill_s = engine.prefill_s(ask.blocks, ask.prompt_tokens)
            wait_s = engine.wait_s(now)
            coming = self._traffic[name].coming(now, slope_s, wait_s + prefill_s)
            cost_s = wait_s + prefill_s * (1 + engine.running + engine.waiting + coming)
            if best is None or cost_s < best_s:
                best, best_s, best_work = name, cost_s, prefill_s / slope_s
        if best is None:
            raise NoReplica("every replica is down", retry_after_s=2.0)
        self._traffic[best].add(now, best_work)
        return Decision(
            replica=best, incarnation=str(self._pool.starts[best]), reason=ORACLE, binding="keep",
            predicted_cached_tokens=None,
        )  # fmt: skip

    def first_token(self, ask: Ask, now: float) -> None:
        pass

    def end(self, ask: Ask, now: float, done: Request | None, pause: str | None) -> None:
        pass

    def admit(self, now: float) -> list[Admitted]:
        return []

    def waiting(self) -> int:
        return 0

    def hear(self, others: Sequence[SimRouter], now: float) -> None:
        pass

    def heard(self) -> None:
        pass
