"""Bytes of an engine's answer on their way to the client, read only where something must be known.

The relay hands on whole server-sent events as they came. It looks inside only those that carry
usage: the counts are kept, and the extra chunk that holds them is withheld from a client that did
not ask for it. So is what the engine of a replica that speculates was asked to tell of that.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

_CALL = re.compile(rb'"tool_calls"\s*:\s*\[.*?"name"\s*:\s*"([^"\\]{1,200})"', re.DOTALL)
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_DONE = (b"data: [DONE]\n\n", b"data: [DONE]\r\n\r\n", b"data:[DONE]\n\n")
_DETAILS = b'"spec_tokens_details"'  # SGLang's, in an event of its own
_BREAK = re.compile(rb"\r?\n\r?\n")


class UsageRelay:
    """One streamed answer. `usage_body` is the last object seen that held a usage, if any, `called`
    the name of the first tool that it calls, `done` whether it has said that it is at its end.
    With `steps`, the events are counted as `events`: most engines send one a decoding step. With
    `details`, what they say of speculation is kept with the usage, and withheld."""

    __slots__ = (
        "_details", "_relay_usage", "_steps", "_tail", "_told", "called", "done", "events",
        "usage_body",
    )  # fmt: skip

    def __init__(self, relay_usage: bool, *, steps: bool = False, details: bool = False) -> None:
        self._relay_usage = relay_usage
        self._steps = steps
        self._details = details
        self.start_over()

    def start_over(self) -> None:
        """Nothing that has come counts any more: the answer is begun anew."""
        self._told: dict[str, Any] = {}
        self.events = 0
        self._tail = b""
        self.called = ""
        self.done = False
        self.usage_body: dict[str, Any] | None = None

    def feed(self, chunk: bytes) -> bytes:
        """The whole events that are now complete, perhaps none; what is begun is held back."""
        if self._tail:
            chunk = self._tail + chunk
            self._tail = b""
        if not chunk.endswith(b"\n\n") and not chunk.endswith(b"\n\r\n"):
            ends = max(chunk.rfind(b"\n\n") + 2, chunk.rfind(b"\n\r\n") + 3)
            if ends < 3:
                self._tail = chunk
                return b""
            self._tail = chunk[ends:]
            chunk = chunk[:ends]
        self.done = chunk.endswith(_DONE)
        if self._steps:
            self.events += chunk.count(b"data:")
            if self._details and _DETAILS in chunk:
                chunk = self._keep_details(chunk)
        if b'"tool_calls"' in chunk and not self.called and (call := _CALL.search(chunk)):
            self.called = call[1].decode("utf-8", "replace")
        if b'"usage"' in chunk and _USAGE.search(chunk):
            return self._sift(chunk)
        return chunk

    def rest(self) -> bytes:
        """What an engine left unfinished at the end of its stream."""
        tail, self._tail = self._tail, b""
        return tail

    def _keep_details(self, chunk: bytes) -> bytes:
        kept = []
        for event in _whole(chunk):
            body = read_data(event) if _DETAILS in event else None
            if body is not None and isinstance(body.get("sglext"), dict):
                self._told = {"sglext": body["sglext"]}
                if body.get("choices") == []:
                    continue
            kept.append(event)
        return b"".join(kept)

    def _sift(self, chunk: bytes) -> bytes:
        kept: list[bytes] = []
        for event in _whole(chunk):
            if _USAGE.search(event):
                body = read_data(event)
                if body is not None and isinstance(body.get("usage"), dict):
                    self.usage_body = body | self._told
                    if not self._relay_usage and body.get("choices") == []:
                        continue
            kept.append(event)
        return b"".join(kept)


def _whole(chunk: bytes) -> Iterator[bytes]:
    """The events of a chunk that ends with one."""
    start = 0
    for match in _BREAK.finditer(chunk):
        yield chunk[start : match.end()]
        start = match.end()


def events(stream: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects in the `data:` fields of a stretch of server-sent events, as `payloads`."""
    for payload in payloads(stream):
        body = _object(payload)
        if body is not None:
            yield body


def payloads(stream: bytes) -> Iterator[bytes]:
    """The `data:` fields of a stretch of whole server-sent events, one line each as engines send
    them, garbage too; `[DONE]` left out."""
    for line in stream.split(b"\n"):
        if line.startswith(b"data:"):
            payload = line[5:].strip()
            if payload and payload != b"[DONE]":
                yield payload


def read_data(event: bytes) -> dict[str, Any] | None:
    """The event's `data:` lines as a JSON object; None for `[DONE]`, comments and garbage."""
    return _object(b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:")))


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        body = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return body if isinstance(body, dict) else None


def read_reply(bodies: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The assistant message that a chat answer's first choice adds up to; None if there is none.

    Takes the chunks of a stream, or the one body of an answer that was not streamed.
    """
    text: list[str] = []
    calls: dict[int, dict[str, str]] = {}
    seen = False
    for body in bodies:
        for choice in body.get("choices") or ():
            if choice.get("index", 0) != 0:
                continue
            part = choice.get("delta") or choice.get("message") or {}
            seen = seen or bool(part)
            if isinstance(part.get("content"), str):
                text.append(part["content"])
            for position, call in enumerate(part.get("tool_calls") or ()):
                known = calls.setdefault(call.get("index", position), {"name": "", "arguments": ""})
                function = call.get("function") or {}
                known["name"] += function.get("name") or ""
                known["arguments"] += function.get("arguments") or ""
    if not seen:
        return None
    return {
        "role": "assistant",
        "content": "".join(text),
        "tool_calls": [{"function": calls[index]} for index in sorted(calls)],
    }
