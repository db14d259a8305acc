"""Requests that a replica runs for no one, told by its own count. Pure.

A router knows what it has under way there, and what the others say that they have; what the replica
reports beyond that, look after look, is nobody's. Everything that is not certain counts as known:
a turn that ended since the last look may still have been counted, and one that is about to begin
has been sent before it is.
"""

from collections import deque
from collections.abc import Sequence

_LOOKS = 4  # in a row, before what is too much is believed
_MOST_LEFT = 64


class Ghosts:
    """What is known of one replica's. Lives as long as the replica; `found` only grows.

    `leave` names requests that were left before their end, so that they can be stopped once more.
    """

    def __init__(self) -> None:
        self.found = 0
        self.aborted = 0
        self._left: deque[str] = deque(maxlen=_MOST_LEFT)
        self._excess: deque[int] = deque(maxlen=_LOOKS)
        self._told = 0
        self._ended = 0

    def reset(self) -> None:
        """The replica was started anew: it runs nothing of before."""
        self._left.clear()
        self._excess.clear()
        self._told = 0

    def leave(self, request: str) -> None:
        """The client of this request is gone, or it was given up, before its end."""
        self._left.append(request)

    def look(self, reported: int, known: int, ended: int) -> tuple[int, Sequence[str]]:
        """How many more run for no one than were told before, and which requests of this router
        they may be, to be stopped.

        `reported` is what the replica says that it runs or has waiting, `known` what all routers
        have under way there, `ended` how many turns of this router have ended there, ever.
        """
        just_ended, self._ended = max(0, ended - self._ended), ended
        self._excess.append(max(0, reported - known - just_ended))
        if len(self._excess) < _LOOKS:
            return 0, ()
        excess = min(self._excess)
        new, self._told = max(0, excess - self._told), excess
        self.found += new
        return new, tuple(self._left) if new else ()
