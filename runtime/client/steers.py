"""What a caller says into a running turn, until the model has it. Pure.

A steer goes to the response that runs; the router stops that where it is safe, and one that
follows it by itself takes the steer in: the last event of the steered one names both. A steer whose
connection is lost before the router took it is sent again, under the same key, so that it is taken
once. One that the router did not take is said in the turn's next request instead: none is lost, and
none is said twice.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any


@dataclass
class Steer:
    """`target` is the response it was sent to, `id` what the router calls it once it took it,
    `refused` the response that did not take it."""

    text: str
    target: str | None = None
    id: str | None = None
    refused: str | None = None
    key: str = field(default_factory=lambda: token_hex(12))


class Steers:
    """Those of one turn, in the order in which they were said."""

    def __init__(self) -> None:
        self._steers: list[Steer] = []

    def say(self, text: str) -> None:
        """The caller says something; it waits to be sent."""
        self._steers.append(Steer(text))

    def send(self, response: str) -> list[Steer]:
        """What waits, and is now being brought to the running response."""
        waiting = [s for s in self._steers if s.target is None and s.refused != response]
        for steer in waiting:
            steer.target = response
        return waiting

    def unheard(self, response: str) -> list[Steer]:
        """What was sent there, and not answered yet."""
        return [s for s in self._steers if s.target == response and s.id is None]

    @property
    def waiting(self) -> bool:
        """Whether something is said that was not sent, or was given back."""
        return any(steer.target is None for steer in self._steers)

    def is_open(self, response: str | None) -> bool:
        """Whether the router is still to say what becomes of steers that were sent there."""
        return any(steer.target == response for steer in self._steers if steer.target)

    def told(self, kind: str, told: Mapping[str, Any]) -> None:
        """An event of the router's: it took a steer, keeps it for the tools' outputs, or not."""
        key = told.get("idempotency_key")
        sent = next((s for s in self._steers if s.target is not None and s.key == key), None)
        if sent is None:
            return
        if kind == "response.steer.accepted":
            sent.id = told["id"]
        elif kind == "response.steer.failed":
            sent.refused, sent.target, sent.id = sent.target, None, None

    def begun(self, previous: str | None) -> None:
        """A response that follows `previous` has begun: the steers that were taken there are in
        it."""
        self._steers = [s for s in self._steers if s.id is None or s.target != previous]

    def taken(self, keys: Collection[str]) -> None:
        """The router says which of them are in the response that follows; the others wait."""
        self._steers = [steer for steer in self._steers if steer.key not in keys]
        self.lost()

    def lost(self, running: str | None = None) -> None:
        """The connection is gone, and with it what was sent and did not come into a response; but
        for the `running` one, whose router still says what it took."""
        for steer in self._steers:
            if steer.target != running or running is None:
                steer.target = steer.id = None

    def take(self) -> list[dict[str, Any]]:
        """What waits, as input of the next request."""
        taken = [steer for steer in self._steers if steer.target is None]
        self._steers = [steer for steer in self._steers if steer.target is not None]
        return [{"type": "message", "role": "user", "content": steer.text} for steer in taken]
