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
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.steps import Steps
from sessile.router.yields import UNKNOWN, Yields

_MOST_BLIND = 8  # sessions begun with a kind that tells nothing
_DEAREST = 4.0  # is a step that verifies drafts at most
_DEAREST_GROWS = 0.06  # a batch has more to verify: 1.6 times a step alone, 3.2 times one of 16
_CANNOT = 2.0  # times that is what no step is
_FASTER = 0.05  # of what decoding takes, at least, must be saved by a move of one session
_WORTH = 1.1  # by so much the other kind must be slower, if all are to move
_WORTH_AMID = 0.07  # by so much more, where all run there: they would move one by one
_FAR = 1.5  # times slower is so far off that it is not tried
_LEAST_TOKENS = 8
_LEAST_STEPS = 0.05  # a token
_OLD_S = 20.0  # what was seen less long ago need not be tried again
_VERY_OLD_S = 600.0  # what was seen so long ago may be of a bad moment, however far off it is
_TRIAL = 0.01
"""Of all decoding so much may be given away for trying the kind that seems worse."""


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
        self._usual = UNKNOWN  # steps a token, of as many turns as run at once
        self._context = 0.0  # of the same
        self._spare_s = 0.0
        self._surprised: bool | None = None
        self._lookers = {False: 0.0, True: 0.0}  # how many more of a moment are to try that kind
        self._counted = False  # whether steps are, and not guessed at by their speed
        self._doubt_s = {False: _OLD_S, True: _OLD_S}  # until what cannot be is looked at again
        self._told_at = {False: 0.0, True: 0.0}  # or when a trial began, which is to tell
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
            every.append(_mean(self.yields.expect(mark.session, mark.group)))
        missing = max(0.0, running - len(every))  # of the crowd: they come in a moment
        mean = (sum(every) + missing * self._usual) / (len(every) + missing)
        steps = {False: 1.0, True: mean}
        # All are decided alike: the context of each turn by itself would split them.
        context = (context_of(ask) + (running - 1.0) * self._context) / running
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
        doubt = self.yields.doubt(ask.session, ask.opening) if home.speculates else 0.0
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
        for kind, (price_s, o) in best.items():
            if price_s == inf:
                return None
            other_s = best[not kind][0]
            if price_s <= other_s:
                continue
            if self._hopeless(kind, ask, now):
                return None
            if self.known:
                extra_s = (price_s - other_s) / (1.0 + later)
                return o if self._may_try(ask, kind, outlooks, extra_s, now) else None
            if not self._steps.seen(not kind) or self._mute:
                return None
            if self._steps.seen(kind):
                return None
            runs = any(each.in_flight for each in outlooks if each.speculates is kind)
            return o if self._steps.shared or not runs else None
        return None

    def _may_try(
        self, ask: Ask, kind: bool, outlooks: Sequence[Outlook], extra_s: float, now: float
    ) -> bool:
        """Whether the kind is worth another look, by a turn that takes so much longer there."""
        crowd = self._clocks.crowd
        together = self._together(ask, kind, outlooks)
        if together and self._lookers[kind] >= 1.0:
            return True
        if self._doubted(kind):
            return now - self._told_at[kind] > self._doubt_s[kind]
        if together:  # all pay for it who come in this moment
            extra_s *= max(1.0, crowd)
        elif self._steps.shared:  # all who run beside it do
            steps = _mean(self.yields.expect(ask.session, ask.opening)) if kind else 1.0
            tried_s = ask.output_tokens * steps * self._steps.step_s(kind, 1.0, context_of(ask))
            extra_s += self._steps.waits * max(0.0, crowd - 1.0) * tried_s
        elif self._surprised is kind:
            return True
        return now - self._told_at[kind] > _OLD_S and extra_s <= self._spare_s

    def _together(self, ask: Ask, kind: bool, outlooks: Sequence[Outlook]) -> bool:
        """Whether a trial is had by all who come in this moment, as none runs at the other kind of
        the same device: by those of whose kinds of agent only the first was heard, each of which it
        tells of, or where it is to tell of a step of as many as they are. That of one would slow
        all down, and be of his kind only."""
        if not self._steps.shared or any(o.in_flight for o in outlooks if o.speculates is not kind):
            return False
        return self._doubted(kind) or (kind and self.yields.once(ask.opening))

    def _doubted(self, kind: bool) -> bool:
        """Whether what is believed of its step cannot be: to verify drafts is dearer than not to,
        and not by more than so much. Something else slowed it down as it was last seen."""
        if not self._counted:
            return False
        crowd = max(self._clocks.crowd, 1.0)
        plain_s = self._steps.step_s(False, crowd, self._context)
        speculated_s = self._steps.step_s(True, crowd, self._context)
        if kind:
            return speculated_s > _CANNOT * _DEAREST * (1.0 + _DEAREST_GROWS * crowd) * plain_s
        return plain_s > speculated_s

    def _hopeless(self, kind: bool, ask: Ask, now: float) -> bool:
        """Whether so much is accepted that not speculating cannot be faster, whatever it costs; or
        is far from it, where its cost is known: that hardly changes, unlike what is accepted."""
        if kind or not self._steps.seen(True):
            return False
        steps, crowd = _mean(self.yields.expect(ask.session, ask.opening)), self._clocks.crowd
        if not self.known:
            return steps * _DEAREST * (1.0 + _DEAREST_GROWS * crowd) < 1.0
        if not self._steps.sure(False, max(crowd, 1.0)) or self._doubted(False):
            return False
        if now - self._told_at[False] > _VERY_OLD_S:
            return False
        context = context_of(ask)
        speculated_s = steps * self._steps.step_s(True, max(crowd, 1.0), context)
        return self._steps.step_s(False, max(crowd, 1.0), context) > _FAR * speculated_s

    # -- what becomes of a turn

    def start(
        self, ask: Ask, outlook: Outlook, open_to: Sequence[Outlook], foreseen_s: float, now: float
    ) -> None:  # fmt: skip
        """A turn is about to be booked at one of those, its first token foreseen."""
        self._clocks.start(ask, outlook, open_to, foreseen_s, now)
        self.yields.begin(ask.session, ask.opening)
        if ask.bound is None or ask.claimed is not None:
            kind = outlook.speculates
            if kind is self._surprised:
                self._surprised = None  # a new session goes there
            if not self._steps.seen(kind):
                self._blind[kind] += 1

    def tried(self, ask: Ask, kind: bool, outlooks: Sequence[Outlook], now: float) -> None:
        """A trial of that kind was booked: what it may cost is spent."""
        together = self._together(ask, kind, outlooks)
        if together and self._lookers[kind] >= 1.0:
            self._lookers[kind] -= 1.0
            return
        if self.known and self._doubted(kind):
            self._doubt_s[kind] *= 2.0
        self._told_at[kind] = now
        self._spare_s = 0.0
        self._surprised = None
        if together:
            self._lookers[kind] = self._clocks.crowd - 1.0

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
        self._spare_s += _TRIAL * passed.decode_s
        mark, running, beside = passed.mark, passed.running, passed.beside
        kind = mark.outlook.speculates
        token_s = passed.own_s / (tokens - 1)
        steps = 1.0
        if kind and yielded is not None:
            self._counted = True
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
        self._told_at[told.speculates] = now
        self._lookers[told.speculates] = 0.0
        if told.speculates:
            if self._is_surprise(session, told):
                self._surprised = True
            self.yields.learn(session, told.group, told.steps)
        seen = _mean(self.yields.expect(session, told.group))
        share = 1.0 / (1.0 + self._clocks.crowd)
        self._usual += share * (seen - self._usual)
        self._context += share * (told.context - self._context)
        self._steps.add(told.speculates, told.running, told.beside, told.step_s, told.context)
        if self.known and not self._doubted(told.speculates):
            self._doubt_s[told.speculates] = _OLD_S

    def _is_surprise(self, session: str, told: Decoded) -> bool:
        """Whether speculating was the faster for a session of which it was not expected."""
        expected = self.yields.expect(session, told.group)
        speculated = self._steps.step_s(True, told.running, told.context)
        plain = self._steps.step_s(False, told.running, told.context)
        return (
            self.known and told.steps * speculated < plain and _mean(expected) * speculated > plain
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _one_device(outlooks: Sequence[Outlook]) -> bool:
    """Whether both kinds are on one, as their launcher says."""
    plain, speculating = (
        {o.device for o in outlooks if o.speculates is kind} for kind in (False, True)
    )
    return bool((plain & speculating) - {None})
