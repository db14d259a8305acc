"""The router's own pure code in virtual time, before engines that are modelled (`sim_engine`).

Each policy routes the same sessions; beside them stands an oracle that knows every cache and every
queue and takes, for each turn, the replica where it and the others lose least. The same seed gives
the same numbers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

import msgspec

from sessile.errors import Overloaded
from sessile.lab.bench import quantile
from sessile.lab.sim_engine import Hardware, Request, SimEngine
from sessile.lab.sim_load import Load, SimSession, SimTurn
from sessile.router.decide import decide
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask, Candidate, make_policy
from sessile.router.scheduler import Limits, Scheduler
from sessile.sessions.record import Binding

ORACLE = "oracle"
_EXCHANGE_S = 0.2  # how often routers tell each other their work
_CLOCK_S = 0.25  # how often the queue is looked at when nothing happens


class Fault(msgspec.Struct, frozen=True):
    """Something that breaks at a time: a replica's memory and work, a router, or the store."""

    at: float
    kind: str
    number: int = 0
    for_s: float = 10.0


class Outcome(msgspec.Struct):
    """What one policy made of the load. Times in seconds, the queue before the replicas counted."""

    policy: str
    turns: int
    failed: int
    hit_rate: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    ttft_mean_s: float
    session_time_mean_s: float
    computed_tokens: int
    max_over_mean: float
    queued: int
    moved: int
    makespan_s: float
    prediction_error_p50: float | None


class _Router:
    """One router process: what it knows, and the policy in it."""

    def __init__(self, world: "World", number: int) -> None:
        self.outlooks = [Outlook(f"r{n}", "1") for n in range(len(world.engines))]
        for outlook in self.outlooks:
            hardware = world.hardware
            outlook.resize(hardware.kv_tokens, hardware.host_tokens)
            outlook.slots = hardware.slots
        self.looking = False
        self.scheduler = Scheduler(world.limits)
        self.policy = make_policy("rendezvous" if world.policy == ORACLE else world.policy,
                                  Random(world.seed + number))  # fmt: skip


class World:
    """One run of one policy over one load."""

    def __init__(
        self, policy: str, load: Load, hardware: Hardware, replicas: int, *, routers: int = 1,
        seed: int = 1, limits: Limits | None = None, faults: Sequence[Fault] = (),
        progress: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.policy, self.load, self.hardware, self.seed = policy, load, hardware, seed
        self.limits = limits or Limits()
        self.now = 0.0
        self._random = Random(seed)
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.engines = [SimEngine(hardware, self._first, self._ended) for _ in range(replicas)]
        self._due: list[float | None] = [None] * replicas
        self.routers = [_Router(self, number) for number in range(routers)]
        self._bindings: dict[str, Binding] = {}
        self._open: dict[str, _Turn] = {}
        self._progress = progress
        self._prompt = self._cached = 0
        self._ttfts: list[float] = []
        self._session_s: list[float] = []
        self._errors: list[float] = []
        self._failed = self._queued = self._moved = 0
        self._left = len(load.sessions)
        for session in load.sessions:
            self._at(session.start_s, _Agent(self, session, None).start)
        for fault in faults:
            self._at(fault.at, partial(self._break, fault))
        if routers > 1:
            self._at(_EXCHANGE_S, self._exchange)

    def run(self) -> Outcome:
        """Run to the end of the last session."""
        while self._events:
            self.now, _, event = heappop(self._events)
            event()
        ttfts = self._ttfts
        served = [engine.served for engine in self.engines]
        return Outcome(
            policy=self.policy,
            turns=len(ttfts),
            failed=self._failed,
            hit_rate=self._cached / max(1, self._prompt),
            ttft_p50_s=quantile(ttfts, 0.5) or 0.0,
            ttft_p90_s=quantile(ttfts, 0.9) or 0.0,
            ttft_p99_s=quantile(ttfts, 0.99) or 0.0,
            ttft_mean_s=sum(ttfts) / max(1, len(ttfts)),
            session_time_mean_s=sum(self._session_s) / max(1, len(self._session_s)),
            computed_tokens=sum(engine.computed_tokens for engine in self.engines),
            max_over_mean=max(served) * len(served) / max(1, sum(served)),
            queued=self._queued,
            moved=self._moved,
            makespan_s=self.now,
            prediction_error_p50=quantile(self._errors, 0.5),
        )

    # -- turns

    def ask(self, agent: "_Agent", turn: SimTurn) -> None:
        """An agent sends a turn, to whichever router."""
        router = self._random.choice(self.routers) if len(self.routers) > 1 else self.routers[0]
        number = next(self._order)
        name = f"t{number}"
        parent = agent.session.parent
        near = self._bindings.get(parent) if parent is not None else None
        ask = Ask(
            session=agent.session.id,
            bound=self._bindings.get(agent.session.id),
            near=near.replica if near is not None else None,
            turn=name,
            model="m",
            program=agent.session.program,
            blocks=turn.blocks,
            block_tokens=self.load.block_tokens,
            prompt_tokens=turn.prompt_tokens,
            output_tokens=turn.output_tokens,
        )
        self._open[name] = _Turn(agent, turn, router, ask, self.now)
        self._decide(self._open[name])

    def _decide(self, turn: "_Turn") -> None:
        ask, router = turn.ask, turn.router
        if self.policy == "session":
            try:
                decision = router.scheduler.submit(ask, router.outlooks, self.now)
            except Overloaded as error:
                del self._open[ask.turn]
                self._at(self.now + (error.retry_after_s or 1.0), lambda: turn.agent.again(turn))
                return
            if decision is None:
                self._queued += 1
                self._admit(router)
                return
            self._send(turn, decision.replica, decision.binding != "keep")
            turn.predicted_s = decision.predicted_ttft_s
        elif self.policy == ORACLE:
            self._send(turn, f"r{self._best(ask)}", False)
        else:
            decision = decide(ask, self._candidates(router), router.policy, gate_slack=2)
            self._send(turn, decision.replica, decision.binding != "keep")

    def _candidates(self, router: _Router) -> list[Candidate]:
        found = []
        sessions: dict[str, int] = {}
        for turn in self._open.values():
            if turn.replica is not None:
                sessions[turn.replica] = sessions.get(turn.replica, 0) + 1
        for outlook in router.outlooks:
            running = sessions.get(outlook.id, 0)
            over = max(0, running - self.hardware.slots)
            found.append(Candidate(outlook.id, "1", running, over, outlook.sessions))
        return found

    def _best(self, ask: Ask) -> int:
        """The oracle's choice: true caches, true queues, true rates."""
        best, best_s = 0, float("inf")
        for number, engine in enumerate(self.engines):
            prefill_s = engine.prefill_s(ask.blocks, ask.block_tokens, ask.prompt_tokens)
            cost_s = engine.wait_s(self.now) + prefill_s * (1 + engine.running + engine.waiting)
            if cost_s < best_s:
                best, best_s = number, cost_s
        return best

    def _send(self, turn: "_Turn", replica: str, bind: bool) -> None:
        ask = turn.ask
        number = int(replica[1:])
        if bind:
            before = self._bindings.get(ask.session)
            self._moved += before is not None
            for router in self.routers:
                if before is not None:
                    router.outlooks[int(before.replica[1:])].sessions -= 1
                router.outlooks[number].sessions += 1
            epoch = before.epoch + 1 if before is not None else 1
            self._bindings[ask.session] = Binding(replica, "1", epoch)
        turn.replica = replica
        turn.sent_at = self.now
        made = turn.turn
        request = Request(
            ask.turn, made.blocks, made.after, self.load.block_tokens, made.prompt_tokens,
            made.output_tokens,
        )  # fmt: skip
        self.engines[number].send(request, self.now)
        self._watch(number)

    def _first(self, request: Request, now: float) -> None:
        turn = self._open[request.id]
        self._ttfts.append(now - turn.asked_at)
        if turn.predicted_s is not None:
            actual = now - turn.sent_at
            self._errors.append(abs(turn.predicted_s - actual) / max(actual, 1e-6))
        if self.policy == "session":
            turn.router.scheduler.first_token(request.id, now)

    def _ended(self, request: Request, now: float) -> None:
        turn = self._open.pop(request.id)
        self._prompt += request.prompt_tokens
        self._cached += request.cached_tokens
        last = turn.turn is turn.agent.session.turns[-1]
        if self.policy == "session":
            turn.router.scheduler.end(
                request.id, now, prompt_tokens=request.prompt_tokens,
                cached_tokens=request.cached_tokens, output_tokens=request.output_tokens,
                tpot_s=(now - request.first_at) / max(1, request.output_tokens - 1),
                pause="" if last else turn.agent.next_tool(),
            )  # fmt: skip
            self._admit(turn.router)
        if self._progress is not None:
            self._progress(1)
        turn.agent.ended()

    def _admit(self, router: _Router) -> None:
        for admitted in router.scheduler.admit(lambda model: router.outlooks, self.now):
            decision = admitted.decision
            if decision is not None:
                turn = self._open[admitted.ask.turn]
                turn.predicted_s = decision.predicted_ttft_s
                self._send(turn, decision.replica, decision.binding != "keep")
        self._look_again(router)

    def _look_again(self, router: _Router) -> None:
        """Leases and pressure change with time alone: the queue is looked at on a clock."""
        if router.scheduler.queue and not router.looking:
            router.looking = True
            self._at(self.now + _CLOCK_S, lambda: self._look(router))

    def _look(self, router: _Router) -> None:
        router.looking = False
        self._admit(router)

    def done(self, seconds: float) -> None:
        """A session that nobody spawned is over, after so long."""
        self._session_s.append(seconds)
        self._left -= 1

    # -- time

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._order), event))

    def _watch(self, number: int) -> None:
        """Have the engine go on when it next has to."""
        when = self.engines[number].next_at()
        if when is not None and self._due[number] != when:
            self._due[number] = when
            self._at(when, lambda: self._advance(number, when))

    def _advance(self, number: int, when: float) -> None:
        if self._due[number] == when:
            self._due[number] = None
            self.engines[number].advance(self.now)
            self._watch(number)

    def _exchange(self) -> None:
        """Each router learns what the others have under way."""
        for router in self.routers:
            for number, outlook in enumerate(router.outlooks):
                others = [r.outlooks[number] for r in self.routers if r is not router]
                outlook.foreign_running = sum(len(o.runs) for o in others)
                outlook.foreign_work = sum(o.pending_work for o in others)
                outlook.foreign_tokens = sum(o.holdings.live_tokens for o in others)
        if self._left:
            self._at(self.now + _EXCHANGE_S, self._exchange)

    def _break(self, fault: Fault) -> None:
        raise NotImplementedError(fault.kind)


class _Turn(msgspec.Struct):
    """One turn under way."""

    agent: Any
    turn: SimTurn
    router: Any
    ask: Ask
    asked_at: float
    sent_at: float = 0.0
    replica: str | None = None
    predicted_s: float | None = None


class _Agent:
    """One session: sends its turns one after another, waits for what they spawn."""

    def __init__(self, world: World, session: SimSession, parent: "_Agent | None") -> None:
        self._world = world
        self.session = session
        self._parent = parent
        self._next = 0
        self._children = 0
        self._began = 0.0

    def start(self) -> None:
        self._began = self._world.now
        self._ask()

    def again(self, turn: _Turn) -> None:
        """The router had no room: the same turn once more."""
        self._world.ask(self, turn.turn)

    def next_tool(self) -> str:
        return self.session.turns[self._next + 1].tool

    def ended(self) -> None:
        turn = self.session.turns[self._next]
        self._next += 1
        self._children = len(turn.spawns)
        for child in turn.spawns:
            self._world._at(self._world.now, _Agent(self._world, child, self).start)
        if not self._children:
            self._go_on()

    def _go_on(self) -> None:
        world = self._world
        if self._next < len(self.session.turns):
            world._at(world.now + self.session.turns[self._next].gap_s, self._ask)
        elif self._parent is not None:
            self._parent._child_ended()
        else:
            world.done(world.now - self._began)

    def _child_ended(self) -> None:
        self._children -= 1
        if not self._children:
            self._go_on()

    def _ask(self) -> None:
        self._world.ask(self, self.session.turns[self._next])
