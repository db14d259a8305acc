"""Chat completion chunks in, Responses events out: one state machine a turn, pure.

It keeps the object that the last event carries; what is said is `responses_content`'s, a call that
is made `responses_calls`'. It does no I/O, makes nothing up (a stream that ends without a finish
reason has failed), and says exactly one last word: completed, incomplete or failed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from sessile import errors
from sessile.api.chat_chunks import CallDelta, Choice, FirstCall, decode_chunk
from sessile.api.responses_calls import Calls
from sessile.api.responses_content import Content
from sessile.api.responses_sequence import Event, EventSequence
from sessile.api.responses_tools import Called
from sessile.api.responses_usage import read_usage, sum_of
from sessile.carry_on import read_marker
from sessile.errors import ReplicaRefused, SessileError, StreamBroken
from sessile.relay import payloads

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseStream:
    """The events of one response. Made by the API for one turn; `response` is its object, final
    once `ended`.

    `response` is a skeleton as `read_request` makes it, with id, model and time filled in.
    `stream_id` is echoed in every event. `called` says what the names stand for that an engine may
    call; `seals`: reasoning items also carry what they say sealed. A stream that is `silent` tells
    nothing of what the engine says: the turn computes its prompt only. An engine may be called
    several times for one response: `pause` ends one call, what it fed next begins another. One that
    goes on where another was cut off begins at number `sequence`; `begun` says that
    `response.in_progress` was told then.
    """

    def __init__(
        self,
        response: dict[str, Any],
        stream_id: str | None = None,
        called: Mapping[str, Called] = MappingProxyType({}),
        *,
        seals: bool = False,
        silent: bool = False,
        sequence: int = 0,
        begun: bool = False,
    ) -> None:
        self.response = response
        self.ended = False
        self.called = called
        self._begun = begun
        self._silent = silent
        self._spent: dict[str, Any] | None = None  # the usage of the engine calls before this one
        self._output: list[dict[str, Any]] = response["output"]
        self._sequence = EventSequence(self._output, stream_id, sequence)
        self._content = Content(response["id"], self._sequence, seals=seals)
        self._calls = Calls(response["id"], self._sequence)
        self._only = self._first_call()
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None

    # -- what the turn does

    def accept(self) -> list[Event]:
        """The first two events of a response that waits until it can begin."""
        self.response["status"] = "queued"
        return [
            self._sequence.event("response.created", response=self.response),
            self._sequence.event("response.queued", response=self.response),
        ]

    def start(self) -> list[Event]:
        """The first two events, as far as they have not been told."""
        self.response["status"] = "in_progress"
        events = []
        if self._sequence.next == 0:
            events.append(self._sequence.event("response.created", response=self.response))
        if not self._begun:
            events.append(self._sequence.event("response.in_progress", response=self.response))
        return events

    def take_up(self, text: str) -> None:
        """Go on within the one message of the output, of which `text` was told."""
        self._content.take_up(text)

    def feed(self, data: bytes, events: list[Event]) -> None:
        """A stretch of whole server-sent events, as an engine sends them; what they tell is added
        to `events`.

        Raises `ReplicaRefused` for an error that the engine tells in its stream, and for what is
        no chunk at all; the caller hands it to `fail`.
        """
        if data[:1] == b":" and (replica := read_marker(data)) is not None:
            # Of no type that the API has: its clients hand it on, or pass over it.
            events.append(self._sequence.event("response.sessile.continued", replica=replica))
            return
        for payload in payloads(data):
            self.feed_chunk(payload, events)

    def feed_chunk(self, payload: bytes, events: list[Event]) -> None:
        """As `feed`, for the JSON of one chunk or of one whole completion."""
        try:
            chunk = decode_chunk(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ReplicaRefused(f"the engine sent a chunk that is not one: {error}") from error
        if chunk.error is not None:
            raise ReplicaRefused(f"the engine failed: {_sentence(chunk.error)}")
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            if choice.index == 0 and not self.ended:
                self._choose(choice, events)

    def pause(self, events: list[Event]) -> list[dict[str, Any]]:
        """The engine's stream has ended: the MCP calls it made, which are to be run, each to be
        given to `settle`. None: there is no more to do than to `finish`."""
        if self.ended or self._finish_reason not in ("stop", "tool_calls", "function_call"):
            return []
        if not self._calls.runs:
            return []
        self._close(events, "completed")
        return self._calls.to_run()

    @property
    def waits(self) -> bool:
        """Whether the client has to act before the model can go on: to run a call of its own, or to
        approve one."""
        kinds = ("function_call", "custom_tool_call", "mcp_approval_request")
        return any(item["type"] in kinds for item in self._output)

    def go_on(self) -> None:
        """Another engine call follows for the same response."""
        self._finish_reason = None
        self._only = self._first_call()
        if self._usage is not None:
            self._spent = sum_of(self._spent, read_usage(self._usage))
            self._usage = None

    def settle(self, item: dict[str, Any], events: list[Event]) -> None:
        """An MCP call has been run: `item` holds its output, or its error."""
        self._calls.settle(item, events)

    def place(self, item: dict[str, Any], events: list[Event]) -> None:
        """Add an item that no engine made: a list of tools, an approved call, a compaction."""
        kind = item["type"]
        place = self._sequence.add(item, events)
        where = {"item_id": item["id"], "output_index": place}
        if kind == "compaction":
            events.append(self._sequence.event("response.compaction.compacting", **where))
        else:
            failed = item.get("error") is not None
            events.append(self._sequence.event(f"response.{kind}.in_progress", **where))
            if kind == "mcp_call":
                done = f"response.{kind}_arguments.done"
                events.append(self._sequence.event(done, arguments=item["arguments"], **where))
            ended = "failed" if failed else "completed"
            events.append(self._sequence.event(f"response.{kind}.{ended}", **where))
        events.append(self._sequence.done(place, item))

    def finish(self, now: float) -> list[Event]:
        """The stream has ended: close what is open and say how it went."""
        if self.ended:
            return []
        reason = self._finish_reason
        if reason is None:
            return self.fail(StreamBroken("the engine ended its answer before it was whole"), now)
        if reason in ("abort", "error"):
            return self.fail(ReplicaRefused(f"the engine stopped the turn: {reason}"), now)
        incomplete = None if self._silent else _INCOMPLETE.get(reason)
        events: list[Event] = []
        if not self._output and not self._silent:
            self._content.open_part("output_text", events)
        self._close(events, "incomplete" if incomplete else "completed")
        self.response["status"] = "incomplete" if incomplete else "completed"
        self.response["incomplete_details"] = {"reason": incomplete} if incomplete else None
        return [*events, self._end("response." + self.response["status"], now)]

    @property
    def may_stop(self) -> bool:
        """Whether the response can be stopped here: not within a call, which would be of no use,
        and not when the engine has just ended it."""
        return self._finish_reason is None and not self._calls and not self._silent

    def stop(self, reason: str, now: float) -> list[Event]:
        """End it here, with what was said so far, and not for anything that the engine did."""
        events: list[Event] = []
        self._close(events, "incomplete")
        self.response["status"] = "incomplete"
        self.response["incomplete_details"] = {"reason": reason}
        return [*events, self._end("response.incomplete", now)]

    def fail(self, error: SessileError, now: float) -> list[Event]:
        """The turn has failed: what was sent of it stays, marked incomplete."""
        if self.ended:
            return []
        self._cut_off()
        self.response["status"] = "failed"
        self.response["error"] = {
            "code": _failure(error),
            "message": error.message,
            "type": error.code,
        }
        return [self._end("response.failed", now)]

    def cancel(self, now: float) -> list[Event]:
        """The turn was cancelled: what was sent of it stays, marked incomplete. The API has no
        event of that name."""
        if self.ended:
            return []
        self._cut_off()
        self.response["status"] = "cancelled"
        return [self._end("response.incomplete", now)]

    def _cut_off(self) -> None:
        # NOTE: no event closes what was cut off: a client must not run a call that is not whole.
        said = self._sequence.next
        self._close([], "incomplete")
        for item in self._calls.to_run():
            item["status"] = "incomplete"
        self._sequence.next = said

    # -- one delta

    def _choose(self, choice: Choice, events: list[Event]) -> None:
        delta = choice.delta or choice.message
        if delta is not None and not self._silent:
            if thought := (delta.reasoning_content or delta.reasoning):
                self._content.speak("reasoning_text", thought, events)
            if delta.content:
                logprobs = choice.logprobs.content if choice.logprobs is not None else None
                self._content.speak("output_text", delta.content, events, logprobs)
            if delta.refusal:
                self._content.speak("refusal", delta.refusal, events)
            if delta.tool_calls:
                for position, call in enumerate(delta.tool_calls):
                    if self._only is None or self._only.has(call, position):
                        self._extend_call(call, position, events)
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason

    def _first_call(self) -> FirstCall | None:
        """The one call that the engine may make now; None: as many as it likes."""
        return FirstCall() if self.response.get("parallel_tool_calls") is False else None

    def _extend_call(self, delta: CallDelta, position: int, events: list[Event]) -> None:
        call = self._calls.find(delta, position)
        if call is None:
            self._content.close(events, "completed")
            name = delta.function.name if delta.function is not None else None
            called = self.called.get(name or "") or Called("function", name or "")
            call = self._calls.open(called, delta, position, events)
        self._calls.extend(call, delta, events)

    # -- closing

    def _close(self, events: list[Event], status: str) -> None:
        """Close everything; `status` is the last item's, those before it are whole."""
        self._content.close(events, status)
        self._calls.close(events, status)

    def _end(self, kind: str, now: float) -> Event:
        self.ended = True
        if self.response["status"] == "completed":
            self.response["completed_at"] = int(now)
        spent = None if self._usage is None else read_usage(self._usage)
        self.response["usage"] = usage = sum_of(self._spent, spent)
        if self._silent and usage is not None:
            usage |= {"output_tokens": 0, "total_tokens": usage["input_tokens"]}
        return self._sequence.event(kind, response=self.response)


def _sentence(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else "it did not say why"


def _failure(error: SessileError) -> str:
    """The code of a failed response, of the few that the API knows; ours is in its `type`."""
    if isinstance(error, errors.Overloaded):
        return "rate_limit_exceeded"
    if isinstance(error, errors.RequestError):
        return "invalid_prompt"
    return "server_error"
