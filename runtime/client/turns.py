"""How a turn goes over the Responses WebSocket, without the socket: what is sent, what is read.

Both clients drive a `Turn` in the same few lines: send `frame()`, feed `receive()` while it is
`receiving`, run `calls` and hand the results to `answer()`, until it is `finished`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import msgspec

from sessile.client.events import Event, Outcome, TextDelta, ToolCall, ToolResult
from sessile.client.tools import Tool
from sessile.errors import ReplicaRefused, SessileError, from_code
from sessile.router.replica import Usage


@dataclass
class Conversation:
    """What a session's handle knows; it changes only when a turn has ended well.

    `head` is the response that the next turn follows. `unanswered` are calls of that response
    which were not run (the turn had used up its rounds): the next turn says so first.
    """

    id: str
    model: str | None
    system: str | None
    tools: Mapping[str, Tool]
    max_rounds: int
    head: str | None = None
    unanswered: tuple[ToolCall, ...] = ()
    turns: int = field(default=0)

    def forked(self, id: str) -> "Conversation":
        """A child that begins where this one stands."""
        return Conversation(
            id, self.model, self.system, self.tools, self.max_rounds, self.head, self.unanswered
        )


class _ServerEvent(msgspec.Struct):
    """The fields of the server's events that a turn reads."""

    type: str
    delta: Any = None
    item: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None


_decoder = msgspec.json.Decoder(_ServerEvent)


class Turn:
    """One turn in flight: made for one `send` or `stream`, thrown away after it."""

    def __init__(
        self,
        conversation: Conversation,
        content: str | Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
    ) -> None:
        self._conversation = conversation
        self._options = options
        self._parent = conversation.head
        self._input = [
            *(_output_item(call.id, _NOT_RUN) for call in conversation.unanswered),
            *([_user_item(content)] if isinstance(content, str) else content),
        ]
        self._rounds = 0
        self._usage = Usage(0, 0, 0)
        self._deltas: list[str] = []
        self._made: list[ToolCall] = []
        self.calls: list[ToolCall] = []
        self.receiving = False
        self.outcome: Outcome | None = None

    @property
    def finished(self) -> bool:
        """Whether the turn has ended well; `outcome` then holds its end."""
        return self.outcome is not None

    def frame(self) -> str:
        """The `response.create` to send now: only what is new, and the response it follows."""
        conversation = self._conversation
        body: dict[str, Any] = {
            **self._options,
            "type": "response.create",
            "model": conversation.model,
            "input": self._input,
        }
        if conversation.system is not None:
            body["instructions"] = conversation.system
        if conversation.tools:
            body["tools"] = [tool.as_sent() for tool in conversation.tools.values()]
            if self._rounds >= conversation.max_rounds:
                body["tool_choice"] = "none"
        if self._parent is not None:
            body["previous_response_id"] = self._parent
        self.receiving = True
        self.calls, self._deltas = [], []
        return msgspec.json.encode(body).decode()

    def receive(self, frame: str | bytes) -> list[Event]:
        """The caller's events of one server event; raises the error that the event tells of."""
        try:
            event = _decoder.decode(frame)
        except msgspec.MsgspecError as error:
            raise ReplicaRefused(f"the router sent an event that is not one: {error}") from error
        match event.type:
            case "response.output_text.delta":
                self._deltas.append(event.delta)
                return [TextDelta(event.delta)]
            case "response.output_item.done":
                item = event.item or {}
                if item.get("type") == "function_call":
                    call = ToolCall(item["call_id"], item["name"], item.get("arguments") or "{}")
                    self.calls.append(call)
                    self._made.append(call)
                    return [call]
            case "response.completed" | "response.incomplete":
                self._end_round(event.response or {})
            case "response.failed":
                told = (event.response or {}).get("error") or {}
                # The API knows few codes for a failed response; the router's own is its type.
                raise _as_error({**told, "code": told.get("type") or told.get("code")})
            case "error":
                flat = {"code": event.code, "message": event.message, "param": event.param}
                raise _as_error(event.error or flat)
        return []

    def answer(self, results: Iterable[ToolResult]) -> list[Event]:
        """Take the results of `calls`; they are the next frame's input."""
        given = list(results)
        self._input = [_output_item(result.id, result.output) for result in given]
        self._rounds += 1
        return list(given)

    def _end_round(self, response: dict[str, Any]) -> None:
        self.receiving = False
        self._parent = response["id"]
        self._usage = _sum(self._usage, _read_usage(response.get("usage")))
        details = response.get("incomplete_details") or {}
        incomplete = details.get("reason") if response.get("status") == "incomplete" else None
        conversation = self._conversation
        if self.calls and incomplete is None and self._rounds < conversation.max_rounds:
            return
        self.outcome = Outcome(
            id=response["id"],
            session=conversation.id,
            text=_text_of(response) or "".join(self._deltas),
            usage=self._usage,
            tool_calls=tuple(self._made),
            incomplete=incomplete,
        )
        conversation.head = response["id"]
        conversation.unanswered = tuple(self.calls)
        conversation.turns += 1


def new_id() -> str:
    """An id for a session that its caller did not name."""
    return f"ses_{token_hex(12)}"


_NOT_RUN = "not run: too many calls in one turn"


def _user_item(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def _output_item(call: str, output: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call, "output": output}


def _text_of(response: Mapping[str, Any]) -> str:
    return "".join(
        part.get("text", "")
        for item in response.get("output") or ()
        if item.get("type") == "message"
        for part in item.get("content") or ()
        if part.get("type") == "output_text"
    )


def _read_usage(usage: Mapping[str, Any] | None) -> Usage:
    if usage is None:
        return Usage()
    details = usage.get("input_tokens_details") or {}
    return Usage(
        usage.get("input_tokens"), usage.get("output_tokens"), details.get("cached_tokens")
    )


def _sum(one: Usage, other: Usage) -> Usage:
    """Counts added; what is unknown in one of them is unknown in the sum."""

    def add(a: int | None, b: int | None) -> int | None:
        return None if a is None or b is None else a + b

    return Usage(
        add(one.prompt_tokens, other.prompt_tokens),
        add(one.completion_tokens, other.completion_tokens),
        add(one.cached_tokens, other.cached_tokens),
    )


def _as_error(told: Mapping[str, Any]) -> SessileError:
    message = told.get("message") or "the router gave no reason"
    return from_code(told.get("code") or "", message, param=told.get("param"))
