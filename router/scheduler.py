"""The routing brain: where every turn finishes soonest, or that it waits for memory first. Pure.

It prices each replica (`price`, `outlook`), keeps the live sessions of each within its KV memory,
queues what would overflow all of them (`admission`), and holds the memory of sessions that pause as
long as that pays (`returns`). It books what it decides, so that decisions made in the same moment
see each other; whoever does the I/O tells it what became of them. Every time is an argument: the
simulator runs this very code in virtual time.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Literal

import msgspec

from sessile.errors import NoReplica
from sessile.router.admission import Queue
from sessile.router.decide import Decision
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask, rendezvous
from sessile.router.price import Price, Rates, work
from sessile.router.returns import Returns

_BYPASS = 8  # how many behind the first in the queue may go before it, if it does not fit
_GIVEN_UP_S = 600.0  # a session that was away for so long is not expected at all
_ADDED_WEIGHT = 0.02
_HORIZON = 8.0  # turns of a new session that are foreseen, beside its first
_LEAST_MARGIN_S = 0.05  # nobody notices less
_SOON_RATE = 0.5  # who returns at such a rate, a second, is about to be back
_STARVED_S = 5.0  # but none once it has waited so long


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The knobs. `fill` is the share of a replica's KV memory that live sessions may need;
    `margin` how much of what a session's context costs to compute anew must be saved by a move."""

    fill: float = 0.95
    margin: float = 0.5
    most_queued: int = 512


class Pause(msgspec.Struct):
    """A session between two turns: what it waits for, and until when its memory is held."""

    replica: str
    kind: str
    since: float
    until: float
    told: bool = False
    counted_s: float = 0.0


class Admitted(msgspec.Struct, frozen=True):
    """A turn that leaves the queue: its decision, or None if its deadline has passed."""

    ask: Ask
    decision: Decision | None
    queued_s: float


class Scheduler:
    """Decides for one router. Made by `placement`, and by the simulator."""

    def __init__(self, limits: Limits, weights: dict[str, float] | None = None) -> None:
        self._limits = limits
        self.queue = Queue(limits.most_queued, weights)
        self.returns = Returns()
        self._added_tokens = 500.0  # that a turn of a bound session computes, of late
        self._rates: defaultdict[str, Rates] = defaultdict(Rates.prior)  # of a model, anywhere
        self._outlooks: dict[str, Outlook] = {}
        self._asks: dict[str, tuple[Ask, Outlook]] = {}
        self._pauses: dict[str, Pause] = {}
        self._ends: list[tuple[float, str]] = []  # a heap of when pauses are to be looked at
        self._homes: dict[str, Outlook] = {}  # where each live session is
        self._born: dict[str, int] = {}  # in which order sessions came, while they are remembered
        self._births = count()

    # -- deciding

    def submit(
        self, ask: Ask, open_to: Sequence[Outlook], now: float, failed: Collection[str] = ()
    ) -> Decision | None:
        """Decide for a turn and book it, or None: it waits in the queue, and comes out of `admit`,
        which is to be called next. Only sessions whose memory is held pass those who wait.

        Raises `NoReplica`, and `Overloaded` when the queue is full.
        """
        self._returned(ask.session, now)
        if ask.session not in self._born:
            self._born[ask.session] = next(self._births)
        decision = None
        if failed or not self.queue or ask.session in self._homes:
            decision = self.decide(ask, open_to, now, failed)
            if decision is None and self._make_room(open_to, now, 1 + len(self.queue)):
                decision = self.decide(ask, open_to, now, failed)
            while decision is None and self._displace(ask, now):
                decision = self.decide(ask, open_to, now, failed)
        if decision is None:
            self._let_go(ask.session)
            self.queue.push(ask, now, self._relief_s(open_to, now))
        else:
            self.book(ask, decision, open_to, now)
        return decision

    def decide(
        self, ask: Ask, open_to: Sequence[Outlook], now: float, failed: Collection[str] = (),
        *, force: bool = False,
    ) -> Decision | None:  # fmt: skip
        """The cases, in order:

        1. nobody is left: `NoReplica`
        2. bound, the replica is there, and nobody can be so much cheaper, or it was chosen a
           moment ago: stay
        3. the cheapest of those whose memory fits it; the bound one unless that saves the margin
        4. its memory fits nowhere: None, or with `force` or `failed` the cheapest all the same

        Books nothing.
        """
        force = force or bool(failed)
        if failed:
            open_to = [outlook for outlook in open_to if outlook.id not in failed]
        if not open_to:
            raise NoReplica(
                "every replica of this model failed the turn"
                if failed
                else "no replica of this model is ready; see /sessile/v1/replicas",
                retry_after_s=2.0,
            )
        home = self._home(ask, open_to)
        margin_s = 0.0
        home_price = None
        if home is not None and (force or self._fits(ask, home)):
            home_price = home.price(ask, now)
            if ask.claimed is not None:
                return _decision(ask, home, ask.claimed, home_price)
            margin_s = self._margin_s(ask, home)
            if home_price.wait_s + home_price.harm_s <= margin_s:
                return _decision(ask, home, "bound", home_price)
        # A session that is placed now will burden its replica again at each of its turns.
        later = _HORIZON * self.returns.share * self._added_tokens
        best = best_price = None
        for outlook in open_to:
            if outlook is home or not (force or self._fits(ask, outlook)):
                continue
            price = outlook.price(ask, now)
            if ask.bound is None or ask.claimed is not None:
                more_s = later * outlook.rates.slope_s * outlook.others
                price = price._replace(harm_s=price.harm_s + more_s)
            if best_price is None or self._before(ask, outlook, price, best, best_price):
                best, best_price = outlook, price
        if (
            home is not None
            and home_price is not None
            and (best_price is None or home_price.total_s <= best_price.total_s + margin_s)
        ):
            return _decision(ask, home, "bound", home_price)
        if best is None or best_price is None:
            return None
        return _decision(ask, best, self._reason(ask, best, best_price, home, open_to, failed),
                         best_price)  # fmt: skip

    def _fits(self, ask: Ask, outlook: Outlook) -> bool:
        # Memory is kept free for those who will be back: where few are, it is for whoever comes.
        # Who is there already may grow into what is kept free of newcomers.
        live = outlook.holdings.is_live(ask.session)
        fill = (1.0 if live else self._limits.fill) / max(self.returns.share, 0.01)
        return outlook.fits(ask, fill)

    def _home(self, ask: Ask, open_to: Sequence[Outlook]) -> Outlook | None:
        bound = ask.bound
        if bound is None:
            return None
        for outlook in open_to:
            if outlook.id == bound.replica and outlook.incarnation == bound.incarnation:
                return outlook
        return None

    def _margin_s(self, ask: Ask, home: Outlook) -> float:
        anew_s = home.rates.slope_s * work(0, ask.prompt_tokens)
        return max(_LEAST_MARGIN_S, self._limits.margin * anew_s)

    def _before(
        self, ask: Ask, one: Outlook, price: Price, other: Outlook | None, than: Price
    ) -> bool:
        """Whether `one` is the better choice; what is as good goes by load, then by rank, so that
        routers agree."""
        assert other is not None
        near_s = 0.02 * than.total_s
        if abs(price.total_s - than.total_s) > near_s:
            return price.total_s < than.total_s
        if (one.id == ask.near) != (other.id == ask.near):
            return one.id == ask.near
        loads = [(o.in_flight, o.holdings.live_tokens + o.foreign_tokens) for o in (one, other)]
        if loads[0] != loads[1]:
            return loads[0] < loads[1]
        return rendezvous(ask.group or ask.session, (one, other)) is one

    def _reason(
        self, ask: Ask, best: Outlook, price: Price, home: Outlook | None,
        open_to: Sequence[Outlook], failed: Collection[str],
    ) -> str:  # fmt: skip
        if failed:
            return "failover"
        if ask.bound is None:
            if best.id == ask.near:
                return "parent"
            return "prefix" if price.cached_tokens else "new"
        if home is None:
            known = any(outlook.id == ask.bound.replica for outlook in open_to)
            return "restarted" if known else "replica_gone"
        return "cheaper" if self._fits(ask, home) else "memory"

    # -- the queue

    def admit(self, open_to: Callable[[str], Sequence[Outlook]], now: float) -> list[Admitted]:
        """Those of the queue whose turn has come; called whenever something ends, and on a clock.

        `open_to` gives the replicas of a model.
        """
        self.expire(now)
        out: list[Admitted] = []
        for late in self.queue.overdue(now):
            self.queue.remove(late.ask.turn)
            out.append(Admitted(late.ask, None, now - late.at))
        passed = 0
        for waiting in self.queue.ordered(now) if self.queue else ():
            ask = waiting.ask
            replicas = open_to(ask.model)
            decision = None
            if replicas:
                decision = self.decide(ask, replicas, now)
                if decision is None and self._make_room(replicas, now, len(self.queue)):
                    decision = self.decide(ask, replicas, now)
            if decision is None:
                passed += 1
                if passed > _BYPASS or now - waiting.at > _STARVED_S:
                    break
                continue
            self.queue.remove(ask.turn)
            self.book(ask, decision, replicas, now)
            out.append(Admitted(ask, decision, now - waiting.at))
        return out

    def _relief_s(self, open_to: Sequence[Outlook], now: float) -> float:
        """When memory may come free, for those who are told to come back."""
        return max(1.0, min((outlook.wait_s(now) for outlook in open_to), default=1.0))

    # -- what becomes of a turn

    def book(self, ask: Ask, decision: Decision, open_to: Sequence[Outlook], now: float) -> None:
        """Count the turn at its replica from now on; a turn booked elsewhere moves."""
        self.end(ask.turn, now)
        outlook = next((o for o in open_to if o.id == decision.replica), None)
        if outlook is None:
            return
        self._outlooks[outlook.id] = outlook
        before = self._homes.get(ask.session)
        if before is not None and before is not outlook:
            before.paused.discard(ask.session)
            before.holdings.release(ask.session)
        self._homes[ask.session] = outlook
        outlook.start(ask, decision.predicted_cached_tokens or 0, now)
        self._asks[ask.turn] = (ask, outlook)

    def first_token(self, turn: str, now: float) -> None:
        """The turn's first token has come."""
        booked = self._asks.get(turn)
        if booked is not None:
            booked[1].first_token(turn, now)

    def end(
        self, turn: str, now: float, *, prompt_tokens: int | None = None,
        cached_tokens: int | None = None, output_tokens: int | None = None,
        tpot_s: float | None = None, pause: str | None = None,
    ) -> None:  # fmt: skip
        """The turn is over. With token counts it went well, and `pause` says what its session
        waits for now ("": nothing known); without a pause it is not expected back."""
        self.queue.remove(turn)
        booked = self._asks.pop(turn, None)
        if booked is None:
            return
        ask, outlook = booked
        run = outlook.end(turn, now)
        if run is None:
            return
        if prompt_tokens is not None:
            if ask.bound is not None and cached_tokens is not None:
                added = prompt_tokens - cached_tokens - self._added_tokens
                self._added_tokens += _ADDED_WEIGHT * added
            outlook.learn(
                run, prompt_tokens, cached_tokens, output_tokens or 0, tpot_s,
                self._rates[ask.model],
            )  # fmt: skip
            outlook.holdings.use(
                ask.session, ask.blocks, ask.block_tokens, prompt_tokens + (output_tokens or 0)
            )
        cost_s = outlook.rates.slope_s * run.work
        cost_s += (output_tokens or 0) * outlook.rates.tpot_s
        self.queue.serve(ask.tenant, ask.program or ask.session, cost_s)
        if any(other.session == ask.session for other in outlook.runs.values()):
            return  # a parallel call of the same session goes on
        if pause is not None and prompt_tokens is not None:
            self._pause(ask.session, outlook, pause, now)
        else:
            self._let_go(ask.session)
            self._born.pop(ask.session, None)

    # -- pauses

    def lease(self, session: str, now: float, seconds: float) -> bool:
        """Hold a pausing session's memory for so long; 0 lets go of it. False: it does not
        pause."""
        pause = self._pauses.get(session)
        if pause is None:
            return False
        pause.until, pause.told = now + seconds, seconds > 0
        heappush(self._ends, (pause.until, session))
        if not seconds:
            self._let_go(session)
        return True

    def close(self, session: str) -> None:
        """The session is over: nothing is held for it."""
        self._pauses.pop(session, None)
        self._born.pop(session, None)
        self._let_go(session)
        for outlook in self._outlooks.values():
            outlook.holdings.forget(session)

    def expire(self, now: float) -> None:
        """Let go of the memory of pauses that have lasted too long."""
        while self._ends and self._ends[0][0] <= now:
            _, session = heappop(self._ends)
            pause = self._pauses.get(session)
            if pause is None or pause.until > now:
                continue
            self._count(pause, now, returned=False)
            if now - pause.since < _GIVEN_UP_S:
                if session in self._homes:  # else memory was short, which says nothing of it
                    self.returns.count(returned=False)
                self._let_go(session)
                pause.until = pause.since + _GIVEN_UP_S
                heappush(self._ends, (pause.until, session))
            else:
                del self._pauses[session]
                self._born.pop(session, None)

    def _pause(self, session: str, outlook: Outlook, kind: str, now: float) -> None:
        until = now + self.returns.worth_s(kind)
        self._pauses[session] = Pause(outlook.id, kind, now, until)
        heappush(self._ends, (until, session))
        outlook.paused.add(session)

    def _returned(self, session: str, now: float) -> None:
        pause = self._pauses.pop(session, None)
        if pause is not None:
            self._count(pause, now, returned=True)
            self.returns.count(returned=True)

    def _count(self, pause: Pause, now: float, returned: bool) -> None:
        elapsed_s = now - pause.since
        self.returns.observe(pause.kind, pause.counted_s, elapsed_s, returned)
        pause.counted_s = elapsed_s

    def _let_go(self, session: str) -> None:
        outlook = self._homes.pop(session, None)
        if outlook is not None:
            outlook.paused.discard(session)
            outlook.holdings.release(session)

    def _displace(self, ask: Ask, now: float) -> bool:
        """The live sessions of a replica have outgrown it, and this one is back there: let go of
        the pause that is least likely to end soon, or of the youngest, if it is younger. Whose
        memory is taken waits in the queue when it is back: one session recomputes its context,
        instead of all of them in turn."""
        home = self._homes.get(ask.session)
        if home is None:
            return False
        victim, least = None, (inf, 0)
        for session in home.paused:
            pause = self._pauses.get(session)
            if pause is None or pause.told:
                continue
            rate = self.returns.rate(pause.kind, now - pause.since)
            rank = (min(rate, _SOON_RATE), -self._born.get(session, 0))
            if rank < least:
                victim, least = session, rank
        if victim is None or (
            least[0] >= _SOON_RATE and -least[1] <= self._born.get(ask.session, 0)
        ):
            return False
        self._let_go(victim)
        return True

    def _make_room(self, open_to: Sequence[Outlook], now: float, waiting: int) -> bool:
        """Let go of pauses that are not worth what they keep others waiting; whether any was.

        Holding is worth the chance of a return in the next moment times the prefill that it saves;
        it costs the others the share of the memory that it takes. Both grow with its tokens, so
        what is compared is the rate of return and how often a second the replica can refill its
        whole memory, for each that waits there.
        """
        found = False
        for outlook in open_to:
            total = outlook.total_tokens
            if total is None or not outlook.paused:
                continue
            refills = 1.0 / (max(outlook.rates.slope_s, 1e-9) * total)
            pressure = refills * waiting / len(open_to)
            for session in list(outlook.paused):
                pause = self._pauses.get(session)
                if pause is None or pause.told:
                    continue
                self._count(pause, now, returned=False)
                if self.returns.rate(pause.kind, now - pause.since) < pressure:
                    self._let_go(session)
                    found = True
        return found


def _decision(ask: Ask, chosen: Outlook, reason: str, price: Price) -> Decision:
    bound = ask.bound
    binding: Literal["keep", "claim", "rebind"]
    if bound is None:
        binding = "claim"
    elif (bound.replica, bound.incarnation) == (chosen.id, chosen.incarnation):
        binding = "keep"
    else:
        binding = "rebind"
    return Decision(
        replica=chosen.id,
        incarnation=chosen.incarnation,
        reason=reason,
        binding=binding,
        predicted_cached_tokens=price.cached_tokens,
        predicted_ttft_s=price.ttft_s,
    )
