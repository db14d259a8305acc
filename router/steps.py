"""Seconds a decoding step at replicas that speculate and at those that do not, learned. Pure.

By how many turns run there, and by whether other replicas are busy: those that share a device take
their steps in turn, which is known of the launcher or seen by steps that are longer beside others.
"""

from collections.abc import Iterable
from operator import attrgetter

from sessile.router.contexts import Contexts
from sessile.router.curve import ENOUGH, STEEPEST, SURE, At, Curve, Point

_GROWS = {False: 0.007, True: 0.025}
"""By so much a step is longer for each that runs beside, until that is seen: 6.1 to 6.7 ms and 9 to
13 ms were measured for 1 to 16 turns of an 8B model on an H100, without and with n-grams. On a
processor, where nothing waits for memory, it is a hundred times as much."""
_STEEPER = 8.0  # times what it was taken to be, at least, is what is seen believed instead
_STEP_S = 0.01  # of a replica that does not speculate, before anything was seen
_DEARER = 1.6  # is a step that verifies drafts, before it was seen: 1.5 to 3.2 were measured
_TWICE = 2.0
_LEAST_OWN = 0.25
_SHARED = 1.25  # a step that is so much longer while others are busy shares a device with them
_DOUBLED = 4.0  # turns, by twice as many of which it is seen whether a batch is cheaper
_BESIDE, _ALONE = 0.6, 0.1  # of the time, at least and at most


class Steps:
    """Of one model, of both kinds of replica: whether it speculates. `one_device` is whether the
    launcher has put both kinds on one."""

    def __init__(self) -> None:
        self.one_device = False
        self._alone = {False: Curve(), True: Curve()}
        self._beside = {False: Curve(), True: Curve()}  # while others were busy
        self._contexts = {False: Contexts(), True: Contexts()}
        self._grows = dict(_GROWS)
        self._slower = 1.0  # by so much, while others are
        self._compared = False  # whether that was measured

    def describe(self) -> dict[str, object]:
        """For people: of each kind, by turns running, and how much longer beside busy others."""
        kinds = {"plain": False, "speculating": True}
        steps = {
            name: {
                f"{point.running:.1f}": point.step_s * self._contexts[kind].times(point.context)
                for point in self._points(kind)
            }
            for name, kind in kinds.items()
        }
        longer = {name: self._contexts[kind].longer for name, kind in kinds.items()}
        return {"step_s": steps, "longer_a_token": longer, "slower_beside": self._slower}

    def _points(self, kind: bool) -> Iterable[Point]:
        both = self._beside[kind].points | self._alone[kind].points
        return sorted(both.values(), key=attrgetter("running"))

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
        curves = self._alone[kind], self._beside[kind]
        return sum(point.rounds for each in curves for point in each.points.values()) >= ENOUGH

    def heard(self, kind: bool) -> bool:
        """Whether any has."""
        return bool(self._alone[kind].points or self._beside[kind].points)

    def sure(self, kind: bool, running: float) -> bool:
        """Whether what it takes with so many running is known of as many, about, or of more."""
        return self._alone[kind].sure(running) or self._beside[kind].sure(running)

    @property
    def known(self) -> bool:
        """Whether both kinds have been seen."""
        return self.seen(False) and self.seen(True)

    def step_s(self, speculates: bool, running: float, context: float = 0.0) -> float:
        """Seconds a step of that kind with so many running there over so many tokens each and, if
        replicas wait for each other, none elsewhere. Of a kind that was not seen yet it is taken
        from the other's."""
        dearer = _DEARER if speculates else 1.0 / _DEARER
        for kind, times in ((speculates, 1.0), (not speculates, dearer)):
            seen = self._at(kind, running) if self.seen(kind) else None
            if seen is not None:
                times *= self._contexts[kind].times(context)
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

    def add(
        self, kind: bool, running: float, beside: float, step_s: float, context: float = 0.0
    ) -> None:
        """A turn decoded so over so many tokens, with so many other replicas busy, in the mean of
        that time."""
        if self._slowed(kind, running, step_s):
            curve = self._alone[kind]
        elif beside > _BESIDE:
            curve = self._beside[kind]
        elif beside <= _ALONE or not self.seen(kind) or self._apart:
            curve = self._alone[kind]
        else:
            curve = None
        if curve is not None:
            self._learn_context(kind, curve.seen(running), running, step_s, context)
            step_s /= self._contexts[kind].times(context)
            seen = curve.beyond(running)
            foreseen_s = None if seen is None else self._grown(kind, seen, running)
            curve.add(running, step_s, foreseen_s, context)
        self._learn_growth()
        for each in (self._alone[kind], self._beside[kind]):
            each.settle(lambda seen, running: self._grown(kind, seen, running))
        self._compare()

    def _slowed(self, kind: bool, running: float, step_s: float) -> bool:
        """Whether it takes so much less, be it beside others, than was seen alone that something
        else slowed that down."""
        alone = self._alone[kind].at(running) if self.shared else None
        return alone is not None and self._grown(kind, alone, running) > _TWICE * step_s

    def _learn_context(
        self, kind: bool, usual: Point | None, running: float, step_s: float, context: float
    ) -> None:
        if usual is None:
            return
        contexts = self._contexts[kind]
        before = contexts.longer
        times = step_s / (usual.step_s * contexts.times(usual.context))
        contexts.add(context, usual.context, times, running)
        for curve in (self._alone[kind], self._beside[kind]):
            curve.restate(before, contexts.longer)

    def _learn_growth(self) -> None:
        """Where it is seen to be much more. Of a kind that was not seen with few and with many it
        is taken to be as many times more as the other's is."""
        sure = {kind: self._curve(kind).grows() for kind in (False, True)}
        grows = {kind: self._learned(kind, sure) for kind in (False, True)}
        for kind, own in grows.items():
            if own is None:
                own = _GROWS[kind] * (grows[not kind] or 0.0) / _GROWS[not kind]
            steeper = own > _STEEPER * _GROWS[kind]
            self._grows[kind] = min(own, STEEPEST) if steeper else _GROWS[kind]

    def _learned(self, kind: bool, sure: dict[bool, float | None]) -> float | None:
        """What the first with so many tell is not believed where the other kind is known to grow
        little: they may have waited for a compiler, and who believes that does not look again."""
        own, other = sure[kind], sure[not kind]
        if own is None and (other is None or other > _STEEPER * _GROWS[not kind]):
            return self._curve(kind).grows(young=True)
        return own

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
                share = min(point.weight, SURE)
                ratio += share * longer
                weight += share
        if weight:
            self._slower = max(1.0, ratio / weight)
            self._compared = weight >= SURE
