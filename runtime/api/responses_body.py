"""A Responses request as a chat completions request, and as the object that will answer it. Pure.

Each field is translated, refused by name, or, where the API knows none of that name, handed to the
engine as it is: what an engine can do beyond the API, a client can ask for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sessile.api.responses_items import Item, to_messages
from sessile.errors import InvalidRequest, NotSupported

_KNOWN = frozenset(
    (
        "access_programs", "background", "background_options", "context_management",
        "conversation", "generate", "image", "include", "input", "instructions",
        "max_output_tokens", "max_tool_calls", "metadata", "model", "moderation",
        "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier",
        "service_tier", "session_id", "store", "stream", "stream_id", "stream_options",
        "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation",
        "type", "user",
    )
)  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"
_INCLUDES = (
    _LOGPROBS,
    "reasoning.encrypted_content",  # reasoning is given as text: nothing is left to encrypt
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asks for, checked.

    `items` is its input as items, `chat` the upstream body without model and messages, `response`
    the answer's object with all that the request decides.
    """

    model: str | None
    stream: bool
    store: bool
    background: bool
    previous: str | None
    instructions: str | None
    items: list[dict[str, Any]]
    chat: dict[str, Any]
    response: dict[str, Any]


def read_request(body: Mapping[str, Any]) -> Asked:
    """The request in `body`. Raises `InvalidRequest` or `NotSupported` with the field's name."""
    _refuse(body)
    items = _items(body)
    previous = _string(body, "previous_response_id")
    if previous is None and not items:
        raise InvalidRequest("input must be a string or a list of items", param="input")
    chat: dict[str, Any] = {name: value for name, value in body.items() if name not in _KNOWN}
    for foreign in ("messages", "n"):
        if foreign in chat:
            raise InvalidRequest(f"{foreign} is not a field of a response", param=foreign)
    response: dict[str, Any] = {
        "id": "",
        "object": "response",
        "created_at": 0,
        "status": "in_progress",
        "background": _flag(body, "background", False),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": _string(body, "instructions"),
        "max_output_tokens": _number(body, "max_output_tokens", whole=True, least=1),
        "metadata": _metadata(body),
        "model": _string(body, "model"),
        "output": [],
        "parallel_tool_calls": _flag(body, "parallel_tool_calls", True),
        "previous_response_id": previous,
        "prompt_cache_key": _string(body, "prompt_cache_key"),
        "reasoning": _reasoning(body),
        "safety_identifier": _string(body, "safety_identifier"),
        "service_tier": "default",
        "store": _flag(body, "store", True),
        "temperature": _number(body, "temperature", least=0),
        "text": _text(body),
        "tool_choice": _tool_choice(body),
        "tools": _tools(body),
        "top_logprobs": _number(body, "top_logprobs", whole=True, least=0),
        "top_p": _number(body, "top_p", least=0),
        "truncation": "disabled",
        "usage": None,
        "user": _string(body, "user"),
    }
    if response["background"] and not response["store"]:
        raise InvalidRequest("a response in the background is always stored", param="store")
    _translate(response, _includes(body), chat)
    return Asked(
        model=response["model"] or None,
        stream=_flag(body, "stream", False),
        store=response["store"],
        background=response["background"],
        previous=previous,
        instructions=response["instructions"],
        items=items,
        chat=chat,
        response=response,
    )


def chat_body(asked: Asked, model: str, past: Sequence[Sequence[Item]]) -> dict[str, Any]:
    """The upstream body: always a stream, so that a hang-up stops the engine soonest."""
    messages = to_messages(asked.instructions, past, asked.items)
    return {"model": model, "messages": messages, **asked.chat, "stream": True}


def _translate(response: Mapping[str, Any], include: list[str], chat: dict[str, Any]) -> None:
    """The fields that chat completions call otherwise, or have elsewhere."""
    for name in ("temperature", "top_p", "user"):
        if response[name] is not None:
            chat[name] = response[name]
    if response["max_output_tokens"] is not None:
        # NOTE: every engine reads max_tokens; not every one reads max_completion_tokens.
        chat["max_tokens"] = response["max_output_tokens"]
    if response["reasoning"]["effort"] is not None:
        chat["reasoning_effort"] = response["reasoning"]["effort"]
    if response["top_logprobs"] is not None or _LOGPROBS in include:
        chat["logprobs"] = True
        chat["top_logprobs"] = response["top_logprobs"] or 0
    form = response["text"]["format"]
    if form["type"] == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif form["type"] == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if response["tools"]:
        chat["tools"] = [_chat_tool(tool) for tool in response["tools"]]
        chat["parallel_tool_calls"] = response["parallel_tool_calls"]
        choice = response["tool_choice"]
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": choice["name"]}}
        chat["tool_choice"] = choice


def _chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "parameters", "strict")
    return {
        "type": "function",
        "function": {name: tool[name] for name in names if tool.get(name) is not None},
    }


# -- what is refused


def _refuse(body: Mapping[str, Any]) -> None:
    """Name what this version cannot do, where a request asks for it and not for the default."""
    defaults: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("generate", (True,)),
        ("prompt_cache_retention", ("in_memory",)),
        ("prompt_cache_options", ({}, {"mode": "implicit"})),
        ("service_tier", ("auto", "default")),
        ("stream_options", ({}, {"include_obfuscation": False})),
        ("truncation", ("disabled",)),
        ("context_management", ([],)),
    )
    for name, allowed in defaults:
        value = body.get(name)
        if value is not None and value not in allowed:
            raise NotSupported(f"{name}={_shown(value)} is not supported", param=name)
    for name in (
        "access_programs", "background_options", "conversation", "image", "max_tool_calls",
        "moderation", "prompt",
    ):  # fmt: skip
        if body.get(name) is not None:
            raise NotSupported(f"{name} is not supported", param=name)


# -- the fields one by one


def _items(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = body.get("input")
    if given is None:
        return []
    if isinstance(given, str):
        part = {"type": "input_text", "text": given}
        return [{"type": "message", "role": "user", "content": [part]}]
    if not isinstance(given, list):
        raise InvalidRequest("input must be a string or a list of items", param="input")
    return given


def _metadata(body: Mapping[str, Any]) -> dict[str, str]:
    value = body.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise InvalidRequest("metadata must be an object of strings", param="metadata")
    return value


def _reasoning(body: Mapping[str, Any]) -> dict[str, Any]:
    given = _object(body, "reasoning")
    for name, allowed in (
        ("summary", ("auto",)),
        ("generate_summary", ("auto",)),
        ("context", ("auto",)),
        ("mode", ("standard",)),
    ):
        value = given.get(name)
        if value is not None and value not in allowed:
            where = f"reasoning.{name}"
            raise NotSupported(f"{where}={_shown(value)} is not supported", param=where)
    return {"effort": _string(given, "effort", "reasoning.effort"), "summary": None}


def _text(body: Mapping[str, Any]) -> dict[str, Any]:
    given = _object(body, "text")
    if given.get("verbosity") not in (None, "medium"):
        shown = _shown(given["verbosity"])
        raise NotSupported(f"text.verbosity={shown} is not supported", param="text.verbosity")
    form = given.get("format") or {"type": "text"}
    where = "text.format"
    if not isinstance(form, dict):
        raise InvalidRequest(f"{where} must be an object", param=where)
    kind = form.get("type")
    if kind in ("text", "json_object"):
        return {"format": {"type": kind}}
    if kind != "json_schema":
        raise InvalidRequest(
            f"{where}.type must be text, json_object or json_schema, not {_shown(kind)}",
            param=f"{where}.type",
        )
    if not isinstance(form.get("schema"), dict):
        raise InvalidRequest(f"{where}.schema must be an object", param=f"{where}.schema")
    if not isinstance(form.get("name"), str):
        raise InvalidRequest(f"{where}.name must be a string", param=f"{where}.name")
    names = ("type", "name", "description", "schema", "strict")
    return {"format": {name: form[name] for name in names if form.get(name) is not None}}


def _tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = body.get("tools")
    if given is None:
        return []
    if not isinstance(given, list):
        raise InvalidRequest("tools must be a list", param="tools")
    return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(given)]


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{where} must be an object", param=where)
    kind = tool.get("type")
    if kind != "function":
        if not isinstance(kind, str):
            raise InvalidRequest(f"{where}.type must be a string", param=f"{where}.type")
        raise NotSupported(
            f"{where}: tools of type {_shown(kind)} are not supported; there are function tools",
            param=f"{where}.type",
        )
    _string(tool, "name", f"{where}.name", needed=True)
    _string(tool, "description", f"{where}.description")
    if not isinstance(tool.get("parameters"), dict | None):
        raise InvalidRequest(
            f"{where}.parameters must be a JSON schema", param=f"{where}.parameters"
        )
    for name, allowed in (
        ("async", (False,)),
        ("defer_loading", (False,)),
        ("allowed_callers", (["direct"],)),
    ):
        if tool.get(name) is not None and tool[name] not in allowed:
            raise NotSupported(f"{where}.{name} is not supported", param=f"{where}.{name}")
    return {"strict": None, "parameters": None, **tool}


def _tool_choice(body: Mapping[str, Any]) -> str | dict[str, Any]:
    choice = body.get("tool_choice")
    if choice is None:
        return "auto"
    named = isinstance(choice, dict)
    kind = choice.get("type") if named else choice
    if not named and kind in ("auto", "none", "required"):
        if kind == "required" and not body.get("tools"):
            raise InvalidRequest(
                "tool_choice is required, and there are no tools", param="tool_choice"
            )
        return str(kind)
    if not named or not isinstance(kind, str):
        raise InvalidRequest(
            f"tool_choice must be auto, none, required or an object, not {_shown(choice)}",
            param="tool_choice",
        )
    if kind != "function":
        raise NotSupported(f"tool_choice of type {_shown(kind)} is not supported",
                           param="tool_choice.type")  # fmt: skip
    name = _string(choice, "name", "tool_choice.name", needed=True)
    tools = body.get("tools")
    known = [tool.get("name") for tool in tools if isinstance(tool, dict)] if tools else []
    if name not in known:
        raise InvalidRequest(
            f"tool_choice names {_shown(name)}, which is none of the tools",
            param="tool_choice.name",
        )
    return {"type": "function", "name": name}


def _includes(body: Mapping[str, Any]) -> list[str]:
    given = body.get("include")
    if given is None:
        return []
    if not isinstance(given, list):
        raise InvalidRequest("include must be a list", param="include")
    for index, name in enumerate(given):
        if name not in _INCLUDES:
            where = f"include[{index}]"
            raise InvalidRequest(f"{where}: {_shown(name)} cannot be included", param=where)
    return given


# -- types


def _string(
    body: Mapping[str, Any], name: str, where: str | None = None, *, needed: bool = False
) -> str | None:
    value = body.get(name)
    if isinstance(value, str) and (value or not needed):
        return value
    if value is None and not needed:
        return None
    kind = "a non-empty string" if needed else "a string"
    raise InvalidRequest(f"{where or name} must be {kind}", param=where or name)


def _flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value


def _number(
    body: Mapping[str, Any], name: str, *, least: float, whole: bool = False
) -> float | int | None:
    value = body.get(name)
    if value is None:
        return None
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
        kind = "a whole number" if whole else "a number"
        raise InvalidRequest(f"{name} must be {kind}, at least {least:g}", param=name)
    return value


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object", param=name)
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
