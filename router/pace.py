"""What decoding would take at replicas that speculate and at those that do not, learned. Pure.

    seconds a token = seconds a step, with so many running there / tokens that a step yields

A step's seconds are of the replica's kind (`steps`), the tokens that it yields of the session
(`yields`): one, where nothing is speculated. Both are measured of every turn (`clocks`), so no
engine has to be known. A pace exists only for a model some of whose replicas speculate and some do
not; then `weigh` is what `chooser` adds to its prices, and `trial` where it looks again.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

import msgspec

from sessile.router.clocks import Clocks, context_of
from sessile.router.looks import Looks
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.steps import Steps
from sessile.router.yields import UNKNOWN, Yields

_MOST_BLIND = 8  # sessions begun with a kind that tells nothing
_FASTER = 0.05  # of what decoding takes, at least, must be saved by a move of one session
_WORTH = 1.1  # by so much the other kind must be slower, if all are to move
_WORTH_AMID = 0.07  # by so much more, where all run there: they would move one by one
_LEAST_TOKENS = 8
_LEAST_STEPS = 0.05  # a token


class Decoded(msgspec.Struct, frozen=True, array_like=True):
    """How a turn was decoded: `running` and `beside` are means over that time, of the turns there
    and of how many other replicas were busy; `steps` is those of a token, `context` the
    tokens before it."""

    model: str
    speculates: bool
    running: float
    beside: float
    step_s: float
    steps: float
    group: int = 0
    context: float = 0.0


class Pace:
    """Of one model. Made by the chooser, with the first turn that could choose."""

    def __init__(self) -> None:
        self.yields = Yields()
        self._steps = Steps()
        self._clocks = Clocks()
        self._looks = Looks(self._steps, self.yields, self._clocks)
        self._usual = UNKNOWN  # steps a token, of as many turns as run at once
        self._blind = {False: 0, True: 0}  # sessions begun with a kind that has told nothing yet

    def describe(self) -> dict[str, Any]:
        """What is believed, for people: seconds a step by turns running, and tokens a step."""
        return self._steps.describe() | {"tokens_per_step": self.yields.typical()}

    @property
    def known(self) -> bool:
        """Whether both kinds have been seen."""
        return self._steps.known

    @property
    def _mute(self) -> bool:
        """Whether a kind was used and has told nothing."""
        return any(
            self._blind[kind] >= _MOST_BLIND and not self._steps.heard(kind)
            for kind in (False, True)
        )

    # -- what would be

    def weigh(
        self, ask: Ask, outlooks: Sequence[Outlook], later: float, prefill_tokens: float
    ) -> dict[str, float]:
        """Seconds that decoding the turn, and the `later` ones of its session, takes at each, and
        costs the others there; all alike where a kind tells nothing. `prefill_tokens` are those
        that all these turns will compute, about."""
        if self._mute:
            return {o.id: 0.0 for o in outlooks}
        self._steps.one_device = _one_device(outlooks)
        costs = self._weigh(ask, outlooks, later, prefill_tokens)
        if ask.bound is not None and not self.known:  # nobody moves on a guess
            here = costs.get(ask.bound.replica, 0.0)
            costs = {name: max(cost_s, here) for name, cost_s in costs.items()}
        return costs

    def _weigh(
        self, ask: Ask, outlooks: Sequence[Outlook], later: float, prefill_tokens: float
    ) -> dict[str, float]:
        rates = self.yields.expect(ask.session, ask.opening)
        if self._steps.shared:
            return self._weigh_together(ask, outlooks, later, prefill_tokens, rates)
        context = context_of(ask)
        steps_s = [self._steps.step_s(o.speculates, o.in_flight + 1, context) for o in outlooks]
        pairs = list(zip(outlooks, steps_s, strict=True))
        plain = min((step_s for o, step_s in pairs if not o.speculates), default=inf)
        speculated = min((step_s for o, step_s in pairs if o.speculates), default=inf)
        mean = _mean(rates)
        # Of a session that is not known yet, its first turn at a replica that speculates tells
        # where its later ones are faster.
        best_s = sum(min(rate * speculated, plain) for rate in rates) / len(rates)
        costs: dict[str, float] = {}
        for o, step_s in pairs:
            before_s = self._steps.step_s(o.speculates, max(o.in_flight, 1), context)
            steps = mean if o.speculates else 1.0
            harm_s = o.in_flight * max(0.0, step_s - before_s) * steps
            own_s = steps * step_s
            after_s = best_s if o.speculates and len(rates) > 1 else own_s
            costs[o.id] = ask.output_tokens * (own_s + harm_s + later * (after_s + harm_s))
        return costs

    def _weigh_together(
        self, ask: Ask, outlooks: Sequence[Outlook], later: float, prefill_tokens: float,
        rates: Sequence[float],
    ) -> dict[str, float]:  # fmt: skip
        """Of replicas that share a device, each takes its steps while the others wait: all sessions
        go to those of one kind, by what all of them yield together. Whoever does not makes a step
        longer for all, and its prefills keep all waiting, not only those whom its price counts."""
        here = sum(o.in_flight for o in outlooks)
        running = max(here + 1, self._clocks.crowd)
        every = [_mean(rates)]
        for mark in self._clocks.under_way():
            every.append(self.yields.mean(mark.session, mark.group))
        missing = max(0.0, running - len(every))  # of the crowd: they come in a moment
        mean = (sum(every) + missing * self._usual) / (len(every) + missing)
        steps = {False: 1.0, True: mean}
        # All are decided alike: the context of each turn by itself would split them.
        context = (context_of(ask) + (running - 1.0) * self._clocks.context) / running
        tokens = ask.output_tokens * (1.0 + later)
        cost_s = {
            kind: tokens * steps[kind] * self._steps.step_s(kind, running, context)
            for kind in (False, True)
        }
        speculating = sum(o.in_flight for o in outlooks if o.speculates)
        most = 2 * speculating > here
        stray = cost_s[True] > cost_s[False]  # the kind that is slower for all of them
        if stray is most and here:
            there = speculating if most else here - speculating
            worth = _WORTH + _WORTH_AMID * there / running
            if cost_s[stray] < worth * cost_s[not stray]:
                stray = not stray
        cost_s[stray] += self._steps.waits * here * cost_s[not stray]
        held_up = sum(o.others for o in outlooks)
        return {
            o.id: cost_s[o.speculates] + o.rates.slope_s * prefill_tokens * (held_up - o.others)
            for o in outlooks
        }

    def worth(self, ask: Ask, home: Outlook) -> float:
        """In parts of what decoding takes where the session is, how much a move must save of it.
        Who leaves the replicas that speculate is not heard again, so it is more as long as few of
        its turns were: a session whose first turn accepts little may still be the faster there."""
        doubt = self.yields.doubt(ask.session) if home.speculates else 0.0
        return max(_FASTER, doubt)

    def trial(
        self, ask: Ask, outlooks: Sequence[Outlook], prices_s: Sequence[float], later: float,
        now: float,
    ) -> Outlook | None:  # fmt: skip
        """The replica at which a new session, of which `later` turns are priced too, is to be tried
        though it is not the cheapest: of a kind that was never seen, that may be worth another look
        by now, or that has just done better than was expected."""
        best: dict[bool, tuple[float, Outlook]] = {}
        for o, price_s in zip(outlooks, prices_s, strict=True):
            if o.speculates not in best or price_s < best[o.speculates][0]:
                best[o.speculates] = (price_s, o)
        if len(best) < 2:
            return None
        kind = best[True][0] > best[False][0]  # that seems worse
        price_s, dearer = best[kind]
        other_s, _ = best[not kind]
        if price_s == inf or price_s <= other_s or self._looks.hopeless(ask, kind, now):
            return None
        if self.known:
            extra_s = (price_s - other_s) / (1.0 + later)
            return dearer if self._looks.allow(ask, kind, outlooks, extra_s, now) else None
        if self._mute or self._steps.seen(kind) or not self._steps.seen(not kind):
            return None
        runs = any(each.in_flight for each in outlooks if each.speculates is kind)
        return dearer if self._steps.shared or not runs else None

    # -- what becomes of a turn

    def start(
        self, ask: Ask, outlook: Outlook, open_to: Sequence[Outlook], foreseen_s: float, now: float
    ) -> None:  # fmt: skip
        """A turn is about to be booked at one of those, its first token foreseen."""
        self._clocks.start(ask, outlook, open_to, foreseen_s, now)
        self.yields.begin(ask.session, ask.opening)
        if ask.bound is None or ask.claimed is not None:
            kind = outlook.speculates
            self._looks.placed(kind)
            if not self._steps.seen(kind):
                self._blind[kind] += 1

    def tried(self, ask: Ask, kind: bool, outlooks: Sequence[Outlook], now: float) -> None:
        """A trial of that kind was booked: what it may cost is spent."""
        self._looks.begin(ask, kind, outlooks, now)

    def first_token(self, turn: str, now: float) -> None:
        """Its first token has come."""
        self._clocks.first_token(turn, now)

    def end(
        self, model: str, turn: str, tokens: int | None, yielded: float | None, now: float
    ) -> Decoded | None:
        """It is over, having made so many tokens, `yielded` a step; what it tells, if something.
        To be called before the outlook is told."""
        passed = self._clocks.end(turn, now)
        if passed is None or tokens is None or tokens < _LEAST_TOKENS:
            return None
        self._looks.earn(passed.decode_s)
        mark, running, beside = passed.mark, passed.running, passed.beside
        kind = mark.outlook.speculates
        token_s = passed.own_s / (tokens - 1)
        steps = 1.0
        if kind and yielded is not None:
            self._looks.counted = True
            steps = 1.0 / yielded
        elif kind and self._steps.seen(True):
            # An engine that tells nothing: a session that is faster than a step takes fewer.
            step_s = self._steps.step_s(True, running, mark.context)
            if self._steps.shared:
                step_s *= 1.0 + self._steps.waits * beside
            steps = min(1.0, max(_LEAST_STEPS, token_s / step_s))
        elif kind:
            steps = UNKNOWN
        return Decoded(
            model, kind, running, beside, token_s / steps, steps, mark.group, mark.context
        )

    def learn(self, session: str, told: Decoded, now: float) -> None:
        """Some turn, of this router or another, was decoded so."""
        kind = told.speculates
        surprising = kind and self._is_surprise(session, told)
        if kind:
            self.yields.learn(session, told.group, told.steps)
        seen = self.yields.mean(session, told.group)
        self._usual += (seen - self._usual) / (1.0 + self._clocks.crowd)
        self._clocks.tell(told.context)
        self._steps.add(kind, told.running, told.beside, told.step_s, told.context)
        self._looks.heard(kind, surprising=surprising, now=now)

    def _is_surprise(self, session: str, told: Decoded) -> bool:
        """Whether speculating was the faster for a session of which it was not expected."""
        if not self.known:
            return False
        expected = self.yields.mean(session, told.group)
        speculated_s = self._steps.step_s(True, told.running, told.context)
        plain_s = self._steps.step_s(False, told.running, told.context)
        return told.steps * speculated_s < plain_s < expected * speculated_s


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _one_device(outlooks: Sequence[Outlook]) -> bool:
    """Whether both kinds are on one, as their launcher says."""
    plain, speculating = (
        {o.device for o in outlooks if o.speculates is kind} for kind in (False, True)
    )
    return bool((plain & speculating) - {None})
