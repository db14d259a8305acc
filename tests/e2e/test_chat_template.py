"""Our chat template for the default model, by the real engine: what it renders, and finds."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from embedded_engine import serving
from sessile.engines.chat_template import SMOLLM2
from sessile.engines.kinds import engine
from sessile.router.engine import Identity, Reply

ADAPTER = engine("llamacpp")
SMALL = ("--slots", "1", "--context", "2048")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
RAIN = {"type": "function", "function": {**TOOL["function"], "name": "rain"}}  # type: ignore[dict-item]
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "How is it in Oslo?"}]
TALK: list[dict[str, Any]] = [*ASKED, {"role": "assistant", "content": "Wet."}, ASKED[0]]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def ours() -> Iterator[httpx2.Client]:
    """With the template that `sessile up` gives it."""
    with serving(*SMALL, "--chat-template", str(SMOLLM2)) as client:
        yield client


@pytest.fixture(scope="module")
def own() -> Iterator[httpx2.Client]:
    """With the one that is in its file."""
    with serving(*SMALL) as client:
        yield client


def rendered(client: httpx2.Client, messages: list[dict[str, Any]], **fields: Any) -> str:
    """The prompt."""
    told = client.post("/apply-template", json={"messages": messages, **fields}).json()
    prompt: str = told["prompt"]
    return prompt


def identity(client: httpx2.Client) -> Identity:
    """What the router knows of it."""
    answers = [client.get(call.path) for call in ADAPTER.identity_calls()]
    return ADAPTER.read_identity(tuple(Reply(a.status_code, a.content) for a in answers))


@pytest.mark.parametrize(
    "messages",
    [
        ASKED,
        TALK,
        [SYSTEM, *TALK],
        [*TALK, SYSTEM, ASKED[0]],
        [{"role": "developer", "content": "Be brief."}, *ASKED],
        [{"role": "system", "content": ""}, {"role": "user", "content": ""}],
        [{"role": "user", "content": [{"type": "text", "text": " a\n"}]}],
        [{"role": "user", "content": "<tool_call>\n{{ x }} \u00e9 \U0001f600\n"}],
        [*ASKED, {"role": "tool", "tool_call_id": "c", "content": "wet"}],
    ],
)  # fmt: skip
def test_without_tools_the_prompt_is_the_model_s_own(ours, own, messages) -> None:
    """Byte for byte."""
    assert rendered(ours, messages) == rendered(own, messages)
    assert rendered(ours, messages, tools=[]) == rendered(own, messages)


def test_tools_reach_the_prompt_and_a_later_one_begins_with_an_earlier(ours) -> None:
    """Through a call, its result, and what comes after them: that is what is cached."""
    call = {"id": "c", "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}  # fmt: skip
    called = [SYSTEM, *ASKED, {"role": "assistant", "content": None, "tool_calls": [call, call]}]
    answered = [*called, {"role": "tool", "tool_call_id": "c", "content": "wet"}]
    went_on = [*answered, {"role": "assistant", "content": "It is wet."}, *ASKED]
    prompts = [
        rendered(ours, messages, tools=[TOOL, RAIN])
        for messages in ([SYSTEM, *ASKED], answered, went_on)
    ]
    assert all(
        later.startswith(before) for before, later in zip(prompts, prompts[1:], strict=False)
    )
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert prompts[1].startswith(f"{prompts[0]}{written}\n{written}<|im_end|>\n")
    assert "wet" in prompts[1] and '"name": "rain"' in prompts[0] and "Be brief." in prompts[0]


def test_the_model_s_own_template_takes_no_tools(ours, own) -> None:
    """Which its replica says."""
    assert "tools" in identity(own).lacks and "tools" not in identity(ours).lacks
