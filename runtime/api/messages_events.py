"""Chat completion chunks in, Anthropic Messages events out: one state machine a turn, pure.

One block is open at a time, as the API has it. It does no I/O and makes nothing up: a stream that
ends without a finish reason has failed. What the events tell is also put together as the message
that a client without a stream is given.
"""

from typing import Any

import msgspec

from sessile.api.chat_chunks import CallDelta, Choice, Chunk, FirstCall
from sessile.api.messages_body import Asked
from sessile.api.responses_sequence import Event
from sessile.api.wire import anthropic_error
from sessile.carry_on import read_marker
from sessile.errors import ReplicaRefused, SessileError, StreamBroken
from sessile.relay import payloads

_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode = msgspec.json.decode
_encode = msgspec.json.Encoder().encode
_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_PING = Event("ping", b'{"type":"ping"}')


class MessageStream:
    """The events of one message. Made by the API for one turn; `message` is the whole of it, final
    when `finish` has returned."""

    def __init__(self, message_id: str, asked: Asked) -> None:
        self.message: dict[str, Any] = {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": asked.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": {**read_usage({}), "service_tier": "standard"},
        }
        self._asked = asked
        self._content: list[dict[str, Any]] = self.message["content"]
        self._open: dict[str, Any] | None = None  # the block under way
        self._pieces: list[str] = []  # of its text, thinking or input
        self._call: tuple[int, str | None] = (-1, None)  # index and id of the call under way
        alone = asked.document.get("parallel_tool_calls") is False
        self._only = FirstCall() if alone else None
        self._finish_reason: str | None = None
        self._stop: Any = None
        self._usage: dict[str, Any] = {}

    def start(self) -> list[Event]:
        """The first events. What the prompt took is told at the end: engines say it only there."""
        return [self._event("message_start", message=self.message), _PING]

    def feed(self, data: bytes, events: list[Event]) -> None:
        """A stretch of whole server-sent events, as an engine sends them; what they tell is added
        to `events`.

        Raises `ReplicaRefused` for an error that the engine tells in its stream, for what is no
        chunk at all, and for pieces of calls that are mixed up; the caller hands it to `fail`.
        """
        if data[:1] == b":" and (replica := read_marker(data)) is not None:
            # Clients pass over a ping, whatever is in it.
            events.append(self._event("ping", continued={"replica": replica}))
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
            said = chunk.error.get("message") if isinstance(chunk.error, dict) else chunk.error
            raise ReplicaRefused(f"the engine failed: {said or 'it did not say why'}")
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            if choice.index == 0:
                self._choose(choice, events)

    def finish(self) -> list[Event]:
        """The stream has ended: close what is open and say how it went.

        Raises `StreamBroken` if it is not whole, and `ReplicaRefused` if the engine stopped it.
        """
        reason = self._finish_reason
        if reason is None:
            raise StreamBroken("the engine ended its answer before it was whole")
        if reason in ("abort", "error"):
            raise ReplicaRefused(f"the engine stopped the turn: {reason}")
        events: list[Event] = []
        self._close(events)
        stop = self._stop if self._stop in self._asked.stops else None
        told = _STOP_REASONS.get(reason, "end_turn")
        if told == "end_turn" and stop is not None:
            told = "stop_sequence"
        elif told == "end_turn" and any(b["type"] == "tool_use" for b in self._content):
            told = "tool_use"  # some engines say stop after a call that they had to make
        delta = {
            "stop_reason": told,
            "stop_sequence": stop if told == "stop_sequence" else None,
            "stop_details": None,
        }
        usage = read_usage(self._usage)
        self.message |= {**delta, "usage": {**usage, "service_tier": "standard"}}
        events.append(self._event("message_delta", delta=delta, usage=usage))
        events.append(self._event("message_stop"))
        return events

    def fail(self, error: SessileError) -> list[Event]:
        """The turn has failed: no event closes what is open, since a client must not take it for
        whole."""
        return [Event("error", _encode(anthropic_error(error, self.message["id"])))]

    # -- one delta

    def _choose(self, choice: Choice, events: list[Event]) -> None:
        delta = choice.delta or choice.message
        if delta is not None and not self._asked.silent:
            if thought := (delta.reasoning_content or delta.reasoning):
                self._speak("thinking", thought, events)
            if delta.content:
                self._speak("text", delta.content, events)
            if delta.refusal:
                self._speak("text", delta.refusal, events)
            for position, call in enumerate(delta.tool_calls or ()):
                if self._only is None or self._only.has(call, position):
                    self._extend(call, position, events)
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason
            self._stop = choice.matched_stop or choice.stop_reason

    def _speak(self, kind: str, text: str, events: list[Event]) -> None:
        if self._open is None or self._open["type"] != kind:
            block = {"type": kind, kind: ""}
            if kind == "thinking":
                block["signature"] = ""
            self._begin(block, events)
        self._tell(f"{kind}_delta", kind, text, events)

    def _extend(self, call: CallDelta, position: int, events: list[Event]) -> None:
        index = position if call.index is None else call.index
        name = call.function.name if call.function is not None else None
        open_index, open_id = self._call
        # Some engines give every call of a reply the same index.
        if name and (index != open_index or (call.id and call.id != open_id)):
            made = f"toolu_{self.message['id'].removeprefix('msg_')}{len(self._content):02x}"
            self._begin(
                {"type": "tool_use", "id": call.id or made, "name": name, "input": {}}, events
            )
            self._call = (index, call.id)
        arguments = call.function.arguments if call.function is not None else None
        if not arguments:
            return
        if index != self._call[0]:
            raise ReplicaRefused("the engine sent a piece of a tool call that is not under way")
        self._tell("input_json_delta", "partial_json", arguments, events)

    # -- blocks

    def _begin(self, block: dict[str, Any], events: list[Event]) -> None:
        self._close(events)
        self._open = block
        self._content.append(block)
        events.append(
            self._event("content_block_start", index=len(self._content) - 1, content_block=block)
        )

    def _tell(self, kind: str, field: str, piece: str, events: list[Event]) -> None:
        self._pieces.append(piece)
        if kind == "thinking_delta" and self._asked.hides_thinking:
            return
        self._delta({"type": kind, field: piece}, events)

    def _delta(self, delta: dict[str, Any], events: list[Event]) -> None:
        events.append(self._event("content_block_delta", index=len(self._content) - 1, delta=delta))

    def _close(self, events: list[Event]) -> None:
        """Close the block under way, if any, whole."""
        block, self._open = self._open, None
        if block is None:
            return
        whole = "".join(self._pieces)
        self._pieces, self._call = [], (-1, None)
        if block["type"] == "tool_use":
            block["input"] = _input(whole)
        elif block["type"] == "text":
            block["text"] = whole
        else:
            # NOTE: nothing is signed here. Clients drop thinking without a signature, so it is
            # the id of the turn that thought it; nobody checks it when it comes back.
            block["signature"] = self.message["id"]
            block["thinking"] = "" if self._asked.hides_thinking else whole
            signed = {"type": "signature_delta", "signature": block["signature"]}
            self._delta(signed, events)
        events.append(self._event("content_block_stop", index=len(self._content) - 1))

    def _event(self, kind: str, **fields: Any) -> Event:
        return Event(kind, _encode({"type": kind, **fields}))


def read_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Token counts under their Messages names, which divide the prompt: read from the cache,
    written to it, and the rest.

    What an engine does not report of the cache is null. The API's types have no such word for the
    totals: one that is not reported is 0 here, and null in the turn's receipt.
    """
    prompt = _count(usage, "prompt_tokens") or 0
    details = usage.get("prompt_tokens_details")
    cached = _count(details, "cached_tokens")
    created = _count(details, "created_cache_tokens")
    told: dict[str, Any] = {
        "input_tokens": max(prompt - (cached or 0) - (created or 0), 0),
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": cached,
        "output_tokens": _count(usage, "completion_tokens") or 0,
    }
    thought = _count(usage.get("completion_tokens_details"), "reasoning_tokens")
    if thought is None:
        thought = _count(usage, "reasoning_tokens")
    if thought is not None:
        told["output_tokens_details"] = {"thinking_tokens": thought}
    return told


def _count(counts: Any, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else None


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments. What is no JSON object, since the model erred or was cut short, is given
    as the API's documentation has clients give it back."""
    try:
        read = _decode(arguments) if arguments.strip() else {}
    except msgspec.DecodeError:
        read = None
    return read if isinstance(read, dict) else {"INVALID_JSON": arguments}
