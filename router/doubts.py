"""Whether a replica that says it is healthy serves turns, as far as its turns tell. Pure.

Health and a list of models may be told by a process that has lost its engine. Here is only the
doubt: turns in a row that came to nothing, or one that waits in silence, while the replica reports
nothing that it computes. A trial settles it (`router.trial`); nothing else takes such a replica
out, or lets it in again.
"""

import msgspec

_FAILED = 2  # in a row, with no answer begun in between
_PATIENCE = 3.0  # times the first token that was foreseen, where that is longer than the limit
_WHOLE = 2.0  # times as long for an answer that comes in one piece: it is silent while it is made
_NOT_THE_TURNS = (401, 403, 429)  # refusals that are not of what was asked


class Waiting(msgspec.Struct, frozen=True):
    """A turn that was sent and has not been answered: what, when, with which first token, and
    whether its answer comes as a whole."""

    path: str
    model: str
    sent_at: float
    foreseen_s: float
    whole: bool = False


class Doubts:
    """What speaks against one replica. Lives as long as the replica."""

    def __init__(self) -> None:
        self.refused: str | None = None
        """Why a trial took it out; None while it may serve."""
        self.well_at = 0.0
        """When an answer of its last went on after its beginning, or ended well."""
        self.worked_at = 0.0
        """When a report of its load last showed that it computes."""
        self.last: Waiting | None = None
        """The turn that gave rise to doubt, which a trial is to resemble."""
        self._begun_at = 0.0
        self._waiting: dict[str, Waiting] = {}
        self._failed_at: list[float] = []

    @property
    def heard_at(self) -> float:
        """When it last said something of an answer."""
        return max(self._begun_at, self.well_at)

    def reset(self) -> None:
        """The replica was started anew: nothing speaks against it yet."""
        self.refused = None
        self._failed_at.clear()

    def sent(self, turn: str, waiting: Waiting) -> None:
        """The turn is under way there; `answered`, `failed` or `left` ends that."""
        self._waiting[turn] = waiting

    def answered(self, turn: str, status: int, now: float) -> None:
        """The turn's answer has begun, with this status. That alone is no good sign: a stream may
        begin, and then tell of an error."""
        if not serves(status):
            self.failed(turn, now)
            return
        self._waiting.pop(turn, None)
        self._begun_at = now

    def failed(self, turn: str, now: float) -> None:
        """The turn came to nothing there."""
        if (waiting := self._waiting.pop(turn, None)) is not None:
            self.last = waiting
        self._failed_at.append(now)
        del self._failed_at[:-_FAILED]

    def left(self, turn: str) -> None:
        """Nobody waits for the turn any more."""
        self._waiting.pop(turn, None)

    def doubted(self, now: float, silent_s: float) -> bool:
        """Whether a trial is due: it says nothing for half of its patience while a turn waits,
        which leaves the other half to the trial, or the last turns have failed."""
        if len(self._failed_at) == _FAILED and self._failed_at[0] > self.well_at:
            return True
        for waiting in self._waiting.values():
            silence_s = now - max(waiting.sent_at, self.heard_at, self.worked_at)
            if silence_s > patience_s(waiting, silent_s) / 2:
                self.last = waiting
                return True
        return False

    def alive(self, since: float, *, silent: bool) -> bool:
        """Whether it has shown life since: by a word of some answer or, where a trial met nothing
        but silence, by what it computes."""
        return self.heard_at > since or (silent and self.worked_at > since)

    def settled(self, now: float) -> None:
        """A trial was answered."""
        self.reset()
        self.well_at = now


def patience_s(waiting: Waiting | None, silent_s: float) -> float:
    """How long such a turn may wait in silence, the time of a trial included."""
    if waiting is None:
        return silent_s
    return max(silent_s * (_WHOLE if waiting.whole else 1.0), _PATIENCE * waiting.foreseen_s)


def serves(status: int) -> bool:
    """Whether an answer of this status shows that turns are served, be it by refusing this one."""
    return status < 500 and status not in _NOT_THE_TURNS
