"""Which Messages requests are passed through, and in which form."""

from typing import Any

import pytest

from sessile.api.messages_body import read_request
from sessile.api.messages_own import own_form
from sessile.engines.kinds import engine
from sessile.router.engine import Identity

HI = [{"role": "user", "content": "Hi"}]
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
VERSIONS = {"vllm": "0.32.0", "sglang": "0.5.23"}
THINKS = {"type": "enabled", "budget_tokens": 2000}


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": one} for one in texts]


def own(**fields: Any) -> dict[str, Any]:
    """The form of a request of `fields`, with what every one needs."""
    body = {"model": "m", "max_tokens": 9, "messages": HI, **fields}
    return own_form(body, read_request(body))


def asked(kind: str, set_on: dict[str, Any] | None = None, **fields: Any) -> Any:
    """What an engine's adapter makes of it."""
    identity = Identity(models=("m",), version=VERSIONS.get(kind))
    return engine(kind).messages(own(**fields), set_on or {}, identity)


def test_it_is_the_clients_own():
    """But for what the router has heard: it is always a stream, and of one token at least."""
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    given = own(
        tools=tools, tool_choice={"type": "any"}, temperature=0.5, max_tokens=0,
        metadata={"user_id": "u"}, cache_control={"type": "ephemeral"}, service_tier="auto",
    )  # fmt: skip
    assert given == {
        "model": "m", "max_tokens": 1, "messages": HI, "tools": tools,
        "tool_choice": {"type": "any"}, "temperature": 0.5, "stream": True,
    }  # fmt: skip


def test_texts_beside_each_other_are_those_of_the_chat():
    """A system prompt, what is said, results; not across an image, which a chat keeps in parts."""
    billing = "x-anthropic-billing-header: a=b;"
    assert own(system=text(billing, "Rules.", "More."))["system"] == "Rules.\nMore."
    assert "system" not in own(system=text(billing))  # llama.cpp would render an empty one
    result = {"type": "tool_result", "tool_use_id": "t", "content": text("x", "y")}
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    messages = [
        {"role": "user", "content": text("a", "b")},
        {"role": "assistant", "content": [*text("c", "d"), call]},
        {"role": "user", "content": [result, *text("e", "f")]},
        {"role": "assistant", "content": text("g")},
        {"role": "user", "content": [*text("h", "i"), IMAGE]},
    ]
    assert [message["content"] for message in own(messages=messages)["messages"]] == [
        "a\nb",
        [*text("cd"), call],
        [{**result, "content": "x\ny"}, *text("e\nf")],
        "g",
        [*text("h", "i"), IMAGE],
    ]


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 7},
        {"output_format": {"type": "json_schema", "schema": {}}},
        {"messages": [*HI, *HI]},
        {"messages": [*HI, {"role": "assistant", "content": "Hel"}]},
        {
            "messages": [
                *HI,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t",
                            "content": "x",
                            "is_error": True,
                        }
                    ],
                },
            ]
        },
    ],
)
def test_what_would_be_left_aside_is_not_passed_through(kind, fields):
    """It is translated, as for an engine that does not speak Messages at all."""
    assert asked(kind) is not None
    assert asked(kind, **fields) is None


@pytest.mark.parametrize(
    ("kind", "version"),
    [("sglang", None), ("sglang", "0.5.9"), ("sglang", "fake"), ("vllm", None), ("vllm", "0.31.4")],
)
def test_an_engine_of_another_time_is_asked_as_a_chat(kind, version):
    """Nobody has seen what it would leave aside."""
    identity = Identity(models=("m",), version=version)
    assert engine(kind).messages(own(), {}, identity) is None


def test_llamacpp_is_asked_only_what_it_reads():
    """Whatever its version, which its builds do not all tell; one that speculates tells of that
    in a chat alone."""
    assert asked("llamacpp", stop_sequences=["END"]).document["stop_sequences"] == ["END"]
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    for fields in ({"tools": tools}, {"output_config": {"effort": "low"}}, {"seed": 7}):
        assert asked("llamacpp", **fields) is None
    identity = Identity(models=("m",), speculates=True)
    assert engine("llamacpp").messages(own(), {}, identity) is None


@pytest.mark.parametrize("kind", ["openai", "ollama", "tgi"])
def test_others_are_asked_as_chats(kind):
    """Whatever they say of themselves."""
    assert engine(kind).messages(own(), {}, Identity(models=("m",), version="9.9.9")) is None


def test_vllm_is_told_all_in_fields_and_headers():
    """Salt in the body; the id, the session and the priority beside it."""
    set_on = {"request_id": "r", "session_id": "s", "priority": 2, "cache_salt": "c"}
    made = asked("vllm", set_on, stop_sequences=["END"], thinking={"type": "disabled"})
    assert made.path == "/v1/messages" and made.document["cache_salt"] == "c"
    assert made.document["stop_sequences"] == ["END"]
    assert made.document["chat_template_kwargs"]["enable_thinking"] is False
    assert dict(made.headers) == {
        b"x-request-id": b"r", b"x-session-id": b"s", b"x-vllm-priority": b"2",
    }  # fmt: skip
    assert asked("vllm", {"unheard_of": 1}) is None
    assert asked("vllm", max_tokens=4000, thinking=THINKS) is None


def test_sglang_is_asked_only_where_nothing_is_to_be_told():
    """No salt, no priority, no adapter, and no session where the server holds any, or its KV
    events name them."""
    usual = {"rid": "r", "session_id": "s"}
    thinking = {"max_tokens": 4000, "thinking": THINKS}
    made = asked("sglang", usual, **thinking)
    assert made.document == {k: v for k, v in own(**thinking).items() if k[:4] != "chat"}
    for more in ("cache_salt", "priority", "lora_path"):
        assert asked("sglang", {**usual, more: "x"}) is None
    for keeps in ("holds_sessions", "names_sessions"):
        identity = Identity(models=("m",), version="0.5.23", **{keeps: True})
        assert engine("sglang").messages(own(), usual, identity) is None
    assert asked("sglang", usual, stop_sequences=["END"]) is None
    assert asked("sglang", usual, chat_template_kwargs={"documents": []}) is None
