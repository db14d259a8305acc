"""Response items as chat messages. Pure: which items there are was decided elsewhere.

Every item becomes the same message wherever it stands, and items of one turn never change a
message of an earlier one: the messages of turn n are the beginning of those of turn n + 1, byte for
byte, which is what an engine's prefix cache needs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from sessile.api.fields import shown, text_of
from sessile.api.mcp_tools import upstream_name
from sessile.errors import InvalidRequest, NotSupported
from sessile.sealed import is_sealed, unseal

Item = Mapping[str, Any]
Message = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = ("input_text", "output_text", "text")
_CALLS = ("function_call", "custom_tool_call", "mcp_approval_request")
_ANSWERS = {  # by what names the call that an item answers
    "function_call_output": "call_id",
    "custom_tool_call_output": "call_id",
    "mcp_approval_response": "approval_request_id",
    "mcp_call": "approval_request_id",
}
_DENIED = "The user did not approve this call"
_PAST = "conversation"
_SUMMARY = "The conversation so far, summed up:\n\n"


def to_messages(
    instructions: str | None, past: Iterable[Sequence[Item]], new: Sequence[Item]
) -> list[Message]:
    """The chat messages of a turn: `past` are the earlier turns' items, in stretches of input and
    output, `new` the request's own.

    Instructions of earlier turns are not carried over: only this request's are given. Raises
    `InvalidRequest` or `NotSupported`, naming the place in `input`, or in the conversation before.
    """
    messages: list[Message] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    rules = len(messages)
    unanswered: set[str] = set()
    for stretch in past:
        _append(messages, rules, stretch, unanswered, _PAST)
    _append(messages, rules, new, unanswered)
    # NOTE: a message with neither text nor calls is one whose text is empty; null content is
    # refused by some engines unless calls stand beside it.
    for message in messages:
        if message["content"] is None and "tool_calls" not in message:
            message["content"] = ""
    return messages


def check_items(items: Sequence[Item], past: Sequence[Item]) -> None:
    """Whether a turn could be given the items, which come after those of the `past`. Raises
    `InvalidRequest` or `NotSupported`, naming the place in `items`."""
    unanswered: set[str] = set()
    _append([], 0, past, unanswered, _PAST)
    _append([], 0, items, unanswered, "items")


def answers_call(item: Item) -> bool:
    """Whether an item can only come after another, which it answers."""
    return item.get(_ANSWERS.get(str(item.get("type")), "")) is not None


def _append(
    messages: list[Message], rules: int, items: Sequence[Item], unanswered: set[str],
    of: str = "input",
) -> None:  # fmt: skip
    """Add one stretch of what it is `of`. What the model said in a row (reasoning, text, calls) is
    one message. A compaction stands for all before it but the `rules` at the beginning. In the past
    the answer to a call that is there no more, since it was deleted, is left out."""
    said: Message | None = None
    for index, item in enumerate(items):
        where = f"{of}[{index}]"
        if not isinstance(item, Mapping):
            raise InvalidRequest(f"{where} must be an object", param=where)
        kind = item.get("type", "message" if "role" in item else None)
        if of == _PAST and answers_call(item) and item[_ANSWERS[kind]] not in unanswered:
            continue
        if kind == "message":
            role = item.get("role")
            if role not in _ROLES:
                raise InvalidRequest(
                    f"{where}.role must be one of {', '.join(_ROLES)}, not {shown(role)}",
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
        elif kind in _CALLS:
            call = _call(kind, item, where)
            said = _say_call(messages, said, call)
            unanswered.add(call["id"])
        elif kind in ("function_call_output", "custom_tool_call_output"):
            messages.append(_output(item, where, unanswered))
            said = None
        elif kind == "mcp_call":
            asked = item.get("approval_request_id")
            if asked is None:
                call = _call(kind, item, where)
                _say_call(messages, said, call)
                asked = call["id"]
            else:
                _answer(asked, unanswered, f"{where}.approval_request_id")
            messages.append({"role": "tool", "tool_call_id": asked, "content": _result(item)})
            said = None
        elif kind == "mcp_approval_response":
            asked = _string(item, "approval_request_id", where)
            if asked not in unanswered:
                raise _unknown(asked, f"{where}.approval_request_id")
            if item.get("approve") is not True:
                unanswered.discard(asked)
                content = _DENIED + (f": {item['reason']}" if item.get("reason") else ".")
                messages.append({"role": "tool", "tool_call_id": asked, "content": content})
            said = None
        elif kind == "mcp_list_tools":
            continue
        elif kind == "compaction":
            del messages[rules:]
            unanswered.clear()
            said = None
            summary, kept = open_compaction(item, where)
            messages.append({"role": "user", "content": _SUMMARY + summary})
            _append(messages, rules, kept, unanswered, of)
        else:
            raise _refused(kind, where)


def _say(messages: list[Message], said: Message | None, text: str) -> Message:
    """Text of the model: of the message under way where it has none yet, or where it has made
    calls, whose results must follow them directly."""
    if said is not None and (said["content"] is None or "tool_calls" in said):
        said["content"] = (said["content"] or "") + text
        return said
    said = {"role": "assistant", "content": text}
    messages.append(said)
    return said


def _say_call(messages: list[Message], said: Message | None, call: dict[str, Any]) -> Message:
    """A call of the model: of the message under way if there is one."""
    if said is None:
        said = {"role": "assistant", "content": None}
        messages.append(said)
    said.setdefault("tool_calls", []).append(call)
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
        f"{where}.type must be input_text, input_image or input_audio, not {shown(kind)}",
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
                f"{at}.type must be output_text or refusal, not {shown(kind)}", param=f"{at}.type"
            )
    return "".join(texts)


def _reasoning(item: Item, where: str) -> str:
    """The text of a reasoning item. One that holds only what another provider has encrypted says
    nothing to these engines, and reasoning may be left out of a conversation."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise InvalidRequest(f"{where}.content must be a list of parts", param=f"{where}.content")
    sealed = item.get("encrypted_content")
    if not item.get("content") and is_sealed(sealed):
        return "".join(unseal("reasoning", str(sealed), f"{where}.encrypted_content"))
    return "".join(_string(part, "text", where) for part in parts)


def _call(kind: str, item: Item, where: str) -> dict[str, Any]:
    name = _string(item, "name", where)
    if kind == "custom_tool_call":
        given = {"input": _string(item, "input", where)}
        arguments = msgspec.json.encode(given).decode("utf-8", "surrogatepass")
    else:
        arguments = _string(item, "arguments", where)
    if kind.startswith("mcp_"):
        name = upstream_name(_string(item, "server_label", where), name)
    id = _string(item, "id" if kind.startswith("mcp_") else "call_id", where)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(item: Item) -> str:
    """What the model is told of an MCP call that was run."""
    error = item.get("error")
    if error is None:
        return str(item.get("output") or "")
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("content") or "it did not say why"
    return f"The call failed: {_words(error)}"


def _words(value: Any) -> str:
    """A tool's own words on its error: a string, or content parts with a text."""
    if isinstance(value, list):
        return " ".join(str(part.get("text", "")) for part in value if isinstance(part, Mapping))
    return str(value)


def _answer(call: Any, unanswered: set[str], where: str) -> None:
    if not isinstance(call, str) or call not in unanswered:
        raise _unknown(call, where)
    unanswered.discard(call)


def _unknown(call: Any, where: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: no call {shown(call)} waits for an answer", param=where)


def _output(item: Item, where: str, unanswered: set[str]) -> Message:
    call = _string(item, "call_id", where)
    _answer(call, unanswered, f"{where}.call_id")
    content = _content(item.get("output"), f"{where}.output")
    return {"role": "tool", "tool_call_id": call, "content": content}


def open_compaction(item: Item, where: str) -> tuple[str, list[dict[str, Any]]]:
    """The summary in a compaction item, and the items that it kept word for word."""
    at = f"{where}.encrypted_content"
    opened = unseal("compaction", _string(item, "encrypted_content", where), at)
    match opened:
        case [str(summary), list(kept)] if all(
            isinstance(each, dict) and each.get("type") != "compaction" for each in kept
        ):
            return summary, kept
    raise InvalidRequest(f"{at} was not made by this server", param=at)


def _refused(kind: Any, where: str) -> InvalidRequest | NotSupported:
    known = "messages, reasoning, compactions, and calls of functions, custom tools and MCP servers"
    if not isinstance(kind, str):
        return InvalidRequest(f"{where}.type must be one of {known}", param=f"{where}.type")
    return NotSupported(
        f"{where}: items of type {shown(kind)} are not supported; there are {known}",
        param=f"{where}.type",
    )


def _string(item: Item, name: str, where: str) -> str:
    return text_of(item, name, f"{where}.{name}")
