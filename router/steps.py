"""Seconds a decoding step at replicas that speculate and at those that do not, learned. Pure.

By how many turns run there, and by whether other replicas are busy: those that share a device take
their steps in turn, which is known of the launcher or seen by steps that are longer beside others.
"""

from collections.abc import Iterable
from math import log2
from typing import NamedTuple

import msgspec

_WEIGHT = 0.15  # of what is newest, once enough was seen
_GROWS = {False: 0.007, True: 0.025}
"""By so much a step is longer for each that runs beside, until that is seen: 6.1 to 6.7 ms and 9 to
13 ms were measured for 1 to 16 turns of an 8B model on an H100, without and with n-grams. On a
processor, where nothing waits for memory, it is a hundred times as much."""
_STEEPEST = 100.0  # of a step that is nearly as many times longer as turns run
_STEEPER = 8.0  # times what it was taken to be, at least, is what is seen believed instead
_TOGETHER = 0.3
"""What makes steps longer with so many running, as long prompts do, does with others too: their
seconds change by this power of the change that is seen."""
_WILD = 2.0  # what is so many times off was late for another reason, and counts as so much
_NEW = 1.5
_ROUNDS = 2.0
"""What is first seen with so many running counts as so many times what was foreseen of it at most,
until as many turns as run there have told of it twice: engines compile for a batch of another size
when the first one comes, for seconds."""
_ENOUGH = 3.0  # turns of a kind before it is judged
_SURE = 6.0
_STEP_S = 0.01  # of a replica that does not speculate, before anything was seen
_DEARER = 1.6  # is a step that verifies drafts, before it was seen: 1.5 to 3.2 were measured
_TWICE = 2.0
_LEAST_OWN = 0.25
_SHARED = 1.25  # a step that is so much longer while others are busy shares a device with them
_DOUBLED = 4.0  # turns, by twice as many of which it is seen whether a batch is cheaper
_BESIDE, _ALONE = 0.6, 0.1  # of the time, at least and at most


class _Point(msgspec.Struct):
    weight: float
    running: float
    step_s: float
    rounds: float = 0.0  # of as many turns as run there at once


class At(NamedTuple):
    """A point of a curve: how far from the nearest that was seen, in octaves, and with how many
    running it was seen, or may be taken as seen since it lies between two."""

    step_s: float
    away: float
    running: float


class Curve:
    """Seconds a step by how many run, as points that lie half an octave apart: what is not seen
    any longer changes with what is."""

    def __init__(self) -> None:
        self.points: dict[int, _Point] = {}

    def add(self, running: float, step_s: float, foreseen_s: float | None = None) -> None:
        """A turn decoded at this pace; `foreseen_s` is what others make of it that were seen."""
        point = self.points.get(_place(running))
        if foreseen_s is not None and (point is None or point.rounds < _ROUNDS):
            step_s = min(max(step_s, foreseen_s / _NEW), foreseen_s * _NEW)
        if point is None:
            point = self.points[_place(running)] = _Point(0.0, running, step_s)
        elif point.weight >= _SURE:
            step_s = min(max(step_s, point.step_s / _WILD), point.step_s * _WILD)
        point.weight += 1.0
        point.rounds += 1.0 / max(running, 1.0)
        share = max(1.0 / point.weight, _WEIGHT)
        before_s = point.step_s
        point.running += share * (running - point.running)
        point.step_s += share * (step_s - point.step_s)
        changes = (point.step_s / before_s) ** _TOGETHER if point.weight > _SURE else 1.0
        for other in self.points.values():
            if other is not point:
                other.step_s *= changes

    def beyond(self, running: float) -> At | None:
        """As `at`, by what was seen often with others than about so many."""
        others = Curve()
        others.points = {
            place: point
            for place, point in self.points.items()
            if place != _place(running) and point.weight >= _SURE
        }
        return others.at(running)

    def grows(self) -> float | None:
        """By so much a step is longer for each that runs beside, from the fewest to the most that
        were seen often enough; None where these are less than an octave apart."""
        often = sorted((p for p in self.points.values() if p.weight >= _ENOUGH), key=_running)
        if not often or often[-1].running < 2.0 * often[0].running:
            return None
        few, many = often[0], often[-1]
        longer = many.step_s / few.step_s
        if longer * few.running >= many.running:
            return _STEEPEST
        return (longer - 1.0) / (many.running - longer * few.running)

    def at(self, running: float) -> At | None:
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


class Steps:
    """Of one model, of both kinds of replica: whether it speculates. `one_device` is whether the
    launcher has put both kinds on one."""

    def __init__(self) -> None:
        self.one_device = False
        self._alone = {False: Curve(), True: Curve()}
        self._beside = {False: Curve(), True: Curve()}  # while others were busy
        self._grows = dict(_GROWS)
        self._slower = 1.0  # by so much, while others are
        self._compared = False  # whether that was measured

    def describe(self) -> dict[str, object]:
        """For people: of each kind, by turns running, and how much longer beside busy others."""
        kinds = {"plain": False, "speculating": True}
        steps = {
            name: {f"{point.running:.1f}": point.step_s for point in self._points(kind)}
            for name, kind in kinds.items()
        }
        return {"step_s": steps, "slower_beside": self._slower}

    def _points(self, kind: bool) -> Iterable[_Point]:
        both = self._beside[kind].points | self._alone[kind].points
        return sorted(both.values(), key=_running)

    # -- whether replicas wait for each other

    @property
    def shared(self) -> bool:
        """Whether they do, so that no two should be busy: they share a device, as their launcher
        knows, or as was measured. Where a step grows with what runs, a few processors being too few
        for all replicas, half the turns at each of two are the faster in spite of that."""
        return self.one_device or self._slower > max(_SHARED, self._doubled)

    @property
    def _doubled(self) -> float:
        """By so much a step of twice as many turns is longer."""
        grows = self._grows[False] * _DOUBLED
        return (1.0 + 2.0 * grows) / (1.0 + grows)

    @property
    def waits(self) -> float:
        """By so much of itself a step is longer then."""
        return (self._slower if self._compared else _TWICE) - 1.0

    @property
    def _apart(self) -> bool:
        """Whether it is known that they do not."""
        return self._compared and not self.one_device and self._slower <= _SHARED

    # -- what a step takes

    def seen(self, kind: bool) -> bool:
        """Whether turns enough have told of it."""
        points = (*self._alone[kind].points.values(), *self._beside[kind].points.values())
        return sum(point.weight for point in points) >= _ENOUGH

    @property
    def known(self) -> bool:
        """Whether both kinds have been seen."""
        return self.seen(False) and self.seen(True)

    def step_s(self, speculates: bool, running: float) -> float:
        """Seconds a step of that kind with so many running there and, if replicas wait for each
        other, none elsewhere. Of a kind that was not seen yet it is taken from the other's."""
        dearer = _DEARER if speculates else 1.0 / _DEARER
        for kind, times in ((speculates, 1.0), (not speculates, dearer)):
            seen = self._at(kind, running) if self.seen(kind) else None
            if seen is not None:
                return times * self._grown(kind, seen, running)
        step_s = _STEP_S * (_DEARER if speculates else 1.0)
        return self._grown(speculates, At(step_s, 0.0, 1.0), running)

    def _at(self, kind: bool, running: float) -> At | None:
        alone, beside = self._alone[kind].at(running), self._beside[kind].at(running)
        if beside is None or (alone is not None and (self.shared or alone.away <= beside.away)):
            return alone
        if not self.shared:
            return beside._replace(step_s=beside.step_s / self._slower)
        # Both take their steps in turn: what was seen is one of each.
        other = self._alone[not kind].at(beside.running)
        own_s = beside.step_s - self._grown(not kind, other, beside.running) if other else 0.0
        return beside._replace(step_s=max(own_s, _LEAST_OWN * beside.step_s))

    # -- learning

    def add(self, kind: bool, running: float, beside: float, step_s: float) -> None:
        """A turn decoded so, with so many others busy, in the mean of that time."""
        if beside > _BESIDE:
            curve = self._beside[kind]
        elif beside <= _ALONE or not self.seen(kind) or self._apart:
            curve = self._alone[kind]
        else:
            curve = None
        if curve is not None:
            seen = curve.beyond(running)
            curve.add(running, step_s, None if seen is None else self._grown(kind, seen, running))
        self._learn_growth()
        self._compare()

    def _learn_growth(self) -> None:
        """Where it is seen to be much more. Of a kind that was not seen with few and with many it
        is taken to be as many times more as the other's is."""
        grows = {kind: self._curve(kind).grows() for kind in (False, True)}
        for kind, own in grows.items():
            if own is None:
                own = _GROWS[kind] * (grows[not kind] or 0.0) / _GROWS[not kind]
            steeper = own > _STEEPER * _GROWS[kind]
            self._grows[kind] = min(own, _STEEPEST) if steeper else _GROWS[kind]

    def _curve(self, kind: bool) -> Curve:
        """Of replicas that wait for each other, what was seen beside others is not of one kind."""
        beside, alone = self._beside[kind], self._alone[kind]
        return beside if not self.shared and alone.grows() is None else alone

    def _grown(self, kind: bool, seen: At, running: float) -> float:
        """Seconds a step with so many running, by what was seen with others."""
        grows = self._grows[kind]
        return seen.step_s * (1.0 + grows * running) / (1.0 + grows * seen.running)

    def _compare(self) -> None:
        """By how much a step is longer while other replicas are busy."""
        ratio = weight = 0.0
        for kind in (False, True):
            for point in self._beside[kind].points.values():
                alone = self._alone[kind].at(point.running)
                if alone is None or alone.away > 1.0:
                    continue
                longer = point.step_s / self._grown(kind, alone, point.running)
                if longer > _SHARED and point.running > _SHARED * alone.running:
                    continue  # it may be the larger batch that makes it longer
                share = min(point.weight, _SURE)
                ratio += share * longer
                weight += share
        if weight:
            self._slower = max(1.0, ratio / weight)
            self._compared = weight >= _SURE


def _place(running: float) -> int:
    return round(2.0 * log2(max(running, 1.0)))


def _running(point: _Point) -> float:
    return point.running
