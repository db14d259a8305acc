"""A Responses request as a chat completions request, and as the object that will answer it. Pure.

Each field is translated, refused by name, or, where the API knows none of that name, handed to the
engine as it is: what an engine can do beyond the API, a client can ask for.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from sessile.api.cache_options import CacheOptions, read_cache_options
from sessile.api.responses_items import Item, to_messages
from sessile.api.responses_tools import Listed, Toolset, read_tools
from sessile.errors import InvalidRequest, NotSupported
from sessile.prewarm import one_token

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
_SEALED = "reasoning.encrypted_content"
_INCLUDES = (_LOGPROBS, _SEALED, "message.input_image.image_url")
_HOSTED_INCLUDES = (  # of tools that need a provider
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
_TIERS = {
    "auto": "default", "default": "default", "standard": "default", "flex": "flex",
    "priority": "priority", "fast": "priority",
}  # fmt: skip
_MOST_METADATA, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asks for, checked.

    `items` is its input as items, `chat` the upstream body without model, messages and tools,
    `response` the answer's object with all that the request decides. `truncate`: what is oldest is
    left out if the prompt does not fit. `compact_tokens`: a prompt of more is summed up first.
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
    toolset: Toolset = Toolset()
    conversation: str | None = None
    truncate: bool = False
    compact_tokens: int | None = None
    most_tool_calls: int | None = None
    seals_reasoning: bool = False
    cache: CacheOptions = CacheOptions()


def read_request(body: Mapping[str, Any]) -> Asked:
    """The request in `body`. Raises `InvalidRequest` or `NotSupported` with the field's name."""
    _refuse(body)
    items = _items(body)
    previous = _string(body, "previous_response_id")
    conversation = _conversation(body)
    if previous is not None and conversation is not None:
        raise InvalidRequest(
            "a response follows either previous_response_id or conversation, not both",
            param="previous_response_id",
        )
    if previous is None and conversation is None and not items:
        raise InvalidRequest("input must be a string or a list of items", param="input")
    include = _includes(body)
    toolset = read_tools(body, _flag(body, "parallel_tool_calls", True))
    cache = read_cache_options(body)
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
        "conversation": None if conversation is None else {"id": conversation},
        "error": None,
        "incomplete_details": None,
        "instructions": _string(body, "instructions"),
        "max_output_tokens": _number(body, "max_output_tokens", whole=True, least=1),
        "max_tool_calls": _number(body, "max_tool_calls", whole=True, least=1),
        "metadata": read_metadata(body),
        "model": _string(body, "model"),
        "output": [],
        "parallel_tool_calls": toolset.parallel,
        "previous_response_id": previous,
        "prompt_cache_key": _string(body, "prompt_cache_key"),
        "prompt_cache_options": cache.told(),
        "reasoning": _reasoning(body),
        "safety_identifier": _string(body, "safety_identifier"),
        "service_tier": _tier(body),
        "store": _flag(body, "store", True),
        "temperature": _number(body, "temperature", least=0),
        "text": _text(body),
        "tool_choice": toolset.choice,
        "tools": toolset.told,
        "top_logprobs": _number(body, "top_logprobs", whole=True, least=0, most=20),
        "top_p": _number(body, "top_p", least=0),
        "truncation": _truncation(body),
        "usage": None,
        "user": _string(body, "user"),
    }
    if response["background"] and not response["store"]:
        raise InvalidRequest("a response in the background is always stored", param="store")
    _translate(response, include, chat)
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
        toolset=toolset,
        conversation=conversation,
        truncate=response["truncation"] == "auto",
        compact_tokens=_compact_tokens(body),
        most_tool_calls=response["max_tool_calls"],
        seals_reasoning=_SEALED in include,
        cache=cache,
    )


def chat_body(
    asked: Asked,
    model: str,
    past: Sequence[Sequence[Item]],
    listed: Listed = MappingProxyType({}),
    *,
    closed: bool = False,
) -> dict[str, Any]:
    """The upstream body: always a stream, so that a hang-up stops the engine soonest. `listed` are
    the tools of its MCP servers; `closed`: no tool may be called any more."""
    messages = to_messages(asked.instructions, past, asked.items)
    return {
        "model": model,
        "messages": messages,
        **(asked.chat if asked.cache.generate else one_token(asked.chat)),
        **asked.toolset.chat(listed, closed=closed),
        "stream": True,
    }


def _translate(response: Mapping[str, Any], include: list[str], chat: dict[str, Any]) -> None:
    """The fields that chat completions call otherwise, or have elsewhere."""
    for name in ("temperature", "top_p", "user"):
        if response[name] is not None:
            chat[name] = response[name]
    if response["max_output_tokens"] is not None:
        # NOTE: every engine reads max_tokens; not every one reads max_completion_tokens.
        chat["max_tokens"] = response["max_output_tokens"]
    effort = response["reasoning"]["effort"]
    if effort is not None:
        # NOTE: templates of thinking models read either word; engines hand reasoning_effort to
        # those that read that.
        thinks = effort != "none"
        told = {"enable_thinking": thinks, "thinking": thinks}
        chat["chat_template_kwargs"] = {**told, **_object(chat, "chat_template_kwargs")}
        if thinks:
            chat["reasoning_effort"] = effort
    if response["top_logprobs"] is not None or _LOGPROBS in include:
        chat["logprobs"] = True
        chat["top_logprobs"] = response["top_logprobs"] or 0
    form = response["text"]["format"]
    if form["type"] == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif form["type"] == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}


# -- what is refused


def _refuse(body: Mapping[str, Any]) -> None:
    """Name what this version cannot do, where a request asks for it and not for the default."""
    defaults: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("prompt_cache_retention", ("in_memory",)),
        ("stream_options", ({}, {"include_obfuscation": False})),
    )
    for name, allowed in defaults:
        value = body.get(name)
        if value is not None and value not in allowed:
            raise NotSupported(f"{name}={_shown(value)} is not supported", param=name)
    for name in ("access_programs", "background_options", "image", "moderation", "prompt"):
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


def _conversation(body: Mapping[str, Any]) -> str | None:
    """The conversation's id, given as such or in an object."""
    given = body.get("conversation")
    if given is None:
        return None
    if isinstance(given, dict):
        return _string(given, "id", "conversation.id", needed=True)
    return _string(body, "conversation", needed=True)


def _tier(body: Mapping[str, Any]) -> str:
    """The tier the turn is served in; `sessions.hints` makes its priority of the same field."""
    tier = body.get("service_tier")
    if tier is None:
        return "default"
    if not isinstance(tier, str):
        raise InvalidRequest("service_tier must be a string", param="service_tier")
    if tier not in _TIERS:
        raise NotSupported(f"service_tier={_shown(tier)} is not supported", param="service_tier")
    return _TIERS[tier]


def _truncation(body: Mapping[str, Any]) -> str:
    given = body.get("truncation")
    if given not in (None, "auto", "disabled"):
        raise InvalidRequest("truncation must be auto or disabled", param="truncation")
    return given or "disabled"


def _compact_tokens(body: Mapping[str, Any]) -> int | None:
    """The prompt size over which the context is to be compacted, None for never."""
    given = body.get("context_management")
    if given is None:
        return None
    if not isinstance(given, list):
        raise InvalidRequest("context_management must be a list", param="context_management")
    least: int | None = None
    for index, entry in enumerate(given):
        where = f"context_management[{index}]"
        if not isinstance(entry, dict):
            raise InvalidRequest(f"{where} must be an object", param=where)
        if entry.get("type") != "compaction":
            shown = _shown(entry.get("type"))
            raise NotSupported(f"{where}.type={shown} is not supported; there is compaction",
                               param=f"{where}.type")  # fmt: skip
        at = f"{where}.compact_threshold"
        tokens = _number(entry, "compact_threshold", whole=True, least=1, where=at)
        if tokens is None:
            raise InvalidRequest(f"{at} must be a whole number", param=at)
        least = int(tokens)
    return least


def read_metadata(body: Mapping[str, Any]) -> dict[str, str]:
    """At most 16 pairs of strings, of at most 64 and 512 characters."""
    value = body.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise InvalidRequest("metadata must be an object of strings", param="metadata")
    if len(value) > _MOST_METADATA or any(
        len(key) > _LONGEST_KEY or len(text) > _LONGEST_VALUE for key, text in value.items()
    ):
        raise InvalidRequest(
            f"metadata holds at most {_MOST_METADATA} pairs, of {_LONGEST_KEY} and "
            f"{_LONGEST_VALUE} characters", param="metadata",
        )  # fmt: skip
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


def _includes(body: Mapping[str, Any]) -> list[str]:
    given = body.get("include")
    if given is None:
        return []
    if not isinstance(given, list):
        raise InvalidRequest("include must be a list", param="include")
    for index, name in enumerate(given):
        where = f"include[{index}]"
        if name in _HOSTED_INCLUDES:
            raise NotSupported(
                f"{where}: {name} is of a tool that needs a provider, and there is none here",
                param=where,
            )
        if name not in _INCLUDES:
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
    body: Mapping[str, Any],
    name: str,
    *,
    least: float,
    most: float = float("inf"),
    whole: bool = False,
    where: str | None = None,
) -> float | int | None:
    value = body.get(name)
    if value is None:
        return None
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        bounds = f"at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"
        raise InvalidRequest(f"{where or name} must be {kind}, {bounds}", param=where or name)
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
