"""What a turn gives its caller: the events of a stream, and the reply at its end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sessile.router.engine import Usage
from sessile.sessions.record import Receipt


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the model's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model asks for a tool; `arguments` is the JSON as the model wrote it, valid or not."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the tool gave, as the model is told it; `failed` when it raised instead."""

    id: str
    name: str
    output: str
    failed: bool = False


@dataclass(frozen=True)
class Outcome:
    """The end of a turn, whichever client ran it.

    `id` is the last response's id, and the turn's. `text` is that response's; text that the model
    wrote before it called tools is in the stream only. `usage` sums the turn's responses.
    `tool_calls` are all that the model made, in order. `incomplete` says why the text stops
    early ("max_output_tokens", say), None where it does not.
    """

    id: str
    session: str
    text: str
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()
    incomplete: str | None = None


@dataclass(frozen=True)
class Reply(Outcome):
    """What `Session.send` returns."""

    _fetch: Callable[[], Receipt] | None = field(default=None, repr=False, compare=False)

    @property
    def receipt(self) -> Receipt:
        """Where the turn ran and why, and what it cost; asked of the router at first use.

        Raises `TurnNotFound` once the router has forgotten the turn.

        >>> reply = session.send("Say hello.")
        >>> reply.receipt.replica is not None and reply.receipt.reason is not None
        True
        """
        if "_receipt" not in self.__dict__:
            assert self._fetch is not None
            self.__dict__["_receipt"] = self._fetch()
        receipt: Receipt = self.__dict__["_receipt"]
        return receipt


R = TypeVar("R", bound=Outcome)


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """The turn is over; `reply` is what `send` would have returned."""

    reply: R


Event = TextDelta | ToolCall | ToolResult
"""What a stream may hold before its `Done`."""
