"""Anthropic's own client against routers in processes of their own: with the real small model, and
with a scripted engine for what that model will not do."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from anthropic.types import Message, MessageParam

RULES = " ".join(f"Rule {n}: be brief, and say what you mean." for n in range(1, 30))
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.fixture
def real(sessile_up: str) -> Iterator[Anthropic]:
    """The client of a router before the real model."""
    with Anthropic(base_url=sessile_up, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def real_async(sessile_up: str) -> AsyncIterator[AsyncAnthropic]:
    """The same, asynchronous."""
    async with AsyncAnthropic(base_url=sessile_up, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def scripted(router: str) -> Iterator[Anthropic]:
    """The client of a router before engines that call every tool once, and echo otherwise."""
    with Anthropic(base_url=router, api_key="none", max_retries=0) as client:
        yield client


def model_of(client: Anthropic) -> str:
    """What is served."""
    return next(iter(client.models.list())).id


def text_of(message: Message) -> str:
    """The text of a message."""
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_conversation_with_the_real_model(real: Anthropic) -> None:
    """The second turn names no session: it comes back to its replica, and most of its prompt is
    read from the cache; the count before it was exact."""
    model = model_of(real)
    messages: list[MessageParam] = [{"role": "user", "content": "Name a colour."}]
    asked: Any = {"model": model, "system": RULES, "messages": messages}
    counted = real.messages.count_tokens(**asked).input_tokens
    raw = real.messages.with_raw_response.create(**asked, max_tokens=12)
    first = raw.parse()
    Message.model_validate(first.to_dict(mode="json"), strict=True)
    used = first.usage
    assert used.cache_read_input_tokens is not None
    assert used.input_tokens + used.cache_read_input_tokens == counted > 300
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": "Another one."},
    ]
    with real.messages.stream(**asked, max_tokens=12) as stream:
        pieces = list(stream.text_stream)
        second = stream.get_final_message()
    assert len(pieces) > 1 and "".join(pieces) == text_of(second)
    told = stream.response.headers
    for name in ("x-sessile-session", "x-sessile-replica"):
        assert raw.headers[name] == told[name]
    assert told["x-sessile-reason"] == "bound"
    assert second.usage.cache_read_input_tokens is not None
    assert second.usage.cache_read_input_tokens > 0.8 * counted
    assert second.usage.output_tokens > 0


async def test_the_real_model_asynchronously(real_async: AsyncAnthropic) -> None:
    """Every event of the raw stream, in its order, and a plain message cut at its limit."""
    model = (await real_async.models.list()).data[0].id
    asked: Any = {
        "model": model,
        "messages": [{"role": "user", "content": "Count to twenty."}],
        "extra_body": {"temperature": 0},
    }
    stream = await real_async.messages.create(**asked, max_tokens=5, stream=True)
    types = [event.type async for event in stream]
    assert types[:2] == ["message_start", "content_block_start"]  # the client keeps pings to itself
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(types[2:-3]) == {"content_block_delta"}
    made = await real_async.messages.create(**asked, max_tokens=5)
    assert made.stop_reason == "max_tokens" and made.usage.output_tokens == 5


def test_the_real_model_goes_on_from_what_it_began(real: Anthropic) -> None:
    """A last message of the model's is continued, not answered."""
    begun = "One, two, three, four,"
    made = real.messages.create(
        model=model_of(real),
        max_tokens=4,
        extra_body={"temperature": 0},
        messages=[
            {"role": "user", "content": "Count to ten."},
            {"role": "assistant", "content": begun},
        ],
    )
    assert "five" in text_of(made)


def test_counts_of_the_real_model(real: Anthropic) -> None:
    """Tools and system prompts count, as they do in a message."""
    asked: Any = {"model": model_of(real), "messages": [{"role": "user", "content": "Hi"}]}
    plain = real.messages.count_tokens(**asked).input_tokens
    more = real.messages.count_tokens(**asked, system="You are a very helpful pirate.")
    assert more.input_tokens != plain
    usage = real.messages.create(**asked, max_tokens=1).usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == plain


def test_errors_of_the_real_model(real: Anthropic) -> None:
    """The client raises its own classes, with a sentence and the request's id."""
    hi: Any = [{"role": "user", "content": "Hi"}]
    with pytest.raises(anthropic.NotFoundError) as missing:
        real.messages.create(model="nothing", max_tokens=1, messages=hi)
    assert missing.value.request_id is not None and "nothing" in missing.value.message
    model = model_of(real)
    long: Any = [{"role": "user", "content": "word " * 40_000}]
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError) as caught:
            real.messages.create(model=model, max_tokens=1, messages=long, stream=stream)
        assert "context" in caught.value.message
    search: Any = [{"type": "web_search_20250305", "name": "web_search"}]
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        real.messages.create(model=model, max_tokens=1, messages=hi, tools=search)


def test_keys(locked_router: str) -> None:
    """Either way of giving one; anything else is an authentication error."""
    hi: Any = {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    for given in ({"api_key": "right"}, {"auth_token": "right"}):
        with Anthropic(base_url=locked_router, max_retries=0, **given) as client:
            assert model_of(client) == client.models.retrieve("echo").id == "echo"
            assert text_of(client.messages.create(**hi)) == "echo Hi"
    with (
        Anthropic(base_url=locked_router, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        client.messages.create(**hi)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_and_its_result(scripted: Anthropic, streamed: bool) -> None:
    """A call comes as a block with its input, its result is answered, in one session."""
    messages: list[MessageParam] = [{"role": "user", "content": f"How is it? {streamed}"}]
    asked: Any = {"model": "echo", "max_tokens": 99, "tools": [TOOL], "messages": messages}

    def turn() -> tuple[Message, str]:
        if streamed:
            with scripted.messages.stream(**asked) as stream:
                made: Message = stream.get_final_message()
            return made, stream.response.headers["x-sessile-session"]
        raw = scripted.messages.with_raw_response.create(**asked)
        return raw.parse(), raw.headers["x-sessile-session"]

    made, session = turn()
    (call,) = made.content
    assert call.type == "tool_use" and made.stop_reason == "tool_use"
    assert (call.name, call.input) == ("weather", {"city": "Oslo"})
    messages += [
        {"role": "assistant", "content": made.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}],
        },
    ]
    made, again = turn()
    assert text_of(made) == "echo sunny" and again == session


def test_the_tool_runner(scripted: Anthropic) -> None:
    """The client's own loop runs to its end."""

    @beta_tool
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: Its name.
        """
        return f"sunny in {city}"

    runner = scripted.beta.messages.tool_runner(
        model="echo",
        max_tokens=99,
        tools=[weather],
        messages=[{"role": "user", "content": "How is it?"}],
    )
    last = runner.until_done()
    assert [b.text for b in last.content if b.type == "text"] == ["echo sunny in Oslo"]
