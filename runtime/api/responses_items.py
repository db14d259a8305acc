"""Response items as chat messages. Pure: which items there are was decided elsewhere.

Every item becomes the same message wherever it stands, and items of one turn never change a
message of an earlier one: the messages of turn n are the beginning of those of turn n + 1, byte for
byte, which is what an engine's prefix cache needs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sessile.errors import InvalidRequest, NotSupported

Item = Mapping[str, Any]
Message = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = ("input_text", "output_text", "text")


def to_messages(
    instructions: str | None, past: Iterable[Sequence[Item]], new: Sequence[Item]
) -> list[Message]:
    """The chat messages of a turn: `past` are the earlier turns' items, in stretches of input and
    output, `new` the request's own.

    Instructions of earlier turns are not carried over: only this request's are given. Raises
    `InvalidRequest` or `NotSupported`, naming the place in `input`.
    """
    messages: list[Message] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    unanswered: set[str] = set()
    for stretch in past:
        _append(messages, stretch, unanswered)
    _append(messages, new, unanswered)
    return messages


def _append(messages: list[Message], items: Sequence[Item], unanswered: set[str]) -> None:
    """Add one stretch. What the model said in a row (reasoning, text, calls) is one message."""
    said: Message | None = None
    start = len(messages)
    for index, item in enumerate(items):
        where = f"input[{index}]"
        if not isinstance(item, Mapping):
            raise InvalidRequest(f"{where} must be an object", param=where)
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message":
            role = item.get("role")
            if role not in _ROLES:
                raise InvalidRequest(
                    f"{where}.role must be one of {', '.join(_ROLES)}, not {_shown(role)}",
                    param=f"{where}.role",
                )
            if role == "assistant":
                said = _say(messages, said, _plain_text(item.get("content"), f"{where}.content"))
                continue
            content = _content(item.get("content"), f"{where}.content")
            messages.append({"role": "user" if role == "user" else "system", "content": content})
            said = None
        elif kind == "reasoning":
            text = _reasoning(item, where)
            if text:
                said = {"role": "assistant", "content": None, "reasoning_content": text}
                messages.append(said)
        elif kind == "function_call":
            if said is None:
                said = {"role": "assistant", "content": None}
                messages.append(said)
            call = _call(item, where)
            said.setdefault("tool_calls", []).append(call)
            unanswered.add(call["id"])
        elif kind == "function_call_output":
            messages.append(_output(item, where, unanswered))
            said = None
        else:
            raise _refused(kind, where)
    # NOTE: a message with neither text nor calls is one whose text is empty; null content is
    # refused by some engines unless calls stand beside it.
    for message in messages[start:]:
        if message["content"] is None and "tool_calls" not in message:
            message["content"] = ""


def _say(messages: list[Message], said: Message | None, text: str) -> Message:
    """Text of the model: of the message under way where it has none yet, or where it has made
    calls, whose results must follow them directly."""
    if said is not None and (said["content"] is None or "tool_calls" in said):
        said["content"] = (said["content"] or "") + text
        return said
    said = {"role": "assistant", "content": text}
    messages.append(said)
    return said


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """A string stays one, and so does a list of one text; other lists become chat parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param=where)
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise InvalidRequest(f"{where} must be an object", param=where)
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": _string(part, "text", where)}
    if kind == "input_image":
        if part.get("image_url") is None:
            raise NotSupported(
                f"{where}.file_id is not supported: give the image as image_url",
                param=f"{where}.file_id",
            )
        image = {"url": _string(part, "image_url", where)}
        if part.get("detail") is not None:
            image["detail"] = _string(part, "detail", where)
        return {"type": "image_url", "image_url": image}
    if kind == "input_audio":
        return {name: part[name] for name in part if name != "prompt_cache_breakpoint"}
    if kind == "input_file":
        raise NotSupported(f"{where}: input_file is not supported", param=f"{where}.type")
    raise InvalidRequest(
        f"{where}.type must be input_text, input_image or input_audio, not {_shown(kind)}",
        param=f"{where}.type",
    )


def _plain_text(content: Any, where: str) -> str:
    """What the model said, as one string: texts and refusals in their order."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param=where)
    texts = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS:
            texts.append(_string(part, "text", at))
        elif kind == "refusal":
            texts.append(_string(part, "refusal", at))
        else:
            raise InvalidRequest(
                f"{at}.type must be output_text or refusal, not {_shown(kind)}", param=f"{at}.type"
            )
    return "".join(texts)


def _reasoning(item: Item, where: str) -> str:
    """The text of a reasoning item. One that holds only what another provider has encrypted says
    nothing to these engines, and reasoning may be left out of a conversation."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise InvalidRequest(f"{where}.content must be a list of parts", param=f"{where}.content")
    return "".join(_string(part, "text", where) for part in parts)


def _call(item: Item, where: str) -> dict[str, Any]:
    function = {
        "name": _string(item, "name", where),
        "arguments": _string(item, "arguments", where),
    }
    return {"id": _string(item, "call_id", where), "type": "function", "function": function}


def _output(item: Item, where: str, unanswered: set[str]) -> Message:
    call = _string(item, "call_id", where)
    if call not in unanswered:
        raise InvalidRequest(
            f"{where}: no function call {call!r} waits for an output", param=f"{where}.call_id"
        )
    unanswered.discard(call)
    content = _content(item.get("output"), f"{where}.output")
    return {"role": "tool", "tool_call_id": call, "content": content}


def _refused(kind: Any, where: str) -> InvalidRequest | NotSupported:
    known = "message, reasoning, function_call, function_call_output"
    if not isinstance(kind, str):
        return InvalidRequest(f"{where}.type must be one of {known}", param=f"{where}.type")
    return NotSupported(
        f"{where}: items of type {_shown(kind)} are not supported; there are {known}",
        param=f"{where}.type",
    )


def _string(item: Item, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name} must be a string", param=f"{where}.{name}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
