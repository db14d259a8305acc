"""What a caller says into a running turn, until the model has it. Pure.

A steer goes to the response that runs; the router stops that where it is safe, and one that
follows it by itself takes the steer in. A steer that the router did not take, or that was lost with
its connection, is said in the turn's next request instead: none is lost, and none is said twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass
class _Steer:
    """`target` is the response it was sent to, `id` what the router calls it once it took it."""

    text: str
    target: str | None = None
    id: str | None = None


class Steers:
    """Those of one turn, in the order in which they were said."""

    def __init__(self) -> None:
        self._steers: list[_Steer] = []

    def say(self, text: str) -> None:
        """The caller says something; it waits to be sent."""
        self._steers.append(_Steer(text))

    def send(self, response: str) -> list[str]:
        """The frames that bring what waits to the running response."""
        frames = []
        for steer in self._steers:
            if steer.target is None:
                steer.target = response
                frame = {
                    "type": "response.steer", "previous_response_id": response, "input": steer.text
                }  # fmt: skip
                frames.append(msgspec.json.encode(frame).decode())
        return frames

    @property
    def waiting(self) -> bool:
        """Whether something is said that was not sent, or was given back."""
        return any(steer.target is None for steer in self._steers)

    def is_open(self, response: str | None) -> bool:
        """Whether the router is still to say what becomes of steers that were sent there."""
        return any(steer.target == response for steer in self._steers if steer.target)

    def told(self, kind: str, steer: Mapping[str, Any]) -> None:
        """An event of the router's: it took a steer, keeps it for the tools' outputs, or not."""
        if kind == "response.steer.accepted":
            for sent in self._steers:
                if sent.target is not None and sent.id is None:
                    sent.id = steer["id"]
                    return
        elif kind == "response.steer.failed":
            for sent in self._steers:
                if sent.target is not None and sent.id == steer.get("id"):
                    sent.target = sent.id = None
                    return

    def begun(self, previous: str | None) -> None:
        """A response that follows `previous` has begun: the steers that were taken there are in
        it."""
        self._steers = [s for s in self._steers if s.id is None or s.target != previous]

    def lost(self) -> None:
        """The connection is gone, and with it what was sent and did not come into a response."""
        for steer in self._steers:
            steer.target = steer.id = None

    def take(self) -> list[dict[str, Any]]:
        """What waits, as input of the next request."""
        taken = [steer for steer in self._steers if steer.target is None]
        self._steers = [steer for steer in self._steers if steer.target is not None]
        return [{"type": "message", "role": "user", "content": steer.text} for steer in taken]
