"""What passes at the replicas of a model while a turn decodes: how many run there, how many others
are busy, what others' prefills took of its time, and the most that ran at once. Pure.

NOTE: a prefill is taken to last as long as it is priced to, not until its first token comes: most
of that is waiting, in which the others decode. So each second is counted once, as a price or as a
step, and is the same for both kinds of replica.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from sessile.router.outlook import Outlook
from sessile.router.policy import Ask

_LEAST_SHARE = 0.2  # of its time, that a turn must have decoded if it is to tell anything
_STALLED = 0.5  # at most so much of a turn's decoding was others' prefill
_CROWD_WEIGHT = 0.5  # of the newest turn


class _Clock(msgspec.Struct):
    """What has passed at a replica: turns times seconds, seconds in which any ran, and those that
    its prefills took of the decoding."""

    at: float
    turns: float = 0.0
    busy: float = 0.0
    prefill: float = 0.0


class _Peak(NamedTuple):
    """So many ran at once, and fewer ever since."""

    at: float
    running: int


class Mark(msgspec.Struct):
    """A turn under way: the clocks as its decoding began."""

    outlook: Outlook
    session: str
    group: int
    context: float
    at: float
    turns: float
    busy: float
    prefill: float
    foreseen_s: float = 0.0  # until its first token, as long as that has not come


class Passed(msgspec.Struct, frozen=True):
    """What a turn met: seconds of decoding, and of these without the prefills of others; `running`
    and `beside` are means, of the turns there and of the other replicas that were busy."""

    mark: Mark
    decode_s: float
    own_s: float
    running: float
    beside: float


class Clocks:
    """Of one model. `crowd` is the most that run at once: a mean over the turns of late, so that it
    is kept over any pause and is as fast as the model is. `context` is the mean of that many turns
    of late, in tokens."""

    def __init__(self) -> None:
        self.crowd = 0.0
        self.context = 0.0
        self._clocks: dict[str, _Clock] = {}
        self._outlooks: dict[str, Outlook] = {}
        self._turns: dict[str, Mark] = {}
        self._peaks: list[_Peak] = []

    def under_way(self) -> Iterator[Mark]:
        """The turns that run."""
        yield from self._turns.values()

    def start(
        self, ask: Ask, outlook: Outlook, open_to: Sequence[Outlook],
        foreseen_s: float, now: float,
    ) -> None:  # fmt: skip
        """A turn is about to be booked at one of those, its first token foreseen."""
        if not all(o.id in self._outlooks for o in open_to) or len(self._outlooks) > len(open_to):
            self._watch(open_to, now)
        self._mark(ask.turn, outlook, ask.session, ask.opening, context_of(ask), now, foreseen_s)

    def first_token(self, turn: str, now: float) -> None:
        """Its first token has come."""
        mark = self._turns.get(turn)
        if mark is not None:
            self._computed(turn, mark.outlook)
            self._mark(turn, mark.outlook, mark.session, mark.group, mark.context, now)

    def end(self, turn: str, now: float) -> Passed | None:
        """It is over; None if it has hardly decoded. To be called before its outlook is told."""
        mark = self._turns.pop(turn, None)
        if mark is None:
            return None
        busy = self._tick(now, mark.outlook.id)
        most = self._peaks[bisect_left(self._peaks, mark.at, key=_at)].running
        self.crowd += _CROWD_WEIGHT * (most - self.crowd)
        passed_s = now - mark.at
        decode_s = passed_s - mark.foreseen_s
        if decode_s <= _LEAST_SHARE * passed_s:
            return None
        clock = self._clocks[mark.outlook.id]
        stalled_s = min(clock.prefill - mark.prefill, _STALLED * decode_s)
        running = max(1.0, (clock.turns - mark.turns) / passed_s)
        return Passed(mark, decode_s, decode_s - stalled_s, running, (busy - mark.busy) / passed_s)

    def tell(self, context: float) -> None:
        """A turn, of this router or another, was decoded over so many tokens."""
        self.context += (context - self.context) / (1.0 + self.crowd)

    def _mark(
        self, turn: str, outlook: Outlook, session: str, group: int, context: float, now: float,
        foreseen_s: float = 0.0,
    ) -> None:  # fmt: skip
        busy = self._tick(now, outlook.id)
        clock = self._clocks[outlook.id]
        self._turns[turn] = Mark(
            outlook, session, group, context, now, clock.turns, busy, clock.prefill, foreseen_s
        )

    def _computed(self, turn: str, outlook: Outlook) -> None:
        """The others there waited for so long."""
        run = outlook.runs.get(turn)
        if run is not None:
            self._clocks[outlook.id].prefill += outlook.rates.slope_s * run.work

    def _watch(self, open_to: Sequence[Outlook], now: float) -> None:
        """These are there now; those that have gone are kept while a turn runs there."""
        self._tick(now, "")
        there = {mark.outlook.id: mark.outlook for mark in self._turns.values()}
        self._outlooks = there | {o.id: o for o in open_to}
        self._clocks = {name: self._clocks.get(name) or _Clock(now) for name in self._outlooks}

    def _tick(self, now: float, here: str) -> float:
        """Let all clocks go on to now; returns the busy seconds of all replicas but one."""
        busy, running = 0.0, 0
        for name, outlook in self._outlooks.items():
            clock = self._clocks[name]
            running += outlook.in_flight
            clock.turns += outlook.in_flight * (now - clock.at)
            clock.busy += (now - clock.at) if outlook.in_flight else 0.0
            clock.at = now
            if name != here:
                busy += clock.busy
        while self._peaks and self._peaks[-1].running <= running:
            self._peaks.pop()
        self._peaks.append(_Peak(now, running))
        self.crowd = max(self.crowd, running)
        return busy


def context_of(ask: Ask) -> float:
    """The tokens before each of its own, in the mean."""
    return ask.prompt_tokens + 0.5 * ask.output_tokens


def _at(peak: _Peak) -> float:
    return peak.at
