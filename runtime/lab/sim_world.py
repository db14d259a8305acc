"""One run of one policy over one load, in virtual time: engines, routers, and what breaks.

The routers run the router's own pure code (`sim_routers`), the engines are modelled (`sim_engine`).
The same seed gives the same numbers, in whatever process.
"""

from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Literal

import msgspec

from sessile.errors import CapacityError
from sessile.lab.sim_agents import Agent, Process, Turn
from sessile.lab.sim_engine import Hardware, Request, SimEngine
from sessile.lab.sim_load import Load, SimSession
from sessile.lab.sim_routers import SimPool, make_router
from sessile.lab.sim_score import Outcome, Score
from sessile.router.decide import Decision
from sessile.router.policy import Ask
from sessile.router.scheduler import Limits
from sessile.sessions.record import Binding

_EXCHANGE_S = 0.2  # how often routers tell each other their work
_CLOCK_S = 0.25  # how often a queue is looked at when nothing happens
_RETRY_S = 0.5  # how often a client tries again that finds no router


class Fault(msgspec.Struct, frozen=True):
    """Something that breaks at a time and is back, empty, after `for_s`: a replica's memory and
    work, a router, or the store of bindings."""

    kind: Literal["replica", "router", "redis"]
    at: float
    number: int = 0
    for_s: float = 10.0


class World:
    """Runs once. With `at_once` so many sessions run, the next one starts when one has ended,
    whenever the load has it start. `progress` is called with the number of sessions of the load
    that have ended.

    Invariant: a turn that was asked is in `_open` until it ends, or waits to be sent again.
    """

    def __init__(
        self, policy: str, load: Load, hardware: Hardware, replicas: int, *, routers: int = 1,
        seed: int = 1, limits: Limits | None = None, faults: Sequence[Fault] = (),
        at_once: int | None = None, progress: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.now = 0.0
        self.engines = [
            SimEngine(hardware, load.block_tokens, self._first_token, self._ended)
            for _ in range(replicas)
        ]
        self._policy, self._block_tokens = policy, load.block_tokens
        self._limits = limits or Limits()
        self._pool = SimPool(hardware, self.engines)
        self._numbers = {name: number for number, name in enumerate(self._pool.engines)}
        self._random = Random(seed)
        self._peers = routers > 1
        self._processes = [self._started() for _ in range(routers)]
        self._bindings: dict[str, Binding] = {}
        self._store_away = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._due: list[float | None] = [None] * replicas
        self._open: dict[str, Turn] = {}
        self._progress = progress
        self._score = Score()
        self._arriving = load.sessions()
        self._left = load.count
        self._at_once = at_once
        for _ in range(at_once or 1):
            self._arrive()
        for fault in faults:
            self.at(fault.at, partial(self._break, fault))
        if self._peers:
            self.at(_EXCHANGE_S, self._exchange)

    def run(self) -> Outcome:
        """Run to the end of the last session."""
        while self._events:
            self.now, _, event = heappop(self._events)
            event()
        return self._score.outcome(self.engines, self.now)

    # -- sessions

    def _arrive(self) -> None:
        """The next session of the load waits for its time, or for its place."""
        session = next(self._arriving, None)
        if session is not None:
            self._score.expected += session.count()
            when = session.start_s if self._at_once is None else self.now
            self.at(when, partial(self._start, session))

    def _start(self, session: SimSession) -> None:
        if self._at_once is None:
            self._arrive()
        Agent(self, session).start()

    def over(self, session: SimSession, seconds: float) -> None:
        """A session is over, so long after its start; what is bound is not needed any more."""
        self._bindings.pop(session.id, None)
        for process in self._processes:
            process.known.pop(session.id, None)
        if session.parent is None:
            self._score.session_s.append(seconds)
            self._left -= 1
            if self._at_once is not None:
                self._arrive()
            if self._progress is not None:
                self._progress(1)

    # -- turns

    def ask(self, turn: Turn) -> None:
        """An agent sends a turn, or sends it again: to whichever router is there."""
        alive = [process for process in self._processes if process.alive]
        if not alive:
            self.at(self.now + _RETRY_S, partial(self.ask, turn))
            return
        process = alive[0] if len(alive) == 1 else self._random.choice(alive)
        session, made = turn.agent.session, turn.made
        near = None
        if session.parent is not None:
            near = self._bound(process, session.parent)
        turn.process = process
        turn.ask = ask = Ask(
            session=session.id,
            bound=self._bound(process, session.id),
            near=near.replica if near is not None else None,
            shared=not self._store_away,
            turn=f"t{next(self._order)}",
            model="m",
            program=session.program,
            blocks=made.blocks,
            block_tokens=self._block_tokens,
            prompt_tokens=made.prompt_tokens,
            output_tokens=made.output_tokens,
        )
        self._open[ask.turn] = turn
        self._submit(turn, ask, ())

    def _submit(self, turn: Turn, ask: Ask, failed: Sequence[str]) -> None:
        process = turn.process
        assert process is not None
        try:
            decision = process.router.submit(ask, self.now, failed)
        except CapacityError as error:
            process.router.end(ask, self.now, None, None)
            del self._open[ask.turn]
            self.at(self.now + (error.retry_after_s or 1.0), partial(self._ask_again, turn))
            return
        if decision is None:
            self._score.queued += 1
            self._admit(process)
        else:
            self._send(turn, ask, decision)

    def _ask_again(self, turn: Turn) -> None:
        self._score.sent_again += 1
        self.ask(turn)

    def _send(self, turn: Turn, ask: Ask, decision: Decision) -> None:
        self._bind(turn, ask, decision)
        turn.replica, turn.sent_at = decision.replica, self.now
        turn.predicted_s = decision.predicted_ttft_s
        turn.request = request = Request(
            ask.turn, ask.blocks, turn.made.after, ask.prompt_tokens, ask.output_tokens
        )  # fmt: skip
        number = self._numbers[decision.replica]
        self.engines[number].send(request, self.now)
        self._watch(number)

    def _first_token(self, request: Request, now: float) -> None:
        turn = self._open[request.id]
        if not turn.answered:
            turn.answered = True
            self._score.first_token(now - turn.asked_at, turn.predicted_s, now - turn.sent_at)
        if turn.process is not None and turn.ask is not None:
            turn.process.router.first_token(turn.ask, now)

    def _ended(self, request: Request, now: float) -> None:
        turn = self._open.pop(request.id)
        self._score.ended(request)
        process, ask = turn.process, turn.ask
        assert process is not None and ask is not None
        process.router.end(ask, now, request, turn.agent.next_tool())
        self._admit(process)
        turn.agent.answered()

    # -- bindings

    def _bound(self, process: Process, session: str) -> Binding | None:
        """What the router finds in the store, else what it remembers."""
        found = None if self._store_away else self._bindings.get(session)
        return found if found is not None else process.known.get(session)

    def _bind(self, turn: Turn, ask: Ask, decision: Decision) -> None:
        process, bound = turn.process, ask.bound
        assert process is not None
        if bound is None and decision.binding == "keep":
            return  # a policy that binds nothing
        if bound is None or decision.binding != "keep":
            epoch = bound.epoch + 1 if bound is not None else 1
            self._pool.bound[decision.replica] += 1
            if bound is not None:
                self._pool.bound[bound.replica] -= 1
                self._score.moved += 1
            bound = Binding(decision.replica, decision.incarnation, epoch)
        process.known[ask.session] = bound
        if not self._store_away:
            self._bindings[ask.session] = bound

    # -- what routers do with time alone

    def _started(self) -> Process:
        random = Random(self._random.random())
        router = make_router(self._policy, self._pool, self._limits, random, self._peers)
        return Process(router)

    def _admit(self, process: Process) -> None:
        for admitted in process.router.admit(self.now):
            if admitted.decision is not None:
                self._send(self._open[admitted.ask.turn], admitted.ask, admitted.decision)
        self._watch_queue(process)

    def _watch_queue(self, process: Process) -> None:
        """Pauses and pressure change with time alone: a queue is looked at on a clock."""
        if not process.looking and process.router.waiting():
            process.looking = True
            self.at(self.now + _CLOCK_S, partial(self._look, process))

    def _look(self, process: Process) -> None:
        process.looking = False
        if process.alive:
            self._admit(process)

    def _exchange(self) -> None:
        alive = [process.router for process in self._processes if process.alive]
        for router in alive:
            router.hear([other for other in alive if other is not router], self.now)
        for router in alive:
            router.heard()
        if self._left:
            self.at(self.now + _EXCHANGE_S, self._exchange)

    # -- what breaks

    def _break(self, fault: Fault) -> None:
        back = self.now + fault.for_s
        if fault.kind == "replica":
            self._kill_replica(fault.number)
            self.at(back, partial(self._restart_replica, fault.number))
        elif fault.kind == "router":
            self._kill_router(self._processes[fault.number])
            self.at(back, partial(self._restart_router, fault.number))
        else:
            self._store_away = True
            self._bindings.clear()
            self.at(back, self._store_back)

    def _kill_replica(self, number: int) -> None:
        """Its turns fail over at once; one that streams goes on elsewhere from what it has sent."""
        name = f"r{number}"
        self._pool.leave(name)
        self._due[number] = None
        for request in self.engines[number].fail(self.now):
            turn = self._open[request.id]
            assert turn.ask is not None
            ask = msgspec.structs.replace(
                turn.ask,
                prompt_tokens=request.prompt_tokens + request.generated,
                output_tokens=max(1, request.output_tokens - request.generated),
            )
            turn.ask = ask
            turn.request = None
            self._score.sent_again += 1
            self._submit(turn, ask, (name,))

    def _restart_replica(self, number: int) -> None:
        self._pool.join(f"r{number}")
        for process in self._processes:
            if process.alive:
                self._admit(process)

    def _kill_router(self, process: Process) -> None:
        """Its connections close: engines stop its turns, its clients send them again."""
        process.alive = False
        for name, turn in list(self._open.items()):
            if turn.process is not process:
                continue
            del self._open[name]
            if turn.request is not None and turn.replica is not None:
                number = self._numbers[turn.replica]
                self.engines[number].cancel(turn.request, self.now)
                self._watch(number)
                turn.request = None
            self._ask_again(turn)

    def _restart_router(self, number: int) -> None:
        self._processes[number] = self._started()

    def _store_back(self) -> None:
        self._store_away = False

    # -- time

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Have this happen then."""
        heappush(self._events, (when, next(self._order), event))

    def _watch(self, number: int) -> None:
        """Have the engine go on when it next has to."""
        when = self.engines[number].next_at()
        if when is not None and self._due[number] != when:
            self._due[number] = when
            self.at(when, partial(self._advance, number, when))

    def _advance(self, number: int, when: float) -> None:
        if self._due[number] == when:
            self._due[number] = None
            self.engines[number].advance(self.now)
            self._watch(number)
