"""Which events of a response were heard, so that it can be taken up again without a double. Pure.

A router tells an event a moment before it is in the log. One that is killed in that moment leaves a
client that has heard more than the next router knows, which then numbers and says it anew. So a
response is taken up some events early: from where they are not the ones that were heard on, what
comes is new, and as much text as was said beyond that is passed over.
"""

from collections import deque

import msgspec

from sessile.errors import StreamBroken

_OVERLAP = 64  # events, of which a few ms may be missing in the log


class _Event(msgspec.Struct, frozen=True):
    """One that came: how many characters had been said before it, and what tells it apart."""

    number: int
    said: int
    digest: int


class Heard:
    """The newest events of one response."""

    def __init__(self) -> None:
        self._events: deque[_Event] = deque(maxlen=_OVERLAP)
        self.newest = -1

    @property
    def overlap(self) -> int:
        """The number behind which the response is taken up, -1 for the first event on."""
        return max(-1, self.newest - _OVERLAP)

    def add(self, number: int, said: int, frame: str | bytes) -> None:
        """An event came."""
        self.newest = number
        self._events.append(_Event(number, said, _digest(frame)))

    def knows(self, number: int, frame: str | bytes) -> bool:
        """Whether this very event was heard."""
        found = self._find(number)
        return found is not None and found.digest == _digest(frame)

    def rewind(self, number: int) -> int:
        """From this number on other events come than were heard; how much had been said before.

        Raises `StreamBroken` where it cannot be known that they part only here.
        """
        found = self._find(number)
        if found is None or (len(self._events) == _OVERLAP and found is self._events[0]):
            raise StreamBroken(
                "the router that went on with the turn knows less than was told of it; send it"
                " again to repeat it"
            )
        while self._events and self._events[-1].number >= number:
            self._events.pop()
        return found.said

    def _find(self, number: int) -> _Event | None:
        return next((event for event in self._events if event.number == number), None)


def _digest(frame: str | bytes) -> int:
    return hash(frame.encode() if isinstance(frame, str) else frame)
