"""An Anthropic Messages request as a chat completions request. Pure.

Each field is translated, refused by name, or, where the API knows none of that name, handed to the
engine as it is: what an engine can do beyond the API, a client can ask for. Three are wishes that
are heard as far as engines can: `thinking` is told to the chat template, but no engine can be held
to its `budget_tokens` (`max_tokens` holds); `cache_control` does not say what is cached, which is
every prefix, but by its `ttl` how long the session's memory is held after the turn;
`eager_input_streaming` is how tool input always comes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sessile.api.fields import (
    flag_of,
    name_of,
    number_of,
    object_of,
    objects_of,
    one_of,
    shown,
    text_of,
    whole_of,
)
from sessile.api.messages_blocks import to_messages
from sessile.errors import InvalidRequest

_KNOWN = frozenset(
    (
        "cache_control", "max_tokens", "messages", "metadata", "model", "output_config",
        "output_format", "service_tier", "session_id", "speed", "stop_sequences", "stream",
        "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
        "context_management", "chat_template_kwargs",
    )
)  # fmt: skip
_REFUSED = frozenset(
    (
        "billing_policy", "compaction", "container", "diagnostics", "fallback_credit_token",
        "fallbacks", "inference_geo", "mcp_servers", "thread", "user_profile_id", "workspace_id",
    )
)  # fmt: skip
_FOREIGN = ("n", "prompt", "stop", "stream_options", "max_completion_tokens")
_TTL_S = {"5m": 300.0, "1h": 3600.0}
_LEAST_BUDGET_TOKENS = 1024


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asks for, checked.

    `document` is the upstream body, always of a stream. `silent` only fills the cache: the engine
    makes one token, since it cannot make none, and the client is told nothing of it.
    `hides_thinking` leaves out what was thought. `hold_s` is how long the session's memory is
    to be held after the turn, None where nothing was said.
    """

    model: str
    stream: bool
    document: dict[str, Any]
    silent: bool = False
    hides_thinking: bool = False
    stops: tuple[str, ...] = ()
    hold_s: float | None = None


def read_request(body: Mapping[str, Any], *, counting: bool = False) -> Asked:
    """The request in `body`, `counting` where only its tokens are asked for. Raises
    `InvalidRequest` with the field's name."""
    _refuse(body)
    model = name_of(body, "model")
    given = objects_of(body, "messages")
    if not given:
        raise InvalidRequest("messages must be a non-empty list of messages", param="messages")
    most = whole_of(body, "max_tokens", 0)
    if most is None and not counting:
        raise InvalidRequest("max_tokens must be a whole number, at least 0", param="max_tokens")
    stops = _stops(body)
    document = {n: value for n, value in body.items() if n not in _KNOWN and n not in _REFUSED}
    document["model"] = model
    document["messages"] = to_messages(body.get("system"), given)
    # NOTE: every engine reads max_tokens; not every one reads max_completion_tokens.
    document["max_tokens"] = most or 1
    document |= _sampling(body)
    if stops:
        document["stop"] = list(stops)
    if document["messages"][-1]["role"] == "assistant":
        document |= {"continue_final_message": True, "add_generation_prompt": False}
    hides = _think(body, document)
    _shape(body, document)
    _use_tools(body, document)
    document["stream"] = True
    return Asked(
        model=model,
        stream=flag_of(body, "stream", False),
        document=document,
        silent=most == 0,
        hides_thinking=hides,
        stops=stops,
        hold_s=_hold_s(body, given),
    )


# -- what is refused


def _refuse(body: Mapping[str, Any]) -> None:
    for name in sorted(_REFUSED & body.keys()):
        if body[name] not in (None, [], {}):
            raise InvalidRequest(f"{name} is not supported", param=name)
    for name in _FOREIGN:
        if name in body:
            raise InvalidRequest(f"{name} is not a field of this API", param=name)
    if body.get("speed") not in (None, "standard"):
        raise InvalidRequest(f"speed={shown(body['speed'])} is not supported", param="speed")
    if body.get("service_tier") is not None:
        one_of(body["service_tier"], ("auto", "standard_only"), "service_tier")
    metadata = object_of(body, "metadata")
    if metadata.get("user_id") is not None:
        text_of(metadata, "user_id", "metadata.user_id")
    where = "context_management.edits"
    edits = objects_of(object_of(body, "context_management"), "edits", where)
    for index, edit in enumerate(edits):
        kind = str(edit.get("type"))
        if not (kind.startswith("clear_thinking_") and edit.get("keep") == "all"):
            # An edit that keeps all is what agents send for none.
            at = f"{where}[{index}]"
            raise InvalidRequest(f"{at}: {shown(kind)} is not supported", param=at)


# -- the fields one by one


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        "temperature": number_of(body, "temperature", 0),
        "top_p": number_of(body, "top_p", 0),
        "top_k": whole_of(body, "top_k", 0),
    }
    return {name: value for name, value in values.items() if value is not None}


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    given = body.get("stop_sequences") or []
    if not isinstance(given, list) or not all(isinstance(stop, str) and stop for stop in given):
        raise InvalidRequest(
            "stop_sequences must be a list of non-empty strings", param="stop_sequences"
        )
    return tuple(given)


def _think(body: Mapping[str, Any], document: dict[str, Any]) -> bool:
    """Whether to think, as chat templates are told: `enable_thinking` or `thinking`, by model.
    Returns whether what was thought is to be left out. Nothing said leaves it to the model."""
    asked = object_of(body, "thinking")
    told = object_of(body, "chat_template_kwargs")
    hides = False
    if asked:
        kinds = ("enabled", "disabled", "adaptive")
        kind = one_of(asked.get("type"), kinds, "thinking.type")
        where = "thinking.budget_tokens"
        budget = whole_of(asked, "budget_tokens", _LEAST_BUDGET_TOKENS, where)
        if (budget is None) == (kind == "enabled"):
            must = "is needed" if kind == "enabled" else f"does not go with {kind}"
            raise InvalidRequest(f"{where} {must}", param=where)
        if asked.get("display") is not None:
            display = one_of(asked["display"], ("summarized", "omitted"), "thinking.display")
            hides = display == "omitted"
        thinks = kind != "disabled"
        told = {"enable_thinking": thinks, "thinking": thinks, **told}
    if told:
        document["chat_template_kwargs"] = told
    return hides


def _shape(body: Mapping[str, Any], document: dict[str, Any]) -> None:
    """The effort and the form of the answer."""
    config = object_of(body, "output_config")
    for name, value in config.items():
        if name not in ("effort", "format") and value is not None:
            where = f"output_config.{name}"
            raise InvalidRequest(f"{where} is not supported", param=where)
    if config.get("effort") is not None:
        document["reasoning_effort"] = text_of(config, "effort", "output_config.effort")
    where = "output_config.format"
    form = object_of(config, "format", where)
    if not form:
        where = "output_format"  # its name before it had a place
        form = object_of(body, "output_format")
    if form:
        one_of(form.get("type"), ("json_schema",), f"{where}.type")
        schema = object_of(form, "schema", f"{where}.schema")
        document["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "response", "schema": schema, "strict": True},
        }


def _use_tools(body: Mapping[str, Any], document: dict[str, Any]) -> None:
    tools = [_tool(t, f"tools[{index}]") for index, t in enumerate(objects_of(body, "tools"))]
    choice = object_of(body, "tool_choice")
    kinds = ("auto", "any", "tool", "none")
    kind = one_of(choice.get("type"), kinds, "tool_choice.type") if choice else "auto"
    where = "tool_choice.disable_parallel_tool_use"
    alone = flag_of(choice, "disable_parallel_tool_use", False, where)
    if not tools:
        if kind in ("any", "tool"):
            raise InvalidRequest(
                f"tool_choice is {kind}, and there are no tools", param="tool_choice"
            )
        return
    document["tools"] = tools
    document["parallel_tool_calls"] = not alone
    if kind == "tool":
        name = name_of(choice, "name", "tool_choice.name")
        if name not in [tool["function"]["name"] for tool in tools]:
            raise InvalidRequest(
                f"tool_choice.name is {shown(name)}, which is none of the tools",
                param="tool_choice.name",
            )
        document["tool_choice"] = {"type": "function", "function": {"name": name}}
    else:
        document["tool_choice"] = "required" if kind == "any" else kind


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise InvalidRequest(
            f"{where}: tools of type {shown(kind)} are not supported; give your own with an "
            "input_schema",
            param=f"{where}.type",
        )
    for name, allowed in (
        ("allowed_callers", (["direct"],)),
        ("defer_loading", (False,)),
        ("input_examples", ([],)),
    ):
        if tool.get(name) is not None and tool[name] not in allowed:
            raise InvalidRequest(f"{where}.{name} is not supported", param=f"{where}.{name}")
    if not isinstance(tool.get("input_schema"), dict):
        raise InvalidRequest(
            f"{where}.input_schema must be a JSON schema", param=f"{where}.input_schema"
        )
    function: dict[str, Any] = {"name": name_of(tool, "name", f"{where}.name")}
    if tool.get("description") is not None:
        function["description"] = text_of(tool, "description", f"{where}.description")
    function["parameters"] = tool["input_schema"]
    if tool.get("strict") is not None:
        function["strict"] = flag_of(tool, "strict", False, f"{where}.strict")
    return {"type": "function", "function": function}


# -- cache_control


def _hold_s(body: Mapping[str, Any], messages: list[dict[str, Any]]) -> float | None:
    """The longest `ttl` of the request's `cache_control`, in seconds. One without a ttl, which
    agents send by habit, leaves it to the router how long a session is worth holding."""
    longest: float | None = None
    for control, where in _controls(body, messages):
        if not isinstance(control, dict):
            raise InvalidRequest(f"{where} must be an object", param=where)
        one_of(control.get("type"), ("ephemeral",), f"{where}.type")
        if control.get("ttl") is not None:
            ttl = one_of(control["ttl"], tuple(_TTL_S), f"{where}.ttl")
            longest = max(longest or 0.0, _TTL_S[ttl])
    return longest


def _controls(body: Mapping[str, Any], messages: list[dict[str, Any]]) -> Iterator[tuple[Any, str]]:
    """Every `cache_control` of a request, and where it stands."""
    lists = [("system", body.get("system")), ("tools", body.get("tools"))]
    for index, message in enumerate(messages):
        where = f"messages[{index}].content"
        content = message.get("content")
        lists.append((where, content))
        if isinstance(content, list):
            lists += [(f"{where}[{at}].content", b.get("content")) for at, b in enumerate(content)]
    if body.get("cache_control") is not None:
        yield body["cache_control"], "cache_control"
    for where, blocks in lists:
        if isinstance(blocks, list):
            for index, block in enumerate(blocks):
                if isinstance(block, dict) and block.get("cache_control") is not None:
                    yield block["cache_control"], f"{where}[{index}].cache_control"
