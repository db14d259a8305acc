"""How long a router that was lost is looked for: pauses that grow, each by chance a little shorter
or longer, so that many clients of one router do not come back at once. Pure."""

from collections.abc import Callable
from random import random as _random

_FIRST_S = 0.05
_LONGEST_S = 5.0


class Tries:
    """Those after one loss. `most_s` bounds the time without an event, from the first loss on."""

    def __init__(self, most_s: float, random: Callable[[], float] = _random) -> None:
        self._most_s = most_s
        self._random = random
        self._lost_at: float | None = None
        self._count = 0

    def next(self, now: float) -> float | None:
        """Seconds to wait before the next try; None: it was looked for long enough."""
        if self._lost_at is None:
            self._lost_at = now
        left_s = self._lost_at + self._most_s - now
        if left_s <= 0:
            return None
        longest_s = min(_FIRST_S * 2.0**self._count, _LONGEST_S)
        self._count += 1
        return min(longest_s * (0.5 + self._random()), left_s)

    def went_on(self) -> None:
        """An event came: the next loss is a new one."""
        self._lost_at = None
        self._count = 0
