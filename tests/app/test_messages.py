"""Anthropic's Messages API, through its own client."""

import time
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message

from messages_asked import BODY, HI, TOOL
from scripted_engine import STOP


async def test_a_message(router, claude):
    """A plain request is answered with a valid message, and the engine was asked what it meant."""
    router.engine.says("Hel", "lo")
    made = await claude.messages.create(**BODY, system="Be brief.")
    Message.model_validate(made.to_dict(mode="json"), strict=True)
    assert made.content[0].text == "Hello" and made.stop_reason == "end_turn"
    assert (made.usage.input_tokens, made.usage.cache_read_input_tokens) == (1, 1)
    (asked,) = router.engine.asked
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, *HI]
    assert asked["stream"] is True and asked["max_tokens"] == 9


async def test_one_tool_at_a_time_where_that_is_asked_for(router, claude):
    """An engine that uses two tools all the same is heard of the first, streamed or not."""
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in ("f", "g")]
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    router.engine.calls_at_once("f", "g")
    made = await claude.messages.create(**BODY, tools=tools, tool_choice=choice)
    router.engine.calls_at_once("f", "g")
    async with claude.messages.stream(**BODY, tools=tools, tool_choice=choice) as stream:
        streamed = await stream.get_final_message()
    for message in (made, streamed):
        assert [block.name for block in message.content] == ["f"]
        assert message.stop_reason == "tool_use"


async def test_a_stream_adds_up_to_the_message(router, claude):
    """The client's own helper takes its events, and the texts come one by one."""
    router.engine.says("Hel", "lo")
    async with claude.messages.stream(**BODY) as stream:
        assert [text async for text in stream.text_stream] == ["Hel", "lo"]
        made = await stream.get_final_message()
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    assert made.content[0].text == "Hello"
    assert (made.usage.input_tokens, made.usage.cache_read_input_tokens) == (0, 1)
    assert made.usage.output_tokens == 2


async def test_the_headers_name_the_turn(router, claude, http):
    """The message's id is the turn's and the request's, and its receipt is there."""
    raw = await claude.messages.with_raw_response.create(**BODY)
    made = await raw.parse()
    assert raw.headers["x-sessile-turn"] == raw.headers["request-id"] == made.id == made._request_id
    assert (raw.headers["x-sessile-replica"], raw.headers["x-sessile-reason"]) == ("one", "new")
    receipt = (await http.get(f"{router.url}/sessile/v1/turns/{made.id}/receipt")).json()
    assert receipt["outcome"] == "ok" and receipt["cached_tokens"] == 1


async def test_a_conversation_is_known_by_its_messages(start):
    """A request that extends a known one and its reply runs in its session: thoughts, a call with
    its result, streamed and not, and whichever of the APIs it is continued by."""
    router = await start(engines=2)
    first: set[str] = set()
    async with (
        AsyncAnthropic(base_url=router.url, api_key="none", max_retries=0) as client,
        httpx2.AsyncClient(base_url=router.url) as http,
    ):

        async def turn(messages: Any, streamed: bool) -> Any:
            if not streamed:
                raw = await client.messages.with_raw_response.create(
                    model="m", max_tokens=9, messages=messages, tools=[TOOL], system="Rules."
                )
                headers, made = raw.headers, await raw.parse()
            else:
                async with client.messages.stream(
                    model="m", max_tokens=9, messages=messages, tools=[TOOL], system="Rules."
                ) as stream:
                    made = await stream.get_final_message()
                headers = stream.response.headers
            first.add(headers["x-sessile-session"])
            return made

        for engine in router.engines.values():  # either may be asked, always the same
            engine.plays(
                {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]},
                "Let me see.\n",
                {
                    "choices": [
                        {
                            "index": 0,
                            "delta": {
                                "tool_calls": [
                                    {
                                        "index": 0,
                                        "id": "t1",
                                        "function": {
                                            "name": "weather",
                                            "arguments": '{ "city":"Z\\u00fcrich", "n": 1.0 }',
                                        },
                                    }
                                ]
                            },
                        }
                    ]
                },
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
            )
            engine.says("Sunny.")
            engine.says("Bye.")
        messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Weather?"}]}]
        made = await turn(messages, True)
        assert [block.type for block in made.content] == ["thinking", "text", "tool_use"]
        call = made.content[2]
        assert call.input == {"city": "Zürich", "n": 1.0} and made.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        messages += [
            {"role": "assistant", "content": made.content},
            {"role": "user", "content": [result]},
        ]
        made = await turn(messages, False)
        assert made.content[0].text == "Sunny."
        asked = next(e.asked for e in router.engines.values() if e.asked)
        chat = [
            *asked[1]["messages"],
            {"role": "assistant", "content": "Sunny."},
            {"role": "user", "content": "Thanks."},
        ]
        answer = await http.post("/v1/chat/completions", json={"model": "m", "messages": chat})
        first.add(answer.headers["x-sessile-session"])
    assert len(first) == 1
    assert sorted(len(engine.asked) for engine in router.engines.values()) == [0, 3]


@pytest.mark.parametrize(
    "user",
    [
        "user_1_account__session_0b71b8c2-91a5-4f6e-9d1c-0123456789ab",
        '{"device_id":"d","session_id":"0b71b8c2-91a5-4f6e-9d1c-0123456789ab"}',
    ],
)
async def test_claude_code_packs_its_session_in_the_user(claude, user):
    """In either way that it does."""
    raw = await claude.messages.with_raw_response.create(**BODY, metadata={"user_id": user})
    assert raw.headers["x-sessile-session"] == "0b71b8c2-91a5-4f6e-9d1c-0123456789ab"


def thinks(router, *pieces: str) -> None:
    """Queue a reply that is thought about first."""
    deltas = [{"reasoning_content": "Hm."}, *({"content": piece} for piece in pieces)]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    router.engine.plays(*chunks, STOP)


async def test_thinking(router, claude):
    """A block of its own; what came back of it goes to the engine as its reasoning."""
    thinks(router, "Yes.")
    made = await claude.messages.create(
        **{**BODY, "max_tokens": 2000}, thinking={"type": "adaptive"}
    )
    thought, text = made.content
    assert (thought.type, thought.thinking, thought.signature) == ("thinking", "Hm.", made.id)
    assert text.text == "Yes."
    assert router.engine.asked[0]["chat_template_kwargs"]["enable_thinking"] is True
    more = [*HI, {"role": "assistant", "content": made.content}, *HI]
    await claude.messages.create(model="m", max_tokens=9, messages=more)
    assert router.engine.asked[1]["messages"][1] == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "Hm.",
    }


async def test_a_ttl_leases_the_sessions_memory(router, claude):
    """A session that pauses after its turn is held for so long, and not without a ttl."""
    for ttl, seconds in (("1h", 3600), (None, None)):
        control = {"type": "ephemeral", **({"ttl": ttl} if ttl else {})}
        await claude.messages.create(
            **BODY,
            system=[{"type": "text", "text": "Rules.", "cache_control": control}],
            extra_headers={"X-Session-ID": f"s-{ttl}"},
        )
        (pause,) = (
            pause
            for session, pause in router.app.flow.scheduler.live.pauses._pauses.items()
            if f"s-{ttl}" in session
        )
        assert pause.told is (ttl is not None)
        if seconds is not None:
            assert pause.until - time.monotonic() == pytest.approx(seconds, abs=60)


async def test_no_tokens_fill_the_cache(router, claude):
    """The engine prefills, and nothing is said."""
    router.engine.says("x", finish="length")
    made = await claude.messages.create(**{**BODY, "max_tokens": 0})
    assert made.content == [] and made.stop_reason == "max_tokens"
    assert router.engine.asked[0]["max_tokens"] == 1
