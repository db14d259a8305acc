"""The messages of an Anthropic request as chat messages. Pure.

Every message becomes the same chat messages whatever follows it, so that the chat messages of turn
n are the beginning of those of turn n + 1: that is what an engine's prefix cache needs, and by what
a session is recognised. What an engine could not be told of is refused by name, save thinking that
another provider has encrypted, which says nothing to these engines and may be left out.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sessile.api.fields import flag_of, name_of, object_of, objects_of, one_of, shown, text_of
from sessile.errors import InvalidRequest

Block = Mapping[str, Any]
Message = dict[str, Any]

_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
# NOTE: Claude Code puts this line, which differs in every request, at the head of the system
# prompt for Anthropic's accounts. It would leave nothing of the prompt for a prefix cache to find.
_BILLING = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n?")


def to_messages(system: Any, given: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The chat messages of a request: `system` is its system prompt, `given` its messages.

    Neighbours of one role are one message, as the API has it. Raises `InvalidRequest` naming the
    place, as `messages[0].content[1]`.
    """
    messages: list[Message] = []
    rules = system_text(system, "system")
    if rules:
        messages.append({"role": "system", "content": rules})
    called: dict[str, bool] = {}  # the calls there are: whether each has been answered
    for index, message in enumerate(given):
        where = f"messages[{index}]"
        role = one_of(message.get("role"), ("user", "assistant", "system"), f"{where}.role")
        at = f"{where}.content"
        if role == "system":
            messages.append({"role": "system", "content": system_text(message.get("content"), at)})
        elif role == "user":
            _hear(messages, _blocks(message.get("content"), at), at, called)
        else:
            _say(messages, _blocks(message.get("content"), at), at, called)
    if messages[-1].get("tool_calls"):
        raise InvalidRequest(
            "the last message calls a tool: its tool_result must follow", param="messages"
        )
    return messages


# -- what was said to the model


def _hear(
    messages: list[Message], blocks: list[Block], where: str, called: dict[str, bool]
) -> None:
    """A user's message: results of calls, then what the user adds."""
    parts: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        at = f"{where}[{index}]"
        if block.get("type") == "tool_result":
            if parts:
                raise InvalidRequest(
                    f"{at}: a tool_result must come before other content", param=at
                )
            messages.append(_result(block, at, called))
        else:
            parts.append(_part(block, at))
    if not blocks:
        raise InvalidRequest(f"{where} must not be empty", param=where)
    if not parts:
        return
    last = messages[-1] if messages else {}
    if last.get("role") == "user":
        last["content"] = _joined([*_parts(last["content"]), *parts])
    else:
        messages.append({"role": "user", "content": _joined(parts)})


def _result(block: Block, where: str, called: dict[str, bool]) -> Message:
    call = name_of(block, "tool_use_id", f"{where}.tool_use_id")
    if called.get(call, True):
        raise InvalidRequest(
            f"{where}: no tool_use {shown(call)} waits for a result", param=f"{where}.tool_use_id"
        )
    called[call] = True
    parts = [
        _part(inner, f"{where}.content[{index}]")
        for index, inner in enumerate(_blocks(block.get("content") or [], f"{where}.content"))
    ]
    if flag_of(block, "is_error", False, f"{where}.is_error"):
        # A chat's tool message has no field for it.
        said = parts[0].get("text", "") if parts else ""
        if not said.lower().startswith("error"):
            parts.insert(0, {"type": "text", "text": "Error:"})
    return {"role": "tool", "tool_call_id": call, "content": _joined(parts)}


def _part(block: Block, where: str) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": _text(block, where)}
    if kind != "image":
        raise _refused(kind, where, "text, image and tool_result")
    if block.get("transformations"):
        raise _unsupported(f"{where}.transformations")
    source = object_of(block, "source", f"{where}.source")
    at = f"{where}.source"
    if one_of(source.get("type"), ("base64", "url", "file"), f"{at}.type") == "file":
        raise InvalidRequest(
            f"{at}: images of type file are not supported; there are base64 and url",
            param=f"{at}.type",
        )
    if source["type"] == "url":
        url = name_of(source, "url", f"{at}.url")
    else:
        media = one_of(source.get("media_type"), _IMAGES, f"{at}.media_type")
        url = f"data:{media};base64,{name_of(source, 'data', f'{at}.data')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Texts alone are one string, which every chat template takes."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def system_text(content: Any, where: str) -> str:
    """A system prompt, a string or text blocks, as one string."""
    texts = []
    for index, block in enumerate(_blocks(content or [], where)):
        at = f"{where}[{index}]"
        if block.get("type") != "text":
            raise _refused(block.get("type"), at, "text")
        text = _text(block, at)
        if index == 0:
            text = _BILLING.sub("", text, count=1) if _BILLING.match(text) else text
        if text:
            texts.append(text)
    return "\n".join(texts)


# -- what the model said


def _say(messages: list[Message], blocks: list[Block], where: str, called: dict[str, bool]) -> None:
    """A message of the model's: what it thought, its text, its calls."""
    said = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if said is None:
        said = {"role": "assistant", "content": ""}
        messages.append(said)
    for index, block in enumerate(blocks):
        at = f"{where}[{index}]"
        kind = block.get("type")
        if kind == "text":
            said["content"] = (said["content"] or "") + _text(block, at)
        elif kind == "thinking":
            thought = text_of(block, "thinking", f"{at}.thinking")
            if thought:
                said["reasoning_content"] = said.get("reasoning_content", "") + thought
        elif kind == "tool_use":
            call = name_of(block, "id", f"{at}.id")
            if call in called:
                raise InvalidRequest(
                    f"{at}: there are two tool_use {shown(call)}", param=f"{at}.id"
                )
            called[call] = False
            said.setdefault("tool_calls", []).append(_call(block, call, at))
        elif kind != "redacted_thinking":
            raise _refused(kind, at, "text, thinking, redacted_thinking and tool_use")
    if "tool_calls" in said and not said["content"]:
        said["content"] = None


def _call(block: Block, call: str, where: str) -> dict[str, Any]:
    if not isinstance(block.get("input"), dict):
        raise InvalidRequest(f"{where}.input must be an object", param=f"{where}.input")
    function = {
        "name": name_of(block, "name", f"{where}.name"),
        # As models are taught to write it, for templates that take it as it is.
        "arguments": json.dumps(block["input"], ensure_ascii=False),
    }
    return {"id": call, "type": "function", "function": function}


# -- blocks


def _blocks(content: Any, where: str) -> list[Block]:
    """Content is a list of blocks, or a string, which is short for one text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of blocks", param=where)
    return list(objects_of({"content": content}, "content", where))


def _text(block: Block, where: str) -> str:
    if block.get("citations"):
        raise _unsupported(f"{where}.citations")
    return text_of(block, "text", f"{where}.text")


def _refused(kind: Any, where: str, known: str) -> InvalidRequest:
    if not isinstance(kind, str):
        return InvalidRequest(f"{where}.type must be a string", param=f"{where}.type")
    return InvalidRequest(
        f"{where}: blocks of type {shown(kind)} are not supported here; there are {known}",
        param=f"{where}.type",
    )


def _unsupported(where: str) -> InvalidRequest:
    return InvalidRequest(f"{where} is not supported", param=where)
