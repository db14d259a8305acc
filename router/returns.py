"""When a session that pauses will be back, and how long its KV memory is worth keeping. Pure.

Learned for each class of pause, which is the name of the tool that the session waits for, from a
prior that holds for agents at large: 86 % are back within 1 s, 95 % within 10 s. The rate of return
(the hazard) is what counts: of a pause that has lasted ten seconds little is to be expected.
"""

from bisect import bisect_right
from math import inf

_EDGES_S = (0.0, 0.5, 1.0, 2.0, 4.0, 10.0, 30.0, 60.0, 600.0)
_ENDS_S = (*_EDGES_S[1:], inf)
_PRIOR_RATE = (1.97, 1.97, 0.17, 0.12, 0.1, 0.02, 0.01, 0.002, 0.0002)  # returns a second in each
_PRIOR_WEIGHT = 2.0  # returns that the prior is worth, in each stretch
_WORTH_RATE = 0.03  # below one return in half a minute nothing is kept for it
_MOST_CLASSES = 1_000
_WORTH_EVERY = 32  # observations
_SHARE_WEIGHT = 0.02


class Returns:
    """Pauses of all sessions of one router. Bounded: beyond 1,000 classes, new ones share one."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, float]]] = {}
        self._worth: dict[str, float] = {}  # of late
        self._observed = 0
        self.share = 1.0
        """Of the sessions that have paused, the share that came back; newer ones weigh more."""

    def count(self, returned: bool) -> None:
        """A pause has come to its end, or was given up."""
        self.share += _SHARE_WEIGHT * (returned - self.share)

    def observe(self, kind: str, since_s: float, until_s: float, returned: bool) -> None:
        """Of a pause of that kind, this stretch of its time has passed; then it ended, or not."""
        seen = self._stretches(kind)
        self._observed += 1
        if self._observed % _WORTH_EVERY == 0:
            self._worth.clear()
        for index in range(_stretch(since_s), _stretch(until_s) + 1):
            end = _ENDS_S[index]
            back, exposed_s = seen[index]
            passed_s = max(0.0, min(until_s, end) - max(since_s, _EDGES_S[index]))
            seen[index] = (back + (returned and until_s < end), exposed_s + passed_s)

    def rate(self, kind: str, elapsed_s: float) -> float:
        """Returns a second to be expected of a pause of that kind that has lasted so long."""
        back, exposed_s = self._seen.get(kind, _PRIOR)[_stretch(elapsed_s)]
        return back / exposed_s

    def worth_s(self, kind: str) -> float:
        """How long a pause of that kind is worth waiting for, if nobody needs the memory."""
        worth = self._worth.get(kind)
        if worth is None:
            worth = self._worth[kind] = self._worth_s(kind)
        return worth

    def _worth_s(self, kind: str) -> float:
        # Up to the end of the last stretch in which enough return: tests that always take twenty
        # seconds are worth the first ten, too.
        worth = 0.0
        for index, start in enumerate(_EDGES_S):
            if self.rate(kind, start) >= _WORTH_RATE:
                worth = _ENDS_S[index] if _ENDS_S[index] < inf else start
        return worth

    def _stretches(self, kind: str) -> list[tuple[float, float]]:
        if kind not in self._seen and len(self._seen) >= _MOST_CLASSES:
            kind = ""
        return self._seen.setdefault(kind, list(_PRIOR))


def _stretch(elapsed_s: float) -> int:
    return max(0, bisect_right(_EDGES_S, elapsed_s) - 1)


_PRIOR = tuple((_PRIOR_WEIGHT, _PRIOR_WEIGHT / rate) for rate in _PRIOR_RATE)
