"""What an Anthropic Messages request becomes upstream, and what is refused by its name."""

import json
from typing import Any

import pytest

from sessile.api.messages_body import read_request
from sessile.errors import InvalidRequest

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "weather", "description": "The weather.", "input_schema": {"type": "object"}}


def read(**fields: Any) -> Any:
    """The request of `fields`, with what every one needs."""
    return read_request({"model": "m", "max_tokens": 9, "messages": HI, **fields})


def document(**fields: Any) -> dict[str, Any]:
    """What goes upstream."""
    found: dict[str, Any] = read(**fields).document
    return found


def test_a_plain_request():
    """Always a stream, and nothing that was not asked for."""
    assert document() == {"model": "m", "messages": HI, "max_tokens": 9, "stream": True}


def test_sampling_and_stops():
    """Each field by its upstream name; one that this API does not know goes on as it is."""
    told = document(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["END"], seed=7)
    want = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop": ["END"], "seed": 7}
    assert {name: told[name] for name in want} == want


def test_what_is_about_the_request_stays_here():
    """Metadata, tiers, cache controls and stream are not the engine's business."""
    asked = read(
        metadata={"user_id": "u"},
        service_tier="standard_only",
        cache_control={"type": "ephemeral"},
        stream=True,
        speed="standard",
        container=None,
        mcp_servers=[],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    assert asked.document == document() and asked.stream


def test_no_tokens_fill_the_cache():
    """Engines make at least one, which the client is not told of."""
    asked = read(max_tokens=0)
    assert asked.silent and asked.document["max_tokens"] == 1
    assert not read(max_tokens=1).silent


def test_a_count_needs_no_max_tokens():
    """A message does."""
    assert read_request({"model": "m", "messages": HI}, counting=True).document["messages"] == HI


def test_a_last_message_of_the_model_is_continued():
    """What it began is what it goes on from."""
    told = document(messages=[*HI, {"role": "assistant", "content": "The answer is ("}])
    assert told["continue_final_message"] is True and told["add_generation_prompt"] is False


# -- tools


def test_tools():
    """An input schema is a function's parameters, word for word; parallel calls unless not."""
    told = document(tools=[{**TOOL, "strict": True, "cache_control": {"type": "ephemeral"}}])
    function = {"name": "weather", "description": "The weather.", "parameters": {"type": "object"}}
    assert told["tools"] == [{"type": "function", "function": {**function, "strict": True}}]
    assert told["tool_choice"] == "auto" and told["parallel_tool_calls"] is True


@pytest.mark.parametrize(
    ("choice", "upstream"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        (
            {"type": "tool", "name": "weather"},
            {"type": "function", "function": {"name": "weather"}},
        ),
    ],
)
def test_tool_choice(choice, upstream):
    """Each kind, alone or in parallel."""
    told = document(tools=[TOOL], tool_choice=choice)
    assert (told["tool_choice"], told["parallel_tool_calls"]) == (upstream, True)
    told = document(tools=[TOOL], tool_choice={**choice, "disable_parallel_tool_use": True})
    assert (told["tool_choice"], told["parallel_tool_calls"]) == (upstream, False)


def test_a_choice_among_no_tools():
    """May be left to the model, which has none."""
    assert "tool_choice" not in document(tool_choice={"type": "auto"})


# -- thinking and the answer's form


@pytest.mark.parametrize(
    ("thinking", "thinks", "hides"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, True, False),
        ({"type": "adaptive"}, True, False),
        ({"type": "adaptive", "display": "omitted"}, True, True),
        ({"type": "disabled"}, False, False),
    ],
)
def test_thinking_is_told_to_the_template(thinking, thinks, hides):
    """By both names that templates have for it; what a client tells the template goes first."""
    asked = read(thinking=thinking)
    told = {"enable_thinking": thinks, "thinking": thinks}
    assert asked.document["chat_template_kwargs"] == told and asked.hides_thinking is hides
    mine = {"thinking": "mine", "x": 1}
    told = document(thinking=thinking, chat_template_kwargs=mine)["chat_template_kwargs"]
    assert told == {"enable_thinking": thinks, **mine}


def test_without_thinking_the_model_decides():
    """Nothing is told."""
    assert "chat_template_kwargs" not in document()


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_effort_and_form(name):
    """The form has had two names."""
    form = {"type": "json_schema", "schema": {"type": "object"}}
    config = {"effort": "low", "format": form}
    told = document(output_config=config) if name == "output_config" else document(**{name: form})
    schema = {"name": "response", "schema": {"type": "object"}, "strict": True}
    assert told["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert told.get("reasoning_effort") == ("low" if name == "output_config" else None)


# -- cache_control


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, None),
        ({"cache_control": {"type": "ephemeral"}}, None),
        ({"cache_control": {"type": "ephemeral", "ttl": "5m"}}, 300),
        ({"tools": [{**TOOL, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}, 3600),
        (
            {
                "cache_control": {"type": "ephemeral", "ttl": "5m"},
                "system": [
                    {
                        "type": "text",
                        "text": "x",
                        "cache_control": {"type": "ephemeral", "ttl": "1h"},
                    }
                ],
            },
            3600,
        ),
        (
            {
                "cache_control": {"type": "ephemeral", "ttl": "1h"},
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
                        ],
                    }
                ],
            },
            3600,
        ),
    ],
)
def test_cache_control_holds_the_session(fields, seconds):
    """The longest ttl of all; a breakpoint without one says nothing of time."""
    assert read(**fields).hold_s == seconds


def test_cache_control_within_a_result():
    """Results have blocks of their own."""
    inner = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "5m"}}
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [inner]}
    messages = [
        *HI,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    assert read(messages=messages).hold_s == 300


# -- refusals


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": 0.5}, "top_k"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"metadata": "me"}, "metadata"),
        ({"metadata": {"user_id": 7}}, "metadata.user_id"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"speed": "fast"}, "speed"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"context_management": {"edits": [{"type": "compact"}]}}, "context_management.edits[0]"),
        ({"diagnostics": {"previous_message_id": "m"}}, "diagnostics"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"thread": {}, "fallbacks": ["x"]}, "fallbacks"),
        ({"n": 2}, "n"),
        ({"stop": ["x"]}, "stop"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 2048}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "display": "loud"}}, "thinking.display"),
        ({"output_config": {"effort": 1}}, "output_config.effort"),
        ({"output_config": {"task_budget": {"total": 9}}}, "output_config.task_budget"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"cache_control": {"type": "forever"}}, "cache_control.type"),
        ({"cache_control": {"type": "ephemeral", "ttl": "2h"}}, "cache_control.ttl"),
        (
            {"system": [{"type": "text", "text": "x", "cache_control": 1}]},
            "system[0].cache_control",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "weather"}]}, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "name": ""}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [{**TOOL, "input_examples": [{}]}]}, "tools[0].input_examples"),
        ({"tools": [{**TOOL, "allowed_callers": ["x"]}]}, "tools[0].allowed_callers"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)
def test_what_is_refused(fields, param):
    """By the name of the field, in one sentence."""
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.param == param
    assert param in caught.value.message or param.partition("[")[0] in caught.value.message


def test_a_request_can_be_sent_as_it_is():
    """What goes upstream is JSON."""
    assert json.loads(json.dumps(document(tools=[TOOL], thinking={"type": "adaptive"})))
