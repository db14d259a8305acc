"""Chat completion chunks in, Responses events out: one state machine a turn, pure.

It numbers the events, opens and closes items and their parts, and keeps the object that the last
event carries. It does no I/O, makes nothing up (a stream that ends without a finish reason has
failed), and says exactly one last word: completed, incomplete or failed.
"""

from typing import Any, NamedTuple

import msgspec

from sessile import errors
from sessile.errors import ReplicaRefused, SessileError, StreamBroken
from sessile.relay import payloads
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


class _Call:
    """A function call under way. Calls stay open to the end, so that none can lose a piece."""

    __slots__ = ("arguments", "index", "item", "upstream_id")

    def __init__(self, index: int, item: dict[str, Any], upstream_id: str | None) -> None:
        self.index = index
        self.item = item
        self.upstream_id = upstream_id
        self.arguments: list[str] = []


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
    `stream_id` is echoed in every event. One that goes on where another was cut off begins at
    number `sequence`; `begun` says that `response.in_progress` was told then.
    """

    def __init__(
        self,
        response: dict[str, Any],
        stream_id: str | None = None,
        *,
        sequence: int = 0,
        begun: bool = False,
    ) -> None:
        self.response = response
        self.ended = False
        self._begun = begun
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
        self._calls: dict[int, _Call] = {}
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

    def feed(self, data: bytes, events: list[Event]) -> None:
        """A stretch of whole server-sent events, as an engine sends them; what they tell is added
        to `events`.

        Raises `ReplicaRefused` for an error that the engine tells in its stream, and for what is
        no chunk at all; the caller hands it to `fail`.
        """
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

    def finish(self, now: float) -> list[Event]:
        """The stream has ended: close what is open and say how it went."""
        if self.ended:
            return []
        reason = self._finish_reason
        if reason is None:
            return self.fail(StreamBroken("the engine ended its answer before it was whole"), now)
        if reason in ("abort", "error"):
            return self.fail(ReplicaRefused(f"the engine stopped the turn: {reason}"), now)
        incomplete = _INCOMPLETE.get(reason)
        events: list[Event] = []
        if not self._output:
            self._open_part("output_text", events)
        self._close(events, "incomplete" if incomplete else "completed")
        self.response["status"] = "incomplete" if incomplete else "completed"
        self.response["incomplete_details"] = {"reason": incomplete} if incomplete else None
        return [*events, self._end("response." + self.response["status"], now)]

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
        self._sequence = said

    # -- one delta

    def _choose(self, choice: Choice, events: list[Event]) -> None:
        delta = choice.delta or choice.message
        if delta is not None:
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
            place = len(self._output)
            item = {
                "type": "function_call",
                "id": item_id("fc", self._id, place),
                "call_id": delta.id or item_id("call", self._id, place),
                "name": function.name or "",
                "arguments": "",
                "status": "in_progress",
            }
            call = self._calls[index] = _Call(self._add(item, events), item, delta.id)
        elif function.name and not call.item["name"]:
            call.item["name"] = function.name
        if function.arguments:
            call.arguments.append(function.arguments)
            events.append(
                self._event(
                    "response.function_call_arguments.delta",
                    item_id=call.item["id"],
                    output_index=call.index,
                    delta=function.arguments,
                )
            )

    # -- closing

    def _close(self, events: list[Event], status: str) -> None:
        """Close everything; `status` is the last item's, those before it are whole."""
        last = len(self._output) - 1
        self._close_part(events)
        if self._item is not None:
            self._close_item(events, status if self._item_index == last else "completed")
        for call in self._calls.values():
            item = call.item
            item["arguments"] = "".join(call.arguments)
            item["status"] = status if call.index == last else "completed"
            events.append(
                self._event(
                    "response.function_call_arguments.done",
                    item_id=item["id"],
                    output_index=call.index,
                    arguments=item["arguments"],
                )
            )
            events.append(
                self._event("response.output_item.done", output_index=call.index, item=item)
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
        events.append(
            self._event("response.output_item.done", output_index=self._item_index, item=item)
        )

    def _end(self, kind: str, now: float) -> Event:
        self.ended = True
        if self.response["status"] == "completed":
            self.response["completed_at"] = int(now)
        if self._usage is not None:
            self.response["usage"] = _read_usage(self._usage)
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
