"""A Responses request as a chat completions request, and as the object that will answer it. Pure.

Each field is translated, refused by name, or, where the API knows none of that name, handed to the
engine as it is: what an engine can do beyond the API, a client can ask for.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from sessile.api.cache_options import CacheOptions, read_cache_options
from sessile.api.fields import flag_of, number_of, object_of, string_of, whole_of
from sessile.api.responses_fields import (
    LOGPROBS,
    SEALED,
    read_compact_tokens,
    read_conversation,
    read_includes,
    read_input,
    read_metadata,
    read_reasoning,
    read_text,
    read_tier,
    read_truncation,
    refuse_unsupported,
)
from sessile.api.responses_items import Item, to_messages
from sessile.api.responses_tools import Listed, Toolset, read_tools
from sessile.errors import InvalidRequest
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
    refuse_unsupported(body)
    items = read_input(body)
    previous = string_of(body, "previous_response_id")
    conversation = read_conversation(body)
    if previous is not None and conversation is not None:
        raise InvalidRequest(
            "a response follows either previous_response_id or conversation, not both",
            param="previous_response_id",
        )
    if previous is None and conversation is None and not items:
        raise InvalidRequest("input must be a string or a list of items", param="input")
    include = read_includes(body)
    toolset = read_tools(body, flag_of(body, "parallel_tool_calls", True))
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
        "background": flag_of(body, "background", False),
        "completed_at": None,
        "conversation": None if conversation is None else {"id": conversation},
        "error": None,
        "incomplete_details": None,
        "instructions": string_of(body, "instructions"),
        "max_output_tokens": whole_of(body, "max_output_tokens", 1),
        "max_tool_calls": whole_of(body, "max_tool_calls", 1),
        "metadata": read_metadata(body),
        "model": string_of(body, "model"),
        "output": [],
        "parallel_tool_calls": toolset.parallel,
        "previous_response_id": previous,
        "prompt_cache_key": string_of(body, "prompt_cache_key"),
        "prompt_cache_options": cache.told(),
        "reasoning": read_reasoning(body),
        "safety_identifier": string_of(body, "safety_identifier"),
        "service_tier": read_tier(body),
        "store": flag_of(body, "store", True),
        "temperature": number_of(body, "temperature", 0),
        "text": read_text(body),
        "tool_choice": toolset.choice,
        "tools": toolset.told,
        "top_logprobs": whole_of(body, "top_logprobs", 0, most=20),
        "top_p": number_of(body, "top_p", 0),
        "truncation": read_truncation(body),
        "usage": None,
        "user": string_of(body, "user"),
    }
    if response["background"] and not response["store"]:
        raise InvalidRequest("a response in the background is always stored", param="store")
    _translate(response, include, chat)
    return Asked(
        model=response["model"] or None,
        stream=flag_of(body, "stream", False),
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
        compact_tokens=read_compact_tokens(body),
        most_tool_calls=response["max_tool_calls"],
        seals_reasoning=SEALED in include,
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
        chat["chat_template_kwargs"] = {**told, **object_of(chat, "chat_template_kwargs")}
        if thinks:
            chat["reasoning_effort"] = effort
    if response["top_logprobs"] is not None or LOGPROBS in include:
        chat["logprobs"] = True
        chat["top_logprobs"] = response["top_logprobs"] or 0
    form = response["text"]["format"]
    if form["type"] == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif form["type"] == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
