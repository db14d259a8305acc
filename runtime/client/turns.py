"""How a turn goes over the Responses WebSocket, without the socket: what is sent, what is read.

A session drives a `Turn` in a few lines: send `frame()`, feed `receive()` while it is `receiving`,
run `calls` and hand the results to `answer()`, until it is `finished`. Where the connection was
lost in between, `response` and `after` say what to take up and from where; without a `response` the
same `frame()` is sent again, which its key makes harmless.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import msgspec

from sessile.client.events import Event, Outcome, TextDelta, ToolCall, ToolResult
from sessile.client.heard import Heard
from sessile.client.reading import added, as_error, read_usage, text_of, why_incomplete
from sessile.client.steers import Steer, Steers
from sessile.client.tools import Tool
from sessile.errors import ConnectionTooOld, ReplicaRefused
from sessile.router.engine import Usage
from sessile.sessions.hints import WhenBusy


@dataclass
class Conversation:
    """What a session's handle knows; it changes only when a turn has ended well.

    `head` is the response that the next turn follows. `owed` are items that the next turn says
    first: that calls of that response were not run, since the turn had used up its rounds.
    """

    id: str
    model: str | None
    system: str | None
    tools: Mapping[str, Tool]
    max_rounds: int
    head: str | None = None
    owed: tuple[dict[str, Any], ...] = ()
    turns: int = field(default=0)
    when_busy: WhenBusy | None = None

    def forked(self, id: str) -> "Conversation":
        """A child that begins where this one stands."""
        return Conversation(
            id, self.model, self.system, self.tools, self.max_rounds, self.head, self.owed,
            when_busy=self.when_busy,
        )  # fmt: skip


class _ServerEvent(msgspec.Struct):
    """The fields of the server's events that a turn reads."""

    type: str
    sequence_number: int | None = None
    delta: Any = None
    item: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    steer: dict[str, Any] | None = None
    successor: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None


_decoder = msgspec.json.Decoder(_ServerEvent)


class Turn:
    """One turn in flight: made for one `send`, `stream` or `background`, thrown away after it.

    `response` is the one that runs, None until the router has told its id. `stale` says that the
    connection is too old to begin anything.
    """

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
            *conversation.owed,
            *([user_item(content)] if isinstance(content, str) else content),
        ]
        self._steers = Steers()
        self._rounds = 0
        self._usage = Usage(0, 0, 0)
        self._said = ""
        self._skip = 0
        self._hole = False
        self._heard = Heard()
        self._made: list[ToolCall] = []
        self._ended: dict[str, Any] | None = None
        self._cut = False
        self._body: dict[str, Any] | None = None
        self.key = token_hex(12)
        self.response: str | None = None
        self.calls: list[ToolCall] = []
        self.receiving = False
        self.stale = False
        self.outcome: Outcome | None = None

    @property
    def finished(self) -> bool:
        """Whether the turn has ended well; `outcome` then holds its end."""
        return self.outcome is not None

    @property
    def answered(self) -> bool:
        """Whether a response has ended with which the turn does not: its calls are to be run."""
        return self._ended is not None and not self.receiving and self.outcome is None

    @property
    def stored(self) -> bool:
        """Whether the router keeps it, so that it can be taken up again."""
        return self._options.get("store") is not False

    @property
    def after(self) -> int:
        """The number behind which its response is taken up, -1 for the first event on."""
        return self._heard.overlap

    @property
    def heard(self) -> tuple[str | None, int]:
        """The response and the number of its newest event: what grows while the turn goes on."""
        return self.response, self._heard.newest

    # -- what is sent

    def body(self) -> dict[str, Any]:
        """What to ask for now: only what is new, and the response it follows. It is the same
        until it was answered."""
        self.receiving, self.stale = True, False
        if self._body is not None:
            return self._body
        conversation = self._conversation
        given = [*self._input, *self._steers.take()]
        self._body = body = {**self._options, "model": conversation.model, "input": given}
        if conversation.system is not None:
            body["instructions"] = conversation.system
        if conversation.tools:
            body["tools"] = [tool.as_sent() for tool in conversation.tools.values()]
            if self._rounds >= conversation.max_rounds:
                body["tool_choice"] = "none"
        if self._parent is not None:
            body["previous_response_id"] = self._parent
        return body

    def frame(self) -> str:
        """The same as a `response.create`; sent again under its key, it is not run again."""
        self._cut = False
        body = {"type": "response.create", **self.body(), "idempotency_key": self.key}
        return msgspec.json.encode(body).decode()

    def follow(self, response: str) -> None:
        """Listen to a response that runs already, from its first event."""
        self.receiving = self._cut = True
        self._begin(response)

    def answer(self, results: Iterable[ToolResult]) -> list[Event]:
        """Take the results of `calls`; they are the next frame's input."""
        given = list(results)
        self._input = [_output_item(result.id, result.output) for result in given]
        self._rounds += bool(given)
        self.key, self._body = token_hex(12), None
        self._begin(None)
        return list(given)

    # -- what is said into it

    def steer(self, text: str) -> None:
        """The caller says something into the turn."""
        self._steers.say(text)

    def steer_frames(self) -> list[str]:
        """What to send for it now: only while there is a response that could take it."""
        return [
            msgspec.json.encode(
                {
                    "type": "response.steer", "previous_response_id": self.response,
                    "input": steer.text, "idempotency_key": steer.key,
                }
            ).decode()
            for steer in self._sent_now()
        ]  # fmt: skip

    def unheard(self) -> list[Steer]:
        """What to bring to the running response over HTTP, where it has no connection: also what
        went over one that was lost without an answer."""
        if not self._can_take:
            return []
        self._sent_now()
        return self._steers.unheard(self.response or "")

    @property
    def _can_take(self) -> bool:
        return self._ended is None and self.receiving and self._heard.newest >= 0

    def _sent_now(self) -> list[Steer]:
        return self._steers.send(self.response or "") if self._can_take else []

    def lost(self) -> list[Event]:
        """The connection is gone. A stored response goes on without it, and says at its end which
        steers it took; one that was to follow by itself after that end no longer does."""
        self._steers.lost(self.response if self.stored and self._ended is None else None)
        self._cut = True
        return [] if self._ended is None else self._settle()

    # -- what is read

    def receive(self, frame: str | bytes) -> list[Event]:
        """The caller's events of one server event; raises the error that the event tells of."""
        try:
            event = _decoder.decode(frame)
        except msgspec.MsgspecError as error:
            raise ReplicaRefused(f"the router sent an event that is not one: {error}") from error
        if event.type.startswith("response.steer."):
            self._steers.told(event.type, event.steer or {})
            return [] if self._ended is None else self._settle()
        if event.type == "response.created":
            response = event.response or {}
            if response.get("id") != self.response:
                self._steers.begun(response.get("previous_response_id"))
                self._begin(response.get("id"))
        number = event.sequence_number
        if number is not None and not self._note(number, event.type, frame):
            return []
        match event.type:
            case "response.output_text.delta":
                return self._say(event.delta)
            case "response.output_item.done":
                return self._call(event.item or {})
            case "response.completed" | "response.incomplete":
                return self._end(event.response or {}, event.successor)
            case "response.failed":
                told = (event.response or {}).get("error") or {}
                # The API knows few codes for a failed response; the router's own is its type.
                self.receiving = False
                raise as_error({**told, "code": told.get("type") or told.get("code")})
            case "sessile.gap":
                self._hole = True  # what is missing comes with the whole response
            case "error":
                flat = {"code": event.code, "message": event.message, "param": event.param}
                failure = as_error(event.error or flat)
                if not isinstance(failure, ConnectionTooOld) or self.response is not None:
                    self.receiving = False
                    raise failure
                self.stale = True
        return []

    def _begin(self, response: str | None) -> None:
        self.response, self._ended, self._heard = response, None, Heard()
        self._said, self._skip, self._hole, self.calls = "", 0, False, []

    def _note(self, number: int, kind: str, frame: str | bytes) -> bool:
        """Whether a numbered event is new; one that was heard is not, unless it is another now."""
        if number <= self._heard.newest:
            if kind == "sessile.gap" or self._heard.knows(number, frame):
                return False
            self._skip = len(self._said) - self._heard.rewind(number)
        self._heard.add(number, len(self._said) - self._skip, frame)
        return True

    def _say(self, delta: str) -> list[Event]:
        if self._hole:
            return []
        skipped = min(self._skip, len(delta))
        self._skip -= skipped
        self._said += delta[skipped:]
        return [TextDelta(delta[skipped:])] if skipped < len(delta) else []

    def _call(self, item: Mapping[str, Any]) -> list[Event]:
        if item.get("type") != "function_call":
            return []
        call = ToolCall(item["call_id"], item["name"], item.get("arguments") or "{}")
        if call in self.calls:
            return []
        self.calls.append(call)
        self._made.append(call)
        return [call]

    def _end(self, response: dict[str, Any], successor: dict[str, Any] | None) -> list[Event]:
        """The response is there as a whole: what of it was not told is. A `successor` took in what
        was said into it, and runs."""
        events: list[Event] = []
        whole = text_of(response)
        if len(whole) > len(self._said) and whole.startswith(self._said):
            events.append(TextDelta(whole[len(self._said) :]))
        if response.get("status") == "completed":
            for item in response.get("output") or ():
                events += self._call(item)
        self._parent = response["id"]
        self._usage = added(self._usage, read_usage(response.get("usage")))
        if successor is not None:
            self._steers.taken(successor["steers"])
            self._begin(successor["id"])
            return events
        if self._cut:
            self._steers.lost()
        self._ended = response
        return [*events, *self._settle()]

    def _settle(self) -> list[Event]:
        """The response has ended: the turn goes on with one that follows by itself, with tools,
        with what was said meanwhile, or not at all."""
        response = self._ended or {}
        status, reason = response.get("status"), why_incomplete(response)
        open_calls = self.calls if status == "completed" else []
        if not open_calls and self._steers.is_open(response["id"]) and reason != "cancelled":
            return []
        self.receiving = False
        conversation = self._conversation
        rounds_left = self._rounds < conversation.max_rounds
        if reason != "cancelled" and (
            (open_calls and rounds_left) or (not open_calls and self._steers.waiting)
        ):
            return []
        self.outcome = Outcome(
            id=response["id"],
            session=conversation.id,
            text=text_of(response) or self._said,
            usage=self._usage,
            tool_calls=tuple(self._made),
            incomplete=reason,
        )
        if reason != "cancelled":
            conversation.head = response["id"]
            not_run = [_output_item(call.id, _NOT_RUN) for call in self.calls]
            self._steers.lost()
            conversation.owed = (*not_run, *self._steers.take())
            conversation.turns += 1
        return []


def new_id() -> str:
    """An id for a session that its caller did not name."""
    return f"ses_{token_hex(12)}"


def user_item(text: str) -> dict[str, Any]:
    """A text as the input item that it stands for."""
    return {"type": "message", "role": "user", "content": text}


_NOT_RUN = "not run: too many calls in one turn"


def _output_item(call: str, output: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call, "output": output}
