"""Chat completion chunks in, Responses events out: one state machine a turn, pure.

It numbers the events, opens and closes items and their parts, and keeps the object that the last
event carries. It does no I/O, makes nothing up (a stream that ends without a finish reason has
failed), and says exactly one last word: completed, incomplete or failed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from sessile import errors
from sessile.api.responses_calls import Call, open_call
from sessile.api.responses_tools import Called
from sessile.carry_on import read_marker
from sessile.errors import ReplicaRefused, SessileError, StreamBroken
from sessile.relay import payloads
from sessile.sealed import seal
from sessile.sessions.transcript import item_id


class Event(NamedTuple):
    """One event of a response: its type, and the JSON object that the client is sent."""

    type: str
    body: bytes


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct):
    """A piece of a tool call, or a whole one."""

    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CallDelta] | None = None


class _Logprobs(msgspec.Struct):
    content: list[dict[str, Any]] | None = None


class Choice(msgspec.Struct):
    """What is read of one choice of a chunk: a piece of it, or the whole message."""

    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: Any = None  # vLLM's name for the stop string that was met
    matched_stop: Any = None  # SGLang's


class Chunk(msgspec.Struct):
    """What is read of one chunk of a chat completion, or of a whole one."""

    choices: list[Choice] = []
    usage: dict[str, Any] | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_encode = msgspec.json.Encoder().encode
_SPOKEN = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}
_DELTA = {
    "output_text": "response.output_text.delta",
    "refusal": "response.refusal.delta",
    "reasoning_text": "response.reasoning_text.delta",
}
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
        self._seals = seals
        self._silent = silent
        self._waiting: list[tuple[int, dict[str, Any]]] = []  # MCP calls that are to be run
        self._spent: dict[str, Any] | None = None  # the usage of the engine calls before this one
        self._id: str = response["id"]
        self._extra = {} if stream_id is None else {"stream_id": stream_id}
        self._sequence = sequence
        self._output: list[dict[str, Any]] = response["output"]
        self._item: dict[str, Any] | None = None  # the open message or reasoning item
        self._item_index = 0
        self._kind = ""  # of its open part
        self._part_index = 0
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._calls: dict[int, Call] = {}
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None

    # -- what the turn does

    def accept(self) -> list[Event]:
        """The first two events of a response that waits until it can begin."""
        self.response["status"] = "queued"
        return [
            self._event("response.created", response=self.response),
            self._event("response.queued", response=self.response),
        ]

    def start(self) -> list[Event]:
        """The first two events, as far as they have not been told."""
        self.response["status"] = "in_progress"
        events = []
        if self._sequence == 0:
            events.append(self._event("response.created", response=self.response))
        if not self._begun:
            events.append(self._event("response.in_progress", response=self.response))
        return events

    def take_up(self, text: str) -> None:
        """Go on within the one message of the output, of which `text` was told."""
        self._item, self._item_index = self._output[0], 0
        self._item |= {"status": "in_progress", "content": []}
        self._kind, self._part_index, self._text = "output_text", 0, [text]

    def feed(self, data: bytes, events: list[Event]) -> None:
        """A stretch of whole server-sent events, as an engine sends them; what they tell is added
        to `events`.

        Raises `ReplicaRefused` for an error that the engine tells in its stream, and for what is
        no chunk at all; the caller hands it to `fail`.
        """
        if data[:1] == b":" and (replica := read_marker(data)) is not None:
            # Of no type that the API has: its clients hand it on, or pass over it.
            events.append(self._event("response.sessile.continued", replica=replica))
            return
        for payload in payloads(data):
            self.feed_chunk(payload, events)

    def feed_chunk(self, payload: bytes, events: list[Event]) -> None:
        """As `feed`, for the JSON of one chunk or of one whole completion."""
        try:
            chunk = _decode_chunk(payload)
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
        if not any(call.called.kind == "mcp" and not call.called.asks
                   for call in self._calls.values()):  # fmt: skip
            return []
        self._close(events, "completed")
        return [item for _, item in self._waiting]

    @property
    def waits(self) -> bool:
        """Whether the client has to act before the model can go on: to run a call of its own, or to
        approve one."""
        kinds = ("function_call", "custom_tool_call", "mcp_approval_request")
        return any(item["type"] in kinds for item in self._output)

    def go_on(self) -> None:
        """Another engine call follows for the same response."""
        self._finish_reason = None
        if self._usage is not None:
            self._spent = _sum(self._spent, _read_usage(self._usage))
            self._usage = None

    def settle(self, item: dict[str, Any], events: list[Event]) -> None:
        """An MCP call has been run: `item` holds its output, or its error."""
        place = next(place for place, waiting in self._waiting if waiting is item)
        self._waiting.remove((place, item))
        failed = item["error"] is not None
        kind = "response.mcp_call.failed" if failed else "response.mcp_call.completed"
        events.append(self._event(kind, item_id=item["id"], output_index=place))
        events.append(self._event("response.output_item.done", output_index=place, item=item))

    def place(self, item: dict[str, Any], events: list[Event]) -> None:
        """Add an item that no engine made: a list of tools, an approved call, a compaction."""
        kind = item["type"]
        place = self._add(item, events)
        where = {"item_id": item["id"], "output_index": place}
        if kind == "compaction":
            events.append(self._event("response.compaction.compacting", **where))
        else:
            failed = item.get("error") is not None
            events.append(self._event(f"response.{kind}.in_progress", **where))
            if kind == "mcp_call":
                done = f"response.{kind}_arguments.done"
                events.append(self._event(done, arguments=item["arguments"], **where))
            ended = "failed" if failed else "completed"
            events.append(self._event(f"response.{kind}.{ended}", **where))
        events.append(self._event("response.output_item.done", output_index=place, item=item))

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
            self._open_part("output_text", events)
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
        said = self._sequence
        self._close([], "incomplete")
        for _, item in self._waiting:
            item["status"] = "incomplete"
        self._sequence = said

    # -- one delta

    def _choose(self, choice: Choice, events: list[Event]) -> None:
        delta = choice.delta or choice.message
        if delta is not None and not self._silent:
            if thought := (delta.reasoning_content or delta.reasoning):
                self._speak("reasoning_text", thought, events)
            if delta.content:
                logprobs = choice.logprobs.content if choice.logprobs is not None else None
                self._speak("output_text", delta.content, events, logprobs)
            if delta.refusal:
                self._speak("refusal", delta.refusal, events)
            if delta.tool_calls:
                for position, call in enumerate(delta.tool_calls):
                    self._extend_call(call, position, events)
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason

    def _speak(
        self,
        kind: str,
        text: str,
        events: list[Event],
        logprobs: list[dict[str, Any]] | None = None,
    ) -> None:
        if self._kind != kind:
            self._open_part(kind, events)
        self._text.append(text)
        assert self._item is not None
        event: dict[str, Any] = {
            "type": _DELTA[kind],
            "item_id": self._item["id"],
            "output_index": self._item_index,
            "content_index": self._part_index,
            "delta": text,
            "sequence_number": self._sequence,
        }
        if kind == "output_text":
            event["logprobs"] = []
            if logprobs:
                told = [_logprob(entry) for entry in logprobs]
                self._logprobs += told
                event["logprobs"] = told
        if self._extra:
            event.update(self._extra)
        self._sequence += 1
        events.append(Event(event["type"], _encode(event)))

    def _open_part(self, kind: str, events: list[Event]) -> None:
        """Open a part of `kind`, in the open item if it may hold one, else in a new one."""
        item_type = "reasoning" if kind == "reasoning_text" else "message"
        self._close_part(events)
        if self._item is not None and self._item["type"] != item_type:
            self._close_item(events, "completed")
        if self._item is None:
            prefix = "rs" if item_type == "reasoning" else "msg"
            item: dict[str, Any] = {
                "type": item_type,
                "id": item_id(prefix, self._id, len(self._output)),
                "status": "in_progress",
            }
            if item_type == "reasoning":
                item["summary"] = []
            else:
                item["role"] = "assistant"
            item["content"] = []
            self._item, self._item_index = item, self._add(item, events)
        self._kind = kind
        self._part_index = len(self._item["content"])
        events.append(self._part_event("response.content_part.added", _part(kind, "", [])))

    def _extend_call(self, delta: CallDelta, position: int, events: list[Event]) -> None:
        index = position if delta.index is None else delta.index
        call = self._calls.get(index)
        function = delta.function or _Function()
        if call is not None and function.name and delta.id and delta.id != call.upstream_id:
            # Some engines give every call of a reply the same index.
            index = max(self._calls) + 1
            call = None
        if call is None:
            self._close_part(events)
            if self._item is not None:
                self._close_item(events, "completed")
            name = function.name or ""
            called = self.called.get(name) or Called("function", name)
            call = open_call(called, self._id, len(self._output), delta.id)
            self._calls[index] = call
            self._add(call.item, events)
            events += [self._event(kind, **fields) for kind, fields in call.opened()]
        elif function.name and not call.item["name"]:
            call.item["name"] = function.name
        if function.arguments:
            told = call.extend(function.arguments)
            events += [self._event(kind, **fields) for kind, fields in told]

    # -- closing

    def _close(self, events: list[Event], status: str) -> None:
        """Close everything; `status` is the last item's, those before it are whole."""
        last = len(self._output) - 1
        self._close_part(events)
        if self._item is not None:
            self._close_item(events, status if self._item_index == last else "completed")
        for call in self._calls.values():
            told = call.close(status if call.index == last else "completed")
            events += [self._event(kind, **fields) for kind, fields in told]
            if call.runs:
                self._waiting.append((call.index, call.item))
            else:
                events.append(
                    self._event(
                        "response.output_item.done", output_index=call.index, item=call.item
                    )
                )
        self._calls = {}

    def _close_part(self, events: list[Event]) -> None:
        kind = self._kind
        if not kind:
            return
        assert self._item is not None
        text = "".join(self._text)
        part = _part(kind, text, self._logprobs)
        done = {_SPOKEN[kind]: text}
        if kind == "output_text":
            done["logprobs"] = self._logprobs  # type: ignore[assignment]
        events.append(
            self._event(
                _DELTA[kind].replace(".delta", ".done"),
                item_id=self._item["id"],
                output_index=self._item_index,
                content_index=self._part_index,
                **done,
            )
        )
        events.append(self._part_event("response.content_part.done", part))
        self._item["content"].append(part)
        self._kind, self._text, self._logprobs = "", [], []

    def _close_item(self, events: list[Event], status: str) -> None:
        assert self._item is not None
        item, self._item = self._item, None
        item["status"] = status
        if self._seals and item["type"] == "reasoning":
            item["encrypted_content"] = seal(
                "reasoning", [part["text"] for part in item["content"]]
            )
        events.append(
            self._event("response.output_item.done", output_index=self._item_index, item=item)
        )

    def _end(self, kind: str, now: float) -> Event:
        self.ended = True
        if self.response["status"] == "completed":
            self.response["completed_at"] = int(now)
        spent = None if self._usage is None else _read_usage(self._usage)
        self.response["usage"] = usage = _sum(self._spent, spent)
        if self._silent and usage is not None:
            usage |= {"output_tokens": 0, "total_tokens": usage["input_tokens"]}
        return self._event(kind, response=self.response)

    # -- making events

    def _add(self, item: dict[str, Any], events: list[Event]) -> int:
        place = len(self._output)
        self._output.append(item)
        events.append(self._event("response.output_item.added", output_index=place, item=item))
        return place

    def _part_event(self, kind: str, part: dict[str, Any]) -> Event:
        assert self._item is not None
        return self._event(
            kind,
            item_id=self._item["id"],
            output_index=self._item_index,
            content_index=self._part_index,
            part=part,
        )

    def _event(self, kind: str, **fields: Any) -> Event:
        body = {"type": kind, **fields, "sequence_number": self._sequence, **self._extra}
        self._sequence += 1
        return Event(kind, _encode(body))


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "output_text":
        return {"type": kind, "text": text, "annotations": [], "logprobs": logprobs}
    return {"type": kind, _SPOKEN[kind]: text}


def _logprob(entry: dict[str, Any]) -> dict[str, Any]:
    """A chat log-probability, with the bytes that the Responses API always gives."""
    tops = entry.get("top_logprobs") or []
    return {**_with_bytes(entry), "top_logprobs": [_with_bytes(top) for top in tops]}


def _with_bytes(entry: dict[str, Any]) -> dict[str, Any]:
    token = entry.get("token") or ""
    given = entry.get("bytes")
    return {
        "token": token,
        "logprob": entry.get("logprob") or 0.0,
        "bytes": list(token.encode("utf-8", "surrogatepass")) if given is None else given,
    }


def usage_in(answer: bytes) -> dict[str, Any] | None:
    """The usage of a whole chat completion, under its Responses names."""
    usage = _decode_chunk(answer).usage
    return None if usage is None else _read_usage(usage)


def _read_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Token counts under their Responses names.

    The API's types have no word for unknown: a count that the engine did not report is 0 here,
    and null in the turn's receipt.
    """
    prompt = _count(usage, "prompt_tokens")
    completion = _count(usage, "completion_tokens")
    prompt_details = usage.get("prompt_tokens_details")
    completion_details = usage.get("completion_tokens_details")
    reasoning = _count(completion_details, "reasoning_tokens") or _count(usage, "reasoning_tokens")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": _count(prompt_details, "cached_tokens"),
            "cache_write_tokens": 0,
        },
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }


def _sum(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two usages as one, with the details that they hold."""
    if one is None or other is None:
        return one or other
    return {
        name: _sum(value, other[name]) if isinstance(value, dict) else value + other[name]
        for name, value in one.items()
    }


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else 0


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
