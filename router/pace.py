"""What decoding would take at replicas that speculate and at those that do not, learned. Pure.

    seconds a token = seconds a step, with so many running there / tokens that a step yields

A step's seconds are of the replica's kind, the tokens that it yields of the session (`yields`):
one, where nothing is speculated. Both are measured of every turn, so no engine has to be known.
A pace exists only for a model some of whose replicas speculate and some do not; then `weigh` is
what `scheduler` adds to its prices.
"""

from collections.abc import Sequence
from math import inf, log2
from typing import Any, NamedTuple

import msgspec

from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.yields import UNKNOWN, Yields

_WEIGHT = 0.15  # of what is newest, once enough was seen
_GROWS = {False: 0.007, True: 0.025}
"""By so much a step is longer for each that runs beside, until that is seen: 6.1 to 6.7 ms and 9 to
13 ms were measured for 1 to 16 turns of an 8B model on an H100, without and with n-grams."""
_WILD = 2.0  # what is so many times off was late for another reason, and counts as so much
_ENOUGH = 3.0  # turns of a kind before it is judged
_SURE = 6.0
_TWICE = 2.0
_LEAST_OWN = 0.25
_SHARED = 1.25  # a step that is so much longer while others are busy shares a device with them
_MOST_BLIND = 8  # sessions begun with a kind that tells nothing
_STEP_S = 0.01  # of a replica that does not speculate, before anything was seen
_DEARER = 1.6  # is a step that verifies drafts, before it was seen: 1.5 to 3.2 were measured
_DEAREST = 4.0
_DEAREST_GROWS = 0.06  # a batch has more to verify: 1.6 times a step alone, 3.2 times one of 16
_WORTH = 1.03  # by so much the other kind must be slower, if all are to move
_LATE = 3.0  # a first token that takes so many times as long as foreseen is not told, perhaps
_STALLED = 0.7  # at most so much of a turn's decoding was others' prefill
_BESIDE, _ALONE = 0.6, 0.1  # of the time, at least and at most
_LEAST_TOKENS = 8
_LEAST_STEPS = 0.05  # a token
_SURPRISE = 0.8  # of the steps that were expected of a token
_CROWD_S = 5.0
_OLD_S = 20.0  # what was seen less long ago need not be tried again
_TRIAL = 0.01
"""Of all decoding so much may be given away for trying the kind that seems worse."""


class Decoded(msgspec.Struct, frozen=True, array_like=True):
    """How a turn was decoded: `running` and `beside` are means over that time, of the turns there
    and of how many other replicas were busy; `steps` is those of a token."""

    model: str
    speculates: bool
    running: float
    beside: float
    step_s: float
    steps: float
    group: int = 0


class _Point(msgspec.Struct):
    weight: float
    running: float
    step_s: float


class Curve:
    """Seconds a step by how many run, as points that lie half an octave apart: what is not seen
    any longer keeps its value."""

    def __init__(self) -> None:
        self.points: dict[int, _Point] = {}

    def add(self, running: float, step_s: float) -> None:
        """A turn decoded at this pace."""
        point = self.points.setdefault(_place(running), _Point(0.0, running, step_s))
        if point.weight >= _SURE:
            step_s = min(max(step_s, point.step_s / _WILD), point.step_s * _WILD)
        point.weight += 1.0
        share = max(1.0 / point.weight, _WEIGHT)
        point.running += share * (running - point.running)
        point.step_s += share * (step_s - point.step_s)

    def at(self, running: float) -> "At | None":
        """What is seen with so many running, or nearest to that."""
        below = above = None
        for place in sorted(self.points):
            point = self.points[place]
            if point.running <= running:
                below = point
            elif above is None:
                above = point
        if below is None or above is None:
            end = below or above
            if end is None:
                return None
            return At(end.step_s, abs(log2(end.running / running)), end.running)
        near = min(running / below.running, above.running / running)
        share = (running - below.running) / (above.running - below.running)
        return At(below.step_s + share * (above.step_s - below.step_s), log2(near), running)


class At(NamedTuple):
    """A point of a curve: how far from the nearest that was seen, in octaves, and with how many
    running it was seen, or may be taken as seen since it lies between two."""

    step_s: float
    away: float
    running: float


class _Clock(msgspec.Struct):
    """What has passed at a replica: turns times seconds, seconds in which any ran, and those in
    which one waited for its first token, so that the others did not decode."""

    at: float
    turns: float = 0.0
    busy: float = 0.0
    prefill: float = 0.0
    until: float = 0.0  # a prefill may go on there


class _Mark(msgspec.Struct):
    """A turn under way: the clocks as its decoding began."""

    outlook: Outlook
    session: str
    group: int
    at: float
    turns: float
    busy: float
    prefill: float
    foreseen_s: float = 0.0  # until its first token, as long as that has not come


class Pace:
    """Of one model. Made by the scheduler, with the first turn that could choose."""

    def __init__(self) -> None:
        self.yields = Yields()
        self._alone = {False: Curve(), True: Curve()}  # by whether it speculates
        self._beside = {False: Curve(), True: Curve()}  # while others were busy
        self._slower = 1.0  # by so much, while others are
        self._compared = False  # whether that was measured
        self._one_device = False
        self._crowd = 0.0  # the most that ran at once of late
        self._clocks: dict[str, _Clock] = {}
        self._outlooks: dict[str, Outlook] = {}
        self._turns: dict[str, _Mark] = {}
        self._spare_s = 0.0
        self._surprised: bool | None = None
        self._told_at = {False: 0.0, True: 0.0}
        self._blind = {False: 0, True: 0}  # sessions begun with a kind that has told nothing yet

    def describe(self) -> dict[str, Any]:
        """What is believed, for people: seconds a step by turns running, and tokens a step."""
        kinds = {"plain": self._alone[False], "speculating": self._alone[True]}
        besides = {"plain": self._beside[False], "speculating": self._beside[True]}
        steps = {
            name: {
                f"{point.running:.1f}": point.step_s
                for point in sorted((besides[name].points | curve.points).values(), key=_running)
            }
            for name, curve in kinds.items()
        }
        return {
            "step_s": steps, "slower_beside": self._slower, "tokens_per_step": self.yields.typical()
        }  # fmt: skip

    @property
    def _shares(self) -> bool:
        """Whether the replicas wait for each other: they share a device, as was measured, or as
        their launcher knows."""
        if not self._compared and self._one_device:
            return True
        return self._slower > _SHARED

    @property
    def _waits(self) -> float:
        """By so much of itself a step is longer then."""
        return (self._slower if self._compared else _TWICE) - 1.0

    @property
    def _mute(self) -> bool:
        """Whether a kind was used and has told nothing."""
        return any(
            self._blind[kind] >= _MOST_BLIND and not self._seen(kind) for kind in (False, True)
        )

    @property
    def _apart(self) -> bool:
        """Whether it is known that they do not."""
        return self._compared and not self._shares

    # -- what would be

    @property
    def known(self) -> bool:
        """Whether both kinds have been seen."""
        return self._seen(False) and self._seen(True)

    def step_s(self, speculates: bool, running: float) -> float:
        """Seconds a step of that kind with so many running there and, if replicas wait for each
        other, none elsewhere. Of a kind that was not seen yet it is taken from the other's."""
        dearer = _DEARER if speculates else 1.0 / _DEARER
        for kind, times in ((speculates, 1.0), (not speculates, dearer)):
            seen = self._at(kind, running) if self._seen(kind) else None
            if seen is not None:
                return times * _grown(kind, seen, running)
        step_s = _STEP_S * (_DEARER if speculates else 1.0)
        return _grown(speculates, At(step_s, 0.0, 1.0), running)

    def _at(self, kind: bool, running: float) -> At | None:
        alone, beside = self._alone[kind].at(running), self._beside[kind].at(running)
        if beside is None or (alone is not None and (self._shares or alone.away <= beside.away)):
            return alone
        if not self._shares:
            return beside._replace(step_s=beside.step_s / self._slower)
        # Both take their steps in turn: what was seen is one of each.
        other = self._alone[not kind].at(beside.running)
        own_s = beside.step_s - _grown(not kind, other, beside.running) if other else 0.0
        return beside._replace(step_s=max(own_s, _LEAST_OWN * beside.step_s))

    def weigh(
        self, ask: Ask, outlooks: Sequence[Outlook], later: float, prefill_tokens: float
    ) -> dict[str, float]:
        """Seconds that decoding the turn, and the `later` ones of its session, takes at each, and
        costs the others there; all alike where a kind tells nothing. `prefill_tokens` are those
        that all these turns will compute, about."""
        if self._mute:
            return {o.id: 0.0 for o in outlooks}
        costs = self._weigh(ask, outlooks, later, prefill_tokens)
        if ask.bound is not None and not self.known:  # nobody moves on a guess
            here = costs.get(ask.bound.replica, 0.0)
            costs = {name: max(cost_s, here) for name, cost_s in costs.items()}
        return costs

    def _weigh(
        self, ask: Ask, outlooks: Sequence[Outlook], later: float, prefill_tokens: float
    ) -> dict[str, float]:
        rates = self.yields.expect(ask.session, group_of(ask))
        if self._shares:
            return self._weigh_together(ask, outlooks, later, prefill_tokens, rates)
        steps_s = [self.step_s(o.speculates, o.in_flight + 1) for o in outlooks]
        pairs = list(zip(outlooks, steps_s, strict=True))
        plain = min((step_s for o, step_s in pairs if not o.speculates), default=inf)
        speculated = min((step_s for o, step_s in pairs if o.speculates), default=inf)
        mean = sum(rates) / len(rates)
        # Of a session that is not known yet, its first turn at a replica that speculates tells
        # where its later ones are faster.
        best_s = sum(min(rate * speculated, plain) for rate in rates) / len(rates)
        costs: dict[str, float] = {}
        for o, step_s in pairs:
            before_s = self.step_s(o.speculates, max(o.in_flight, 1))
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
        running = max(here, self._crowd)
        every = [sum(rates) / len(rates)]
        for mark in self._turns.values():
            known = self.yields.expect(mark.session, mark.group)
            every.append(sum(known) / len(known))
        steps = {False: 1.0, True: sum(every) / len(every)}
        tokens = ask.output_tokens * (1.0 + later)
        cost_s = {
            kind: tokens * steps[kind] * self.step_s(kind, running + 1) for kind in (False, True)
        }
        most = 2 * sum(o.in_flight for o in outlooks if o.speculates) > here
        stray = cost_s[True] > cost_s[False]  # the kind that is slower for all of them
        if stray is most and here and cost_s[stray] < _WORTH * cost_s[not stray]:
            stray = not stray
        cost_s[stray] += self._waits * here * cost_s[not stray]
        held_up = sum(o.others for o in outlooks)
        return {
            o.id: cost_s[o.speculates] + o.rates.slope_s * prefill_tokens * (held_up - o.others)
            for o in outlooks
        }

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
            if self.known:
                old = now - self._told_at[kind] > _OLD_S
                cost_s = (price_s - other_s) / (1.0 + later)
                if self._shares:  # all who come meanwhile pay for it
                    turn_s = ask.output_tokens * self.step_s(False, self._crowd + 1)
                    cost_s += self._waits * self._crowd * turn_s
                return o if self._surprised is kind or (old and cost_s <= self._spare_s) else None
            if not self._seen(not kind) or self._mute or self._hopeless(kind, ask):
                return None
            runs = any(mark.outlook.speculates is kind for mark in self._turns.values())
            return None if runs or self._seen(kind) else o
        return None

    def _hopeless(self, kind: bool, ask: Ask) -> bool:
        """Whether so much is accepted that not speculating cannot be faster, whatever it costs."""
        if kind or not self._seen(True):
            return False
        rates = self.yields.expect(ask.session, group_of(ask))
        return sum(rates) / len(rates) * _DEAREST * (1.0 + _DEAREST_GROWS * self._crowd) < 1.0

    # -- what becomes of a turn

    def start(
        self, ask: Ask, outlook: Outlook, open_to: Sequence[Outlook], foreseen_s: float, now: float
    ) -> None:  # fmt: skip
        """A turn is about to be booked at one of those, its first token foreseen."""
        if not all(o.id in self._outlooks for o in open_to) or len(self._outlooks) > len(open_to):
            self._watch(open_to, now)
        self._mark(ask.turn, outlook, ask.session, group_of(ask), now, foreseen_s)
        if _is_new(ask):
            kind = outlook.speculates
            if kind is self._surprised:
                self._surprised = None  # a new session goes there
            if not self._seen(kind):
                self._blind[kind] += 1
        clock = self._clocks[outlook.id]
        clock.until = max(clock.until, now + _LATE * foreseen_s)

    def tried(self) -> None:
        """A trial was booked: what it may cost is spent."""
        self._spare_s = 0.0
        self._surprised = None

    def first_token(self, turn: str, now: float) -> None:
        """Its first token has come."""
        mark = self._turns.get(turn)
        if mark is not None:
            self._mark(turn, mark.outlook, mark.session, mark.group, now)

    def end(
        self, model: str, turn: str, tokens: int | None, yielded: float | None, now: float
    ) -> Decoded | None:
        """It is over, having made so many tokens, `yielded` a step; what it tells, if something.
        To be called before the outlook is told."""
        mark = self._turns.pop(turn, None)
        if mark is None:
            return None
        busy = self._tick(now, mark.outlook.id)
        outlook = mark.outlook
        passed_s = now - mark.at
        decode_s = passed_s - mark.foreseen_s
        if tokens is None or tokens < _LEAST_TOKENS or decode_s <= 0.2 * passed_s:
            return None
        clock = self._clocks[outlook.id]
        stalled_s = min(clock.prefill - mark.prefill, _STALLED * decode_s)
        token_s = (decode_s - stalled_s) / (tokens - 1)
        self._spare_s += _TRIAL * decode_s
        running = max(1.0, (clock.turns - mark.turns) / passed_s)
        beside = (busy - mark.busy) / passed_s
        steps = 1.0
        if outlook.speculates and yielded is not None:
            steps = 1.0 / yielded
        elif outlook.speculates and self._seen(True):
            # An engine that tells nothing: a session that is faster than a step takes fewer.
            step_s = self.step_s(True, running)
            if self._shares:
                step_s *= 1.0 + self._waits * beside
            steps = min(1.0, max(_LEAST_STEPS, token_s / step_s))
        elif outlook.speculates:
            steps = UNKNOWN
        return Decoded(
            model, outlook.speculates, running, beside, token_s / steps, steps, mark.group
        )

    def learn(self, session: str, told: Decoded, now: float) -> None:
        """Some turn, of this router or another, was decoded so."""
        self._told_at[told.speculates] = now
        kind = told.speculates
        if told.beside > _BESIDE:
            self._beside[kind].add(told.running, told.step_s)
        elif told.beside <= _ALONE or not self._seen(kind) or self._apart:
            self._alone[kind].add(told.running, told.step_s)
        if told.speculates:
            expected = self.yields.expect(session, told.group)
            if self.yields.typical() and told.steps < _SURPRISE * sum(expected) / len(expected):
                self._surprised = True
            self.yields.learn(session, told.group, told.steps)
        self._compare()

    def _seen(self, kind: bool) -> bool:
        points = (*self._alone[kind].points.values(), *self._beside[kind].points.values())
        return sum(point.weight for point in points) >= _ENOUGH

    def _compare(self) -> None:
        """By how much a step is longer while other replicas are busy."""
        ratio = weight = 0.0
        for kind in (False, True):
            for point in self._beside[kind].points.values():
                alone = self._alone[kind].at(point.running)
                if alone is not None and alone.away <= 1.0:
                    share = min(point.weight, _SURE)
                    ratio += share * point.step_s / _grown(kind, alone, point.running)
                    weight += share
        if weight:
            self._slower = max(1.0, ratio / weight)
            self._compared = weight >= _SURE

    def _mark(
        self, turn: str, outlook: Outlook, session: str, group: int, now: float,
        foreseen_s: float = 0.0,
    ) -> None:  # fmt: skip
        busy = self._tick(now, outlook.id)
        clock = self._clocks[outlook.id]
        self._turns[turn] = _Mark(
            outlook, session, group, now, clock.turns, busy, clock.prefill, foreseen_s
        )

    def _watch(self, open_to: Sequence[Outlook], now: float) -> None:
        """These are there now; those that have gone are kept while a turn runs there."""
        self._tick(now, "")
        there = {mark.outlook.id: mark.outlook for mark in self._turns.values()}
        self._outlooks = there | {o.id: o for o in open_to}
        devices = [{o.device for o in open_to if o.speculates is kind} for kind in (False, True)]
        self._one_device = bool((devices[0] & devices[1]) - {None})
        self._clocks = {name: self._clocks.get(name) or _Clock(now) for name in self._outlooks}

    def _tick(self, now: float, here: str) -> float:
        """Let all clocks go on to now; returns the busy seconds of all replicas but one."""
        busy = crowd = passed_s = 0.0
        for name, outlook in self._outlooks.items():
            clock = self._clocks[name]
            running = outlook.in_flight
            crowd += running
            passed_s = max(passed_s, now - clock.at)
            clock.turns += running * (now - clock.at)
            clock.busy += (now - clock.at) if running else 0.0
            if outlook.computes and clock.at < clock.until:
                clock.prefill += min(now, clock.until) - clock.at
            clock.at = now
            if name != here:
                busy += clock.busy
        if crowd:  # while nothing runs nothing is told of how many will
            self._crowd = max(crowd, self._crowd * _CROWD_S / (_CROWD_S + passed_s))
        return busy


def group_of(ask: Ask) -> int:
    """Sessions that begin alike, with the same system prompt, are of one kind of agent."""
    return ask.blocks[0] if ask.blocks else 0


def _is_new(ask: Ask) -> bool:
    return ask.bound is None or ask.claimed is not None


def _grown(kind: bool, seen: At, running: float) -> float:
    """Seconds a step with so many running, by what was seen with others."""
    grows = _GROWS[kind]
    return seen.step_s * (1.0 + grows * running) / (1.0 + grows * seen.running)


def _place(running: float) -> int:
    return round(2.0 * log2(max(running, 1.0)))


def _running(point: _Point) -> float:
    return point.running
