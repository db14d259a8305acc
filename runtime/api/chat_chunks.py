"""What is read of a chat completion, whole or in chunks, where its content is told otherwise."""

from typing import Any

import msgspec


class Function(msgspec.Struct):
    """The name of what is called, or a piece of its arguments."""

    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct):
    """A piece of a tool call, or a whole one."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class FirstCall:
    """The first call of a reply, told from those beside it. Where one at a time was asked for they
    are no part of the reply, though some engines make them all the same."""

    def __init__(self) -> None:
        self._index: int | None = None
        self._id: str | None = None
        self._others = False  # what comes under its index is another's now

    def has(self, delta: CallDelta, position: int) -> bool:
        """Whether a delta is of it: the next one, in the order in which they come."""
        index = position if delta.index is None else delta.index
        if self._index is None:
            self._index, self._id = index, delta.id
        named = delta.function is not None and bool(delta.function.name)
        if index == self._index and named and delta.id:
            self._others = delta.id != self._id  # some engines give every call the same index
        return index == self._index and not self._others


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


decode_chunk = msgspec.json.Decoder(Chunk).decode
"""A chunk, or a whole completion. Raises `msgspec.DecodeError` and `UnicodeDecodeError`."""
