"""The routing brain: where every turn finishes soonest, or that it waits for memory first. Pure.

It has the cheapest replica chosen (`chooser`), keeps the live sessions of each within its KV memory
(`live`), queues what would overflow all of them (`admission`), and holds the memory of sessions
that pause as long as that pays (`returns`). It books what it decides, so that decisions made in the
same moment see each other; whoever does the I/O tells it what became of them. Every time is an
argument: the simulator runs this very code in virtual time.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec

from sessile.router.admission import Queue
from sessile.router.chooser import Chooser, home_of
from sessile.router.decide import Decision
from sessile.router.holdings import Found
from sessile.router.live import LiveSessions
from sessile.router.outlook import Outlook
from sessile.router.pace import Pace
from sessile.router.peers import FirstToken, News
from sessile.router.policy import Ask
from sessile.router.price import work

_BYPASS = 8  # how many behind the first in the queue may go before it, if it does not fit
_STARVED_S = 5.0  # but none once it has waited so long
_MOMENT_S = 1.0  # what was touched so long ago is the newest still
_WELL_GUESSED = 0.03  # a prompt whose length was guessed this well needs no correction


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The knobs. `fill` is the share of a replica's KV memory that live sessions may need;
    `margin` how much of what a session's context costs to compute anew must be saved by a move."""

    fill: float = 0.95
    margin: float = 0.5
    most_queued: int = 512


class Admitted(msgspec.Struct, frozen=True):
    """A turn that leaves the queue: its decision, or None if its deadline has passed."""

    ask: Ask
    decision: Decision | None


class Scheduler:
    """Decides for one router. Made by `placement`, and by the simulator.

    `live` are the sessions that it knows of, and what is told of them to others; with `peers` there
    are other routers. `decide` books nothing.
    """

    def __init__(
        self, limits: Limits, weights: dict[str, float] | None = None, *, peers: bool = False
    ) -> None:
        self.queue = Queue(limits.most_queued, weights)
        self.live = LiveSessions(peers=peers)
        self.returns = self.live.returns
        self._chooser = Chooser(self.returns, live_share=limits.fill, margin=limits.margin)
        self.decide = self._chooser.decide
        self._asks: dict[str, tuple[Ask, Outlook]] = {}
        self._proposed: dict[str, tuple[Outlook, Decision]] = {}

    # -- deciding

    def propose(self, ask: Ask, open_to: Sequence[Outlook], now: float) -> Decision:
        """Where the turn would go now. A session that was bound nowhere counts there until its turn
        is submitted or has ended: while a store is asked, those decided in the same moment are to
        see each other. Raises `NoReplica`."""
        decision = self.decide(ask, open_to, now)
        if decision is None:  # it will wait, and is bound to where it would be cheapest now
            decision = self.decide(ask, open_to, now, force=True)
            assert decision is not None
        elif ask.bound is None and not self.queue:
            outlook = next(o for o in open_to if o.id == decision.replica)
            outlook.start(ask, decision.predicted_cached_tokens or 0, now)
            self._proposed[ask.turn] = (outlook, decision)
            if decision.reason == "trial":
                self._chooser.tried(ask, outlook, open_to, now)
        return decision

    def submit(
        self, ask: Ask, open_to: Sequence[Outlook], now: float, failed: Collection[str] = ()
    ) -> Decision | None:
        """Decide for a turn and book it, or None: it waits in the queue, and comes out of `admit`,
        which is to be called next. Only sessions whose memory is held pass those who wait.

        Raises `NoReplica`, and `Overloaded` when the queue is full.
        """
        self.live.begin(ask.session, now)
        decision = self._confirmed(ask, now)
        if decision is None and (failed or not self.queue or ask.session in self.live):
            decision = self.decide(ask, open_to, now, failed)
            if decision is not None and decision.reason == "memory":
                home = home_of(ask, open_to)
                assert home is not None
                if self.live.make_room((home,), now, 1):  # dead pauses are no reason to move
                    decision = self.decide(ask, open_to, now, failed)
            if decision is None and self.live.make_room(open_to, now, 1 + len(self.queue)):
                decision = self.decide(ask, open_to, now, failed)
            while decision is None and self.live.displace(ask, now):
                decision = self.decide(ask, open_to, now, failed)
        if decision is None:
            self.live.let_go(ask.session)
            self.queue.push(ask, now, self._relief_s(open_to, now))
        else:
            self.book(ask, decision, open_to, now)
        return decision

    # -- the queue

    def admit(self, open_to: Callable[[str], Sequence[Outlook]], now: float) -> list[Admitted]:
        """Those of the queue whose turn has come; called whenever something ends, and on a clock.

        `open_to` gives the replicas of a model.
        """
        self.live.expire(now)
        out: list[Admitted] = []
        for late in self.queue.overdue(now):
            self.queue.remove(late.ask.turn)
            self.live.forsake(late.ask.session)
            out.append(Admitted(late.ask, None))
        passed = 0
        loose = True  # whether there may be memory to let go of
        for waiting in self.queue.ordered(now) if self.queue else ():
            ask = waiting.ask
            replicas = open_to(ask.model)
            decision = None
            if replicas:
                decision = self.decide(ask, replicas, now)
                if decision is None and loose:
                    loose = self.live.make_room(replicas, now, len(self.queue))
                    decision = self.decide(ask, replicas, now) if loose else None
            if decision is None:
                passed += 1
                if passed > _BYPASS or now - waiting.at > _STARVED_S:
                    break
                continue
            self.queue.remove(ask.turn)
            self.book(ask, decision, replicas, now)
            out.append(Admitted(ask, decision))
        return out

    def _relief_s(self, open_to: Sequence[Outlook], now: float) -> float:
        """When memory may come free, for those who are told to come back."""
        return max(1.0, min((outlook.wait_s(now) for outlook in open_to), default=1.0))

    # -- what becomes of a turn

    def book(self, ask: Ask, decision: Decision, open_to: Sequence[Outlook], now: float) -> None:
        """Count the turn at its replica from now on; a turn booked elsewhere moves."""
        if ask.turn in self._asks:
            self.end(ask.turn, now)
        outlook = next((o for o in open_to if o.id == decision.replica), None)
        if outlook is None:
            return
        self.live.settle(ask.session, outlook)
        proposed = self._proposed.get(ask.turn)
        if proposed is not None and proposed[0] is outlook:
            del self._proposed[ask.turn]
            self._watch(ask, decision, outlook, open_to, now)
        else:
            if proposed is not None:
                self._withdraw(ask.turn, now)
            self._watch(ask, decision, outlook, open_to, now)
            outlook.start(ask, decision.predicted_cached_tokens or 0, now)
        self._asks[ask.turn] = (ask, outlook)
        if self.live.peers:
            self.live.news.append(
                News("runs", ask.session, outlook.id, outlook.incarnation,
                     ask.prompt_tokens + ask.output_tokens, ask.blocks, ask.block_tokens)
            )  # fmt: skip

    def _watch(
        self, ask: Ask, decision: Decision, outlook: Outlook, open_to: Sequence[Outlook],
        now: float,
    ) -> None:  # fmt: skip
        """Measure how the turn is decoded, where that is to be chosen by."""
        pace = self._chooser.pace(ask, open_to)
        if pace is None:
            return
        foreseen_s = decision.predicted_ttft_s or outlook.price(ask, now).ttft_s
        pace.start(ask, outlook, open_to, foreseen_s, now)
        if decision.reason == "trial" and ask.claimed is None:
            self._chooser.tried(ask, outlook, open_to, now)

    def _confirmed(self, ask: Ask, now: float) -> Decision | None:
        """What was proposed for the turn, if the session has been bound there; it counts there no
        longer, if not."""
        if ask.turn not in self._proposed:
            return None
        outlook, decision = self._proposed[ask.turn]
        if ask.claimed is not None and not self.queue and home_of(ask, (outlook,)):
            return msgspec.structs.replace(decision, reason=ask.claimed, binding="keep")
        self._withdraw(ask.turn, now)
        return None

    def _withdraw(self, turn: str, now: float) -> None:
        outlook, _ = self._proposed.pop(turn)
        run = outlook.end(turn, now)
        if run is None or outlook.has(run.session) or self.live.is_home(run.session, outlook.id):
            return
        outlook.holdings.forget(run.session)

    def first_token(self, turn: str, now: float) -> None:
        """The turn's first token has come."""
        booked = self._asks.get(turn)
        if booked is None:
            return
        ask, outlook = booked
        if (pace := self._chooser.paces.get(ask.base or ask.model)) is not None:
            pace.first_token(turn, now)
        outlook.first_token(turn, now)

    def end(
        self, turn: str, now: float, *, prompt_tokens: int | None = None,
        cached_tokens: int | None = None, output_tokens: int | None = None,
        tpot_s: float | None = None, yielded: float | None = None, pause: str | None = None,
        refused: bool = False,
    ) -> None:  # fmt: skip
        """The turn is over. With token counts it went well, and `pause` says what its session
        waits for now ("": nothing known); without a pause it is not expected back. `yielded` is
        tokens a decoding step, where that is known of a replica that speculates. One that its
        replica `refused` has left nothing there."""
        waiting = self.queue.remove(turn)
        if turn in self._proposed:
            self._withdraw(turn, now)
        booked = self._asks.pop(turn, None)
        if booked is None:
            if waiting is not None:
                self.live.forsake(waiting.ask.session)
            return
        ask, outlook = booked
        model = ask.base or ask.model
        pace = self._chooser.paces.get(model)
        decoded = pace.end(model, turn, output_tokens, yielded, now) if pace is not None else None
        run = outlook.end(turn, now)
        if run is None:
            return
        block_tokens = ask.block_tokens
        first = None
        if prompt_tokens is not None:
            if ask.bound is not None and cached_tokens is not None:
                self._chooser.observe_added(prompt_tokens - cached_tokens)
            first = outlook.learn(
                run, prompt_tokens, cached_tokens, output_tokens or 0, tpot_s,
                self._chooser.rates[model],
            )  # fmt: skip
            if pace is not None and decoded is not None:
                pace.learn(ask.session, decoded, now)
            tokens = prompt_tokens + (output_tokens or 0)
            counted = prompt_tokens / max(1, ask.prompt_tokens)
            if now - run.began_at < _MOMENT_S and abs(counted - 1.0) < _WELL_GUESSED:
                outlook.holdings.reach_to(ask.session, tokens)
            else:
                block_tokens = max(1, round(block_tokens * counted))
                outlook.holdings.use(ask.session, ask.blocks, block_tokens, tokens)
        cost_s = outlook.rates.slope_s * run.work
        cost_s += (output_tokens or 0) * outlook.rates.tpot_s
        self.queue.serve(ask.tenant, ask.program or ask.session, cost_s)
        if outlook.has(ask.session):
            return  # a parallel call of the same session goes on
        if refused:
            outlook.holdings.take_back(ask.session, ask.blocks, run.found)
            if self.live.peers:
                self.live.news.append(
                    News("refused", ask.session, outlook.id, outlook.incarnation,
                         run.found.blocks, ask.blocks)
                )  # fmt: skip
        if not self.live.is_over(ask.session, outlook):
            return  # it has moved meanwhile
        if pause is not None and prompt_tokens is not None:
            self.live.pause(ask.session, outlook, pause, now, ask.program)
            if self.live.peers:
                tokens = prompt_tokens + (output_tokens or 0)
                program = ask.program if ask.program != ask.session else ""
                self.live.news.append(
                    News("pauses", ask.session, outlook.id, outlook.incarnation, tokens,
                         block_tokens=block_tokens, kind=pause, program=program,
                         first=FirstToken(model, *first) if first else None, decoded=decoded)
                )  # fmt: skip
        else:
            self.live.leave(ask.session)

    def leader(self, turn: str) -> tuple[str, float] | None:
        """The turn that computes what this one shares with it at its replica, and until when it is
        worth waiting for its first token; None: there is nothing to wait for."""
        booked = self._asks.get(turn)
        return booked[1].leader(booked[0]) if booked is not None else None

    def take_over(self, turn: str) -> None:
        """The turn that it waited for has failed: now this one computes what they share, unless
        another does already."""
        booked = self._asks.get(turn)
        if booked is not None:
            booked[1].compute(booked[0], 0)

    def paces(self) -> dict[str, Any]:
        """What is learned of decoding, by model, where only some replicas speculate; for people."""
        return {model: pace.describe() for model, pace in self._chooser.paces.items()}

    # -- moves

    def move(self, ask: Ask, decision: Decision, open_to: Sequence[Outlook], now: float) -> None:
        """A session that pauses goes on elsewhere: what prewarms it there is booked from now on, as
        the turn of `ask`, until `moved`. Its pause goes on, too."""
        self.book(ask, decision, open_to, now)
        if ask.turn in self._asks:
            self.live.pauses.move(ask.session, decision.replica)

    def moved(
        self, turn: str, now: float, *, prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """What prewarmed the session is over, with token counts if it went well. Its times teach
        nothing: it gave way to others."""
        booked = self._asks.pop(turn, None)
        if booked is None:
            return
        ask, outlook = booked
        session, model = ask.session, ask.base or ask.model
        if (pace := self._chooser.paces.get(model)) is not None:
            pace.end(model, turn, None, None, now)
        run = outlook.end(turn, now)
        if run is not None and prompt_tokens is not None and cached_tokens is not None:
            outlook.holdings.correct(run.cached_tokens, cached_tokens, run.age)
        if self.live.home(session) is not outlook or outlook.has(session):
            return  # it was let go of, or has come back meanwhile
        pause = self.live.pauses.get(session)
        if pause is not None and pause.held:
            outlook.paused.add(session)
            if self.live.peers:
                self.live.news.append(
                    News("pauses", session, outlook.id, outlook.incarnation, ask.prompt_tokens,
                         kind=pause.kind)
                )  # fmt: skip
        else:
            self.live.let_go(session)

    def close(self, session: str) -> None:
        """The session is over: nothing is held for it, nor for those of its program, if it began
        one."""
        self.live.close(session)

    # -- the other routers

    def hear(
        self, news: Iterable[News], outlooks: Sequence[Outlook], now: float, router: str = ""
    ) -> None:
        """What another router's turns have come to."""
        known = {outlook.id: outlook for outlook in outlooks}
        for told in news:
            session = told.session
            if told.state == "idle":
                self.live.let_go_unless_running(session)
            elif told.state == "closed":
                self.live.forget(session)
            elif told.state == "leased":
                if self.live.pauses.hold(session, now, told.seconds) and not told.seconds:
                    self.live.let_go(session)
            else:
                outlook = known.get(told.replica)
                if outlook is not None and outlook.incarnation == told.incarnation:
                    self._hear_turn(told, outlook, now, router)

    def _hear_turn(self, told: News, outlook: Outlook, now: float, router: str) -> None:
        session, holdings = told.session, outlook.holdings
        if told.state == "refused":
            if not outlook.has(session):
                holdings.take_back(session, told.blocks, Found(told.tokens))
            return
        self.live.pauses.returned(session, now)
        self.live.settle(session, outlook)
        outlook.paused.discard(session)
        if told.state == "runs":
            cached = min(holdings.held(session, told.blocks), told.tokens)
            outlook.traffic.add(now, work(cached, told.tokens - cached))
            holdings.use(session, told.blocks, told.block_tokens, told.tokens)
            self.live.pauses.away(session, outlook.id, now, router)
            return
        first = told.first
        if first is not None:
            outlook.observe(first.amount, first.seconds, self._chooser.rates[first.model])
        if told.decoded is not None and outlook.speculates is told.decoded.speculates:
            pace = self._chooser.paces.setdefault(told.decoded.model, Pace())
            pace.learn(session, told.decoded, now)
        holdings.resume(session, told.tokens, told.block_tokens)
        if not outlook.has(session):
            self.live.pause(session, outlook, told.kind, now, told.program)
