"""A streamed answer put together into the plain one that its client asked for.

Some engines notice a hang-up only when they next write. For those a plain request goes upstream as
a stream, and the chunks are folded here: OpenAI's chat and text completions, several choices
included, with whatever other fields the engine gives.
"""

from collections.abc import Iterable
from typing import Any

_OBJECTS = {"chat.completion.chunk": "chat.completion"}


def fold(chunks: Iterable[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """The HTTP status and body that the chunks add up to.

    A chunk that is an error is the whole answer, with the status that it names (500 without).
    """
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        error = chunk.get("error")
        if error is not None:
            code = error.get("code") if isinstance(error, dict) else None
            return (code if isinstance(code, int) and 400 <= code < 600 else 500), chunk
        for part in chunk.get("choices") or ():
            index = part.get("index", 0)
            _add_choice(choices.setdefault(index, {"index": index}), part)
        # The first chunk names the answer; usage and timings come with the last.
        whole |= {k: v for k, v in chunk.items() if k != "choices" and (v or k not in whole)}
    whole["object"] = _OBJECTS.get(whole.get("object", ""), whole.get("object"))
    whole["choices"] = [choices[index] for index in sorted(choices)]
    return 200, whole


def _add_choice(choice: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name == "delta":
            message = choice.setdefault("message", {"role": "assistant", "content": None})
            _add_delta(message, value or {})
        elif name == "text":
            choice["text"] = choice.get("text", "") + value
        elif name == "logprobs" and isinstance(value, dict):
            _add_logprobs(choice, value)
        elif name != "index" and (value is not None or name not in choice):
            choice[name] = value


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value or ():
                _add_call(message.setdefault("tool_calls", []), call)
        elif isinstance(value, str) and name != "role":
            message[name] = (message.get(name) or "") + value
        elif value is not None:
            message[name] = value


def _add_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """Add a piece of a tool call; `index` only tells which, and is not part of a whole answer."""
    index = part.get("index", len(calls))
    while len(calls) <= index:
        calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    for name, value in part.items():
        if name == "function":
            for key, piece in (value or {}).items():
                call["function"][key] = call["function"].get(key, "") + (piece or "")
        elif name != "index" and value is not None:
            call[name] = value


def _add_logprobs(choice: dict[str, Any], part: dict[str, Any]) -> None:
    kept = choice.get("logprobs") or {}
    for name, value in part.items():
        both = isinstance(value, list) and isinstance(kept.get(name), list)
        kept[name] = kept[name] + value if both else value
    choice["logprobs"] = kept
