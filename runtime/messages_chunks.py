"""An engine's own Anthropic Messages events as the chat chunks that every turn is read from. Pure.

What a turn is counted, remembered and continued by is read from chat chunks; an engine that was
asked in the client's own API answers in that. One for each answer, given bytes as they come.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sessile.carry_on import split
from sessile.relay import read_data

_encode = msgspec.json.encode

_FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_AT_FAULT = {  # kinds of error that another engine would tell, too
    "invalid_request_error": 400,
    "not_found_error": 404,
    "request_too_large": 413,
}
_DONE = b"data: [DONE]\n\n"


def begins(data: bytes) -> bool | None:
    """Whether these first events are those of an answer, or tell of an error; None where they do
    not say yet."""
    for event in split(data):
        kind = (read_data(event) or {}).get("type")
        if kind == "error":
            return False
        if kind not in ("message_start", "ping"):
            return True
    return None


class MessagesChunks:
    """Reads one stream of Messages events. Of an engine that `counts_cached`, a count that is left
    out says that nothing was found cached."""

    def __init__(self, *, counts_cached: bool = False) -> None:
        self._counts_cached = counts_cached
        self._tail = b""
        self._head: dict[str, Any] = {"object": "chat.completion.chunk"}
        self._usage: dict[str, Any] = {}
        self._calls: dict[Any, int] = {}  # the number of each block that is a call

    def feed(self, data: bytes) -> bytes:
        """The chunks that the events make which are now whole; perhaps none."""
        self._tail += data
        events = split(self._tail)
        self._tail = self._tail[sum(map(len, events)) :]
        return b"".join([chunk for event in events for chunk in self._read(event)])

    def _read(self, event: bytes) -> Iterator[bytes]:
        body = read_data(event)
        if body is None:
            yield event  # garbage stays for its reader to judge
            return
        match body.get("type"):
            case "message_start":
                message = _object(body, "message")
                self._head |= {name: message[name] for name in ("id", "model") if name in message}
                self._count(_object(message, "usage"))
                yield self._chunk({"role": "assistant", "content": ""})
            case "content_block_start":
                yield from self._begin(body.get("index"), _object(body, "content_block"))
            case "content_block_delta":
                yield from self._say(body.get("index"), _object(body, "delta"))
            case "message_delta":
                self._count(_object(body, "usage"))
                yield from self._end(_object(body, "delta"))
            case "message_stop":
                yield _DONE
            case "error":
                yield _event({"error": _error(_object(body, "error"))})

    def _count(self, told: Mapping[str, Any]) -> None:
        self._usage |= {name: value for name, value in told.items() if value is not None}

    def _begin(self, index: Any, block: Mapping[str, Any]) -> Iterator[bytes]:
        if block.get("type") == "tool_use":
            number = self._calls[index] = len(self._calls)
            function = {"name": block.get("name"), "arguments": ""}
            call = {"index": number, "id": block.get("id"), "type": "function"}
            yield self._chunk({"tool_calls": [{**call, "function": function}]})
        else:
            yield from self._say(index, block)

    def _say(self, index: Any, part: Mapping[str, Any]) -> Iterator[bytes]:
        """A piece of a block, or what it begins with."""
        if part.get("thinking"):
            yield self._chunk({"reasoning_content": part["thinking"]})
        if part.get("text"):
            yield self._chunk({"content": part["text"]})
        if part.get("partial_json"):
            function = {"arguments": part["partial_json"]}
            call = {"index": self._calls.get(index, -1), "function": function}
            yield self._chunk({"tool_calls": [call]})

    def _end(self, delta: Mapping[str, Any]) -> Iterator[bytes]:
        """How it finished, and what it took. No reason at all is what an engine gives that was
        made to stop."""
        reason = delta.get("stop_reason")
        finish = _FINISHES.get(reason, "stop") if isinstance(reason, str) else "abort"
        choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": finish}
        if delta.get("stop_sequence") is not None:
            choice["stop_reason"] = delta["stop_sequence"]
        yield _event({**self._head, "choices": [choice]})
        if self._counts_cached:
            self._usage.setdefault("cache_read_input_tokens", 0)
        if (usage := _counts(self._usage)) is not None:
            yield _event({**self._head, "choices": [], "usage": usage})

    def _chunk(self, delta: dict[str, Any]) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return _event({**self._head, "choices": [choice]})


def _counts(told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Messages divides the prompt: read from the cache, written to it, and the rest."""
    rest, made = told.get("input_tokens"), told.get("output_tokens")
    if not isinstance(rest, int) or not isinstance(made, int):
        return None
    names = {
        "cached_tokens": "cache_read_input_tokens",
        "created_cache_tokens": "cache_creation_input_tokens",
    }
    details = {name: n for name, own in names.items() if isinstance(n := told.get(own), int)}
    prompt = rest + sum(details.values())
    counted = {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
    }
    return {**counted, "prompt_tokens_details": details} if details else counted


def _error(told: Mapping[str, Any]) -> dict[str, Any]:
    said = told.get("message")
    code = _AT_FAULT.get(str(told.get("type")), 500)
    return {"message": said if isinstance(said, str) else "", "code": code}


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
