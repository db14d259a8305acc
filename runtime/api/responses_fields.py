"""The fields of a Responses request that have rules of their own, one by one. Pure.

Each gives the value as it is served, or raises `InvalidRequest`, or `NotSupported` for what the API
has and this version has not, with the field's name.
"""

from collections.abc import Mapping
from typing import Any

from sessile.api.fields import name_of, object_of, only, shown, string_of, whole_of
from sessile.errors import InvalidRequest, NotSupported

LOGPROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"
_INCLUDES = (LOGPROBS, SEALED, "message.input_image.image_url")
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
_REASONING = ("effort", "summary", "generate_summary", "context", "mode")
_FORM = ("type", "name", "description", "schema", "strict")
_MOST_METADATA, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Name what this version cannot do, where a request asks for it and not for the default."""
    defaults: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("prompt_cache_retention", ("in_memory",)),
        ("stream_options", ({}, {"include_obfuscation": False})),
    )
    for name, allowed in defaults:
        value = body.get(name)
        if value is not None and value not in allowed:
            raise NotSupported(f"{name}={shown(value)} is not supported", param=name)
    for name in ("access_programs", "background_options", "image", "moderation", "prompt"):
        if body.get(name) is not None:
            raise NotSupported(f"{name} is not supported", param=name)


def read_input(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The input as items, which are looked at where they become messages."""
    given = body.get("input")
    if given is None:
        return []
    if isinstance(given, str):
        part = {"type": "input_text", "text": given}
        return [{"type": "message", "role": "user", "content": [part]}]
    if not isinstance(given, list):
        raise InvalidRequest("input must be a string or a list of items", param="input")
    return given


def read_conversation(body: Mapping[str, Any]) -> str | None:
    """The conversation's id, given as such or in an object."""
    given = body.get("conversation")
    if given is None:
        return None
    if isinstance(given, dict):
        return name_of(given, "id", "conversation.id")
    return name_of(body, "conversation")


def read_tier(body: Mapping[str, Any]) -> str:
    """The tier the turn is served in; `sessions.hints` makes its priority of the same field."""
    tier = body.get("service_tier")
    if tier is None:
        return "default"
    if not isinstance(tier, str):
        raise InvalidRequest("service_tier must be a string", param="service_tier")
    if tier not in _TIERS:
        raise NotSupported(f"service_tier={shown(tier)} is not supported", param="service_tier")
    return _TIERS[tier]


def read_truncation(body: Mapping[str, Any]) -> str:
    """Whether what is oldest may be left out."""
    given = body.get("truncation")
    if given not in (None, "auto", "disabled"):
        raise InvalidRequest("truncation must be auto or disabled", param="truncation")
    return given or "disabled"


def read_compact_tokens(body: Mapping[str, Any]) -> int | None:
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
            kind = shown(entry.get("type"))
            raise NotSupported(f"{where}.type={kind} is not supported; there is compaction",
                               param=f"{where}.type")  # fmt: skip
        at = f"{where}.compact_threshold"
        least = whole_of(entry, "compact_threshold", 1, at)
        if least is None:
            raise InvalidRequest(f"{at} must be a whole number", param=at)
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


def read_reasoning(body: Mapping[str, Any]) -> dict[str, Any]:
    """How hard the model is to think."""
    given = object_of(body, "reasoning")
    only(given, _REASONING, "reasoning")
    for name, allowed in (
        ("summary", ("auto",)),
        ("generate_summary", ("auto",)),
        ("context", ("auto",)),
        ("mode", ("standard",)),
    ):
        value = given.get(name)
        if value is not None and value not in allowed:
            where = f"reasoning.{name}"
            raise NotSupported(f"{where}={shown(value)} is not supported", param=where)
    return {"effort": string_of(given, "effort", "reasoning.effort"), "summary": None}


def read_text(body: Mapping[str, Any]) -> dict[str, Any]:
    """The form of the text that is asked for."""
    given = object_of(body, "text")
    only(given, ("format", "verbosity"), "text")
    if given.get("verbosity") not in (None, "medium"):
        wanted = shown(given["verbosity"])
        raise NotSupported(f"text.verbosity={wanted} is not supported", param="text.verbosity")
    form = given.get("format") or {"type": "text"}
    where = "text.format"
    if not isinstance(form, dict):
        raise InvalidRequest(f"{where} must be an object", param=where)
    kind = form.get("type")
    only(form, _FORM if kind == "json_schema" else ("type",), where)
    if kind in ("text", "json_object"):
        return {"format": {"type": kind}}
    if kind != "json_schema":
        raise InvalidRequest(
            f"{where}.type must be text, json_object or json_schema, not {shown(kind)}",
            param=f"{where}.type",
        )
    if not isinstance(form.get("schema"), dict):
        raise InvalidRequest(f"{where}.schema must be an object", param=f"{where}.schema")
    if not isinstance(form.get("name"), str):
        raise InvalidRequest(f"{where}.name must be a string", param=f"{where}.name")
    return {"format": {name: form[name] for name in _FORM if form.get(name) is not None}}


def check_query(include: list[str], include_obfuscation: bool) -> None:
    """What a stored response is to be told with: it holds what it was made with."""
    read_includes({"include": include})
    if include_obfuscation:
        raise NotSupported("include_obfuscation is not supported", param="include_obfuscation")


def read_includes(body: Mapping[str, Any]) -> list[str]:
    """What the response is to hold besides."""
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
            raise InvalidRequest(f"{where}: {shown(name)} cannot be included", param=where)
    return given
