"""Chained keys of a conversation: the key after message n stands for all of messages 1 to n, the
key of block n for all of the prompt's blocks 1 to n.

Two requests have equal keys at a message exactly if they agree up to there, whatever their client
does to JSON on the way. Nothing is stored here and no session is chosen.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

BLOCK_BYTES = 1024
_KEY_BYTES = 16
_DEEPEST = (
    8  # how many earlier replies of a request are worth a look: parallel branches re-join late
)


class Prompt(NamedTuple):
    """What a prompt shares with others: `blocks` are the chained keys of its runs of
    `BLOCK_BYTES`, the last one not full left out; `size` is its length in bytes, `opening` the key
    of the first run, or of all where that is shorter."""

    blocks: tuple[int, ...]
    size: int
    opening: int


def read_prompt(document: Mapping[str, Any], tenant: str) -> Prompt:
    """The prompt of a request body for an engine: chat messages behind their tools, or the one
    prompt of a completion. Tenants share no key, nor do the adapters of a model."""
    tools = document.get("tools")
    pieces = [_encode(tools)] if tools else []
    messages = document.get("messages")
    if isinstance(messages, list):
        for message in messages:
            _put(pieces, message)
    elif isinstance(document.get("prompt"), str):
        pieces.append(document["prompt"])
    text = "".join(pieces).encode("utf-8", "surrogatepass")
    view = memoryview(text)  # a copy of each block would cost as much as its key
    # NOTE: not for secrets: who made two prompts collide would only misplace his own sessions.
    key = xxh3_64_intdigest(tenant.encode())
    keys: list[int] = []
    for end in range(BLOCK_BYTES, len(text) + 1, BLOCK_BYTES):
        key = xxh3_64_intdigest(view[end - BLOCK_BYTES : end], key)
        keys.append(key)
    opening = keys[0] if keys else xxh3_64_intdigest(text, key) if text else 0
    return Prompt(tuple(keys), len(text), opening)


class Lineage:
    """The keys of one request's messages. Made per request, cheap to keep until its reply is known.

    `known` are the keys after each assistant message, the deepest first, at most eight: where an
    earlier request and its reply may have ended. A request without one continues nothing, so a
    system prompt alone, or an opening question that many ask, identifies nobody.
    """

    __slots__ = ("_state", "known")

    def __init__(self, messages: Iterable[Mapping[str, Any]]) -> None:
        state = blake2b(digest_size=_KEY_BYTES)
        known: list[str] = []
        for message in messages:
            state.update(canonical(message))
            if message.get("role") == "assistant":
                known.append(state.hexdigest())
        self._state = state
        self.known = tuple(known[: -_DEEPEST - 1 : -1])

    def after(self, reply: Mapping[str, Any]) -> str:
        """The key after the request and this assistant message: what its continuation will show."""
        state = self._state.copy()
        state.update(canonical(reply))
        return state.hexdigest()


def canonical(message: Mapping[str, Any]) -> bytes:
    """A chat message as bytes that survive a client's round trip.

    Kept: role, content (text parts joined, outer white space dropped), tool calls (name and
    arguments without white space), the call that a tool message answers. Left out: what clients
    add or drop at will, such as `name`, `refusal`, reasoning text and null fields.
    """
    pieces: list[str] = []
    _put(pieces, message)
    return "".join(pieces).encode("utf-8", "surrogatepass")


def _put(pieces: list[str], message: Mapping[str, Any]) -> None:
    """Append the parts of a message as `canonical` gives it."""
    pieces += (str(message.get("role", "")), "\x1f", _text(message.get("content")))
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            arguments = function.get("arguments")
            text = arguments if isinstance(arguments, str) else _encode(arguments)
            if "\\u" in text:
                text = _plain(text)
            pieces += ("\x1f", str(function.get("name", "")), "\x1f", "".join(text.split()))
    if answered := message.get("tool_call_id"):
        pieces += ("\x1f", str(answered))
    pieces.append("\x1e")


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and "text" in part
        for part in content
    ):
        return "\n".join(str(part["text"]) for part in content).strip()
    return _encode(content)


def _plain(arguments: str) -> str:
    """Arguments with letters for `\\u` escapes, as a client writes them that has read them."""
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments


def _encode(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
