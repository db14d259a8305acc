"""Anthropic's client and real engines: what is counted, cached, stopped and continued."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic, BadRequestError

pytestmark = pytest.mark.live

_RULES = " ".join(f"Rule {n}: read file {n} and quote its line {n * 7}." for n in range(1, 16))
_TOOL: Any = {
    "name": "read_file",
    "description": "Read a file.",
    "input_schema": {
        "type": "object",
        "properties": {"path": {"type": "string", "enum": ["a.txt", "b.txt"]}},
        "required": ["path"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(site: Any) -> Iterator[Anthropic]:
    """The official client, which must not repeat what fails."""
    with Anthropic(base_url=site.url, api_key="none", max_retries=0) as client:
        yield client


def _asked(site: Any, text: str = "Say hello.", **more: Any) -> dict[str, Any]:
    """A first turn that no cache has seen."""
    system = f"You are agent {uuid.uuid4().hex}. {_RULES}"
    messages = [{"role": "user", "content": text}]
    return {"model": site.model, "system": system, "messages": messages, **more}


def test_a_count_is_exact_and_the_second_turn_is_cached(site: Any, client: Anthropic) -> None:
    """What was counted is what the turn took; the next turn is known by its messages, and reads
    most of its prompt from the cache."""
    asked = _asked(site, tools=[_TOOL], tool_choice={"type": "auto"})
    counted = client.messages.count_tokens(**asked).input_tokens
    first = client.messages.with_raw_response.create(**asked, max_tokens=12)
    made = first.parse()
    usage = made.usage
    assert usage.cache_read_input_tokens is not None
    parts = (usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens)
    assert sum(part or 0 for part in parts) == counted > 250
    if made.stop_reason == "tool_use":
        pytest.skip("the model called a tool unasked")
    asked["messages"] = [
        *asked["messages"],
        {"role": "assistant", "content": made.content},
        {"role": "user", "content": "Go on."},
    ]
    with client.messages.stream(**asked, max_tokens=12) as stream:
        again = stream.get_final_message()
    assert stream.response.headers["x-sessile-session"] == first.headers["x-sessile-session"]
    receipt = site.receipt(stream.response.headers["x-sessile-turn"])
    assert (again.usage.cache_read_input_tokens or 0) > 0.8 * counted, receipt


def test_a_stop_sequence_is_told(site: Any, client: Anthropic) -> None:
    """By every engine: llama.cpp tells it of a message alone."""
    made = client.messages.create(**_asked(site), max_tokens=40, stop_sequences=[" "])
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", " ")


def test_what_the_model_began_is_continued(site: Any, client: Anthropic) -> None:
    """A last message of the model's is gone on from."""
    asked = _asked(site, "Count to ten.")
    asked["messages"] += [{"role": "assistant", "content": "One, two, three, four,"}]
    made = client.messages.create(**asked, max_tokens=4, extra_body={"temperature": 0})
    assert "five" in "".join(block.text for block in made.content if block.type == "text")


def test_either_way_reads_the_same_prompt(site: Any, client: Anthropic) -> None:
    """A turn that an engine's own Messages has no field for is translated, those around it are not
    where the engine speaks that; each finds what the last one left in the cache. The session is
    named: two that are not are two, and the second would be alone at another replica."""
    asked = _asked(site, tools=[_TOOL], max_tokens=8)
    asked["system"] = [{"type": "text", "text": text} for text in (asked["system"], "Be brief.")]
    asked["messages"] = [
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("Look.", "Read on.")]},
        {"role": "assistant", "content": [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "a.txt"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1",
             "content": [{"type": "text", "text": text} for text in ("Zürich", _RULES)]},
            {"type": "text", "text": "Thanks."},
            {"type": "text", "text": "What now?"},
        ]},
    ]  # fmt: skip
    read = []
    for more in ({}, {"seed": 7}, {}):
        usage = client.messages.create(
            **asked, extra_body={**more, "temperature": 0}, extra_headers={"x-session-id": "same"}
        ).usage
        cached, made = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
        read.append(cached / (cached + made + usage.input_tokens))
    assert min(read[1:]) > 0.9


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_does_not_fit_is_refused(site: Any, client: Anthropic, stream: bool) -> None:
    """With a status of its own, also by an engine that refuses a message in its stream."""
    with pytest.raises(BadRequestError) as caught:
        client.messages.create(**_asked(site, "word " * 20000), max_tokens=4, stream=stream)
    assert caught.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
