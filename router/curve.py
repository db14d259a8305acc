"""Seconds a decoding step by how many turns run, as points that are learned. Pure."""

from collections.abc import Callable
from math import log2
from typing import NamedTuple

import msgspec

_WEIGHT = 0.15  # of what is newest, once enough was seen
_SOON = 0.5  # of it, where it is much faster: what disturbs a turn makes it slower only
_AT_ONCE = 2.0  # is faster by so much that what was believed is of another time
STEEPEST = 100.0  # of a step that is nearly as many times longer as turns run
_TOGETHER = 0.3
"""What makes steps longer with so many running, as long prompts do, does with others too: their
seconds change by this power of the change that is seen."""
_WILD = 2.0  # what is so many times off was late for another reason, and counts as so much
_NEW = 1.5
_ROUNDS = 2.0
"""What is first seen with so many running counts as so many times what others foresee of it at
most, until as many turns as run there have told of it twice: engines compile for a batch of another
size when the first one comes, for seconds. A turn that is by as much faster, then, tells that those
before it waited for that."""
ENOUGH = 3.0  # rounds of a kind before it is judged, turns of a point before it judges others
SURE = 6.0


class Point(msgspec.Struct):
    """What was seen with about so many running. `step_s` is without what `context` adds to it."""

    weight: float
    running: float
    step_s: float
    rounds: float = 0.0  # of as many turns as run there at once
    context: float = 0.0  # of these turns, in tokens

    @property
    def young(self) -> bool:
        """Whether it may still be of turns that waited for an engine that compiled."""
        return self.rounds < _ROUNDS


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
        self.points: dict[int, Point] = {}

    def add(
        self, running: float, step_s: float, foreseen_s: float | None = None, context: float = 0.0
    ) -> None:
        """A turn decoded at this pace; `foreseen_s` is what others make of it that were seen."""
        point = self.points.get(_place(running))
        young = point is None or point.young
        if young and foreseen_s is not None:
            step_s = _within(_NEW, step_s, foreseen_s)
        if point is None:
            point = self.points[_place(running)] = Point(0.0, running, step_s)
        elif young and step_s * _NEW < point.step_s:
            point.weight = 0.0
        elif point.weight >= SURE:
            step_s = min(step_s, _WILD * point.step_s)
        point.weight += 1.0
        point.rounds += 1.0 / max(running, 1.0)
        share = max(1.0 / point.weight, _WEIGHT, _sooner(point.step_s / step_s))
        before_s = point.step_s
        point.running += share * (running - point.running)
        point.context += share * (context - point.context)
        point.step_s += share * (step_s - point.step_s)
        changes = (point.step_s / before_s) ** _TOGETHER if point.weight > SURE else 1.0
        for other in self.points.values():
            if other is not point:
                other.step_s *= changes

    def settle(self, grown: Callable[[At, float], float]) -> None:
        """Believe of the points that are young what others foresee by now; `grown` is what a point
        makes of another number."""
        for point in self.points.values():
            seen = self.beyond(point.running) if point.young else None
            if seen is not None:
                point.step_s = _within(_NEW, point.step_s, grown(seen, point.running))

    def restate(self, before: float, after: float) -> None:
        """A token of context is believed to make a step longer by so much, no more by as much as
        before: what was seen stays."""
        for point in self.points.values():
            point.step_s *= (1.0 + before * point.context) / (1.0 + after * point.context)

    def seen(self, running: float) -> Point | None:
        """The point of about so many running."""
        return self.points.get(_place(running))

    def sure(self, running: float) -> bool:
        """Whether half as many at least, or more, were seen often."""
        return any(not p.young and running <= 2.0 * p.running for p in self.points.values())

    def beyond(self, running: float) -> At | None:
        """As `at`, by what was seen often with others than about so many."""
        others = Curve()
        others.points = {
            place: point
            for place, point in self.points.items()
            if place != _place(running) and point.weight >= ENOUGH and not point.young
        }
        return others.at(running)

    def grows(self, *, young: bool = False) -> float | None:
        """By so much a step is longer for each that runs beside, from the fewest to the most that
        were seen often enough; None where these are less than an octave apart."""
        often = [p for p in self.points.values() if p.weight >= ENOUGH and (young or not p.young)]
        often.sort(key=_running)
        if not often or often[-1].running < 2.0 * often[0].running:
            return None
        few, many = often[0], often[-1]
        longer = many.step_s / few.step_s
        if longer * few.running >= many.running:
            return STEEPEST
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


def _place(running: float) -> int:
    return round(2.0 * log2(max(running, 1.0)))


def _sooner(faster: float) -> float:
    """The weight of what is so many times faster, whatever else was seen."""
    if faster < _NEW:
        return 0.0
    return _SOON if faster < _AT_ONCE else 1.0


def _within(times: float, step_s: float, of_s: float) -> float:
    return min(max(step_s, of_s / times), of_s * times)


def _running(point: Point) -> float:
    return point.running
