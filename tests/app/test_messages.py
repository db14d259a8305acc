"""Anthropic's Messages API, through its own client."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message

from scripted_engine import STOP

TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
HI: Any = [{"role": "user", "content": "Hi"}]
BODY: Any = {"model": "m", "max_tokens": 9, "messages": HI}


@pytest.fixture
async def client(router) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=router.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(router) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=router.url) as http:
        yield http


def thinks(router, *pieces: str) -> None:
    """Queue a reply that is thought about first."""
    deltas = [{"reasoning_content": "Hm."}, *({"content": piece} for piece in pieces)]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    router.engine.plays(*chunks, STOP)


async def test_a_message(router, client):
    """A plain request is answered with a valid message, and the engine was asked what it meant."""
    router.engine.says("Hel", "lo")
    made = await client.messages.create(**BODY, system="Be brief.")
    Message.model_validate(made.to_dict(mode="json"), strict=True)
    assert made.content[0].text == "Hello" and made.stop_reason == "end_turn"
    assert (made.usage.input_tokens, made.usage.cache_read_input_tokens) == (1, 1)
    (asked,) = router.engine.asked
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, *HI]
    assert asked["stream"] is True and asked["max_tokens"] == 9


async def test_one_tool_at_a_time_where_that_is_asked_for(router, client):
    """An engine that uses two tools all the same is heard of the first, streamed or not."""
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in ("f", "g")]
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    router.engine.calls_at_once("f", "g")
    made = await client.messages.create(**BODY, tools=tools, tool_choice=choice)
    router.engine.calls_at_once("f", "g")
    async with client.messages.stream(**BODY, tools=tools, tool_choice=choice) as stream:
        streamed = await stream.get_final_message()
    for message in (made, streamed):
        assert [block.name for block in message.content] == ["f"]
        assert message.stop_reason == "tool_use"


async def test_a_stream_adds_up_to_the_message(router, client):
    """The client's own helper takes its events, and the texts come one by one."""
    router.engine.says("Hel", "lo")
    async with client.messages.stream(**BODY) as stream:
        assert [text async for text in stream.text_stream] == ["Hel", "lo"]
        made = await stream.get_final_message()
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    assert made.content[0].text == "Hello"
    assert (made.usage.input_tokens, made.usage.cache_read_input_tokens) == (0, 1)
    assert made.usage.output_tokens == 2


async def test_the_headers_name_the_turn(router, client, http):
    """The message's id is the turn's and the request's, and its receipt is there."""
    raw = await client.messages.with_raw_response.create(**BODY)
    made = await raw.parse()
    assert raw.headers["x-sessile-turn"] == raw.headers["request-id"] == made.id == made._request_id
    assert (raw.headers["x-sessile-replica"], raw.headers["x-sessile-reason"]) == ("one", "new")
    receipt = (await http.get(f"/sessile/v1/turns/{made.id}/receipt")).json()
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
async def test_claude_code_packs_its_session_in_the_user(client, user):
    """In either way that it does."""
    raw = await client.messages.with_raw_response.create(**BODY, metadata={"user_id": user})
    assert raw.headers["x-sessile-session"] == "0b71b8c2-91a5-4f6e-9d1c-0123456789ab"


async def test_thinking(router, client):
    """A block of its own; what came back of it goes to the engine as its reasoning."""
    thinks(router, "Yes.")
    made = await client.messages.create(
        **{**BODY, "max_tokens": 2000}, thinking={"type": "adaptive"}
    )
    thought, text = made.content
    assert (thought.type, thought.thinking, thought.signature) == ("thinking", "Hm.", made.id)
    assert text.text == "Yes."
    assert router.engine.asked[0]["chat_template_kwargs"]["enable_thinking"] is True
    more = [*HI, {"role": "assistant", "content": made.content}, *HI]
    await client.messages.create(model="m", max_tokens=9, messages=more)
    assert router.engine.asked[1]["messages"][1] == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "Hm.",
    }


async def test_a_ttl_leases_the_sessions_memory(router, client):
    """A session that pauses after its turn is held for so long, and not without a ttl."""
    for ttl, seconds in (("1h", 3600), (None, None)):
        control = {"type": "ephemeral", **({"ttl": ttl} if ttl else {})}
        await client.messages.create(
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


async def test_no_tokens_fill_the_cache(router, client):
    """The engine prefills, and nothing is said."""
    router.engine.says("x", finish="length")
    made = await client.messages.create(**{**BODY, "max_tokens": 0})
    assert made.content == [] and made.stop_reason == "max_tokens"
    assert router.engine.asked[0]["max_tokens"] == 1


# -- counting


async def test_tokens_are_counted_by_a_turn_of_one_token(router, client):
    """Where the engine has no tokenizer to ask."""
    counted = await client.messages.count_tokens(model="m", messages=HI, system="Be.", tools=[TOOL])
    assert counted.input_tokens == 2  # the scripted engine counts messages
    (asked,) = router.engine.asked
    assert asked["max_tokens"] == 1 and asked["tools"][0]["function"]["name"] == "weather"


async def test_a_count_is_refused_as_a_message_is(router, client):
    """By the field's name, and by the engine's own words."""
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        await client.messages.count_tokens(model="m", messages=[])
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.count_tokens(model="nothing", messages=HI)
    router.engine.refuses(400, "too long, my friend")
    with pytest.raises(anthropic.BadRequestError, match="my friend"):
        await client.messages.count_tokens(model="m", messages=HI)


# -- errors


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engines_refusal_keeps_its_words(router, client, stream):
    """With a status, streaming or not."""
    router.engine.refuses(400, "maximum context length is 10")
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.messages.create(**BODY, stream=stream)
    assert caught.value.body["error"] == {
        "type": "invalid_request_error",
        "message": "maximum context length is 10",
    }
    assert caught.value.request_id == caught.value.body["request_id"]


async def test_a_broken_stream_ends_with_an_error(router, client, http):
    """A replica that dies on the way: what came stays, and the client is told."""
    router.engine.plays("Hel", router.cut)
    said = ""
    with pytest.raises(anthropic.APIStatusError) as caught:
        async for event in await client.messages.create(**BODY, stream=True):
            if event.type == "content_block_delta":
                said += event.delta.text
    assert said == "Hel" and caught.value.body["error"]["type"] == "api_error"
    receipt = await http.get(f"/sessile/v1/turns/{caught.value.body['request_id']}/receipt")
    assert receipt.json()["outcome"] == "stream_broken"


@pytest.mark.parametrize("steps", [("Hel",), ("Hel", {"error": {"message": "no memory"}})])
async def test_a_broken_answer_is_an_error_to_who_waited_for_it(router, client, steps):
    """Without a stream, one that is not whole is a 502."""
    router.engine.plays(*steps)
    with pytest.raises(anthropic.InternalServerError) as caught:
        await client.messages.create(**BODY)
    assert caught.value.status_code == 502


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_stops_the_engine(router, http, path, stream):
    """A client that goes away stops the engine's work, whatever it is for."""
    router.engine.plays("Hel", asyncio.Event())
    asking = asyncio.create_task(http.post(path, json={**BODY, "stream": stream}))
    await router.until(lambda: router.engine.running == 1)
    asking.cancel()
    await router.until(lambda: router.engine.aborted == 1 and router.engine.running == 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_goes_on_without_a_client_that_has_said_so(router, http, stream):
    """With `detach` the message is made to its end, and found by its key."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", STOP)
    body, key = {**BODY, "stream": stream}, {"Idempotency-Key": "k"}
    headers = {"X-Sessile-On-Disconnect": "detach", **key}
    asking = asyncio.create_task(http.post("/v1/messages", json=body, headers=headers))
    await router.until(lambda: router.engine.running == 1)
    asking.cancel()
    await asyncio.sleep(0.2)  # longer than a hang-up takes to be seen
    assert router.engine.running == 1
    go.set()
    again = await http.post("/v1/messages", json={**BODY, "stream": False}, headers=key)
    assert again.json()["content"][0]["text"] == "Hello" and len(router.engine.asked) == 1
    receipt = (await http.get(f"/sessile/v1/turns/{again.json()['id']}/receipt")).json()
    assert receipt["outcome"] == "ok"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_wish_about_hanging_up_that_is_none_is_refused(router, http, path):
    """Before anything runs, in Anthropic's shape."""
    headers = {"X-Sessile-On-Disconnect": "keep"}
    answer = await http.post(path, json=BODY, headers=headers)
    assert answer.status_code == 400 and answer.json()["type"] == "error"
    assert "detach or abort" in answer.json()["error"]["message"]
    assert router.engine.asked == []


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (b"[]", 400, "invalid_request_error"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}', 400, None),
        (b'{"model": "m", "max_tokens": 1, "messages": [1]}', 400, None),
        (b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[1]}]}', 400, None),
        (
            b'{"model": "m", "max_tokens": 1, "system": [{"type":"text","text":"x","content":[1]}],'
            b'"messages": [{"role":"user","content":[{"type":"text","text":"x","content":[1]}]}]}',
            200,
            None,
        ),
        (b'{"model": "nope", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}', 404,
         "not_found_error"),
    ],
)  # fmt: skip
async def test_bad_requests_are_told_in_anthropics_shape(http, content, status, kind):
    """Each gets one sentence, and the next request is served."""
    answer = await http.post("/v1/messages", content=content)
    assert answer.status_code == status
    if status != 200:
        told = answer.json()
        assert told["type"] == "error" and told["error"]["message"]
        assert told["error"]["type"] == (kind or "invalid_request_error")
        assert told["request_id"] == answer.headers["request-id"]
    assert (await http.post("/v1/messages", json=BODY)).status_code == 200


async def test_a_thread_is_refused_in_the_words_that_its_client_knows(client, http):
    """Nothing is held for it, and the client goes on with whole conversations."""
    answer = await http.post("/v1/messages", json={**BODY, "thread": {"type": "create"}})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.messages.create(**BODY, extra_body={"thread": {"type": "create"}})
    assert caught.value.error_code == "thread_unsupported_request"


async def test_what_is_not_there(client, http):
    """A path of theirs that is none, and a method of one that has others."""
    with pytest.raises(anthropic.NotFoundError, match="/v1/messages/nothing"):
        await client.post("/v1/messages/nothing", cast_to=object)
    answer = await http.get("/v1/messages")
    assert answer.status_code == 404 and answer.json()["type"] == "error"


async def test_a_repeated_key_returns_the_first_message(router, http):
    """The same idempotency key runs one turn, and both answers are the same message."""
    for stream in (False, True):
        headers = {"Idempotency-Key": f"k-{stream}"}
        body = {**BODY, "stream": stream}
        answers = [await http.post("/v1/messages", json=body, headers=headers) for _ in range(2)]
        assert answers[0].text == answers[1].text and answers[0].status_code == 200
    assert len(router.engine.asked) == 2


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
async def test_keys(start, header):
    """Either header lets in, and names the tenant; without one, or with a wrong one, a 401."""
    router = await start(auth={"api_keys": "a=one,b=two"})

    def client(key: str) -> AsyncAnthropic:
        given: Any = {"api_key": key} if header == "x-api-key" else {"auth_token": key}
        return AsyncAnthropic(base_url=router.url, max_retries=0, **given)

    sessions = set()
    for key in ("one", "two"):
        async with client(key) as known:
            raw = await known.messages.with_raw_response.create(
                **BODY, extra_headers={"X-Session-ID": "s"}
            )
            turn = raw.headers["x-sessile-turn"]
            sessions.add((key, raw.headers["x-sessile-reason"]))
            async with httpx2.AsyncClient(base_url=router.url) as http:
                for other in ("one", "two"):
                    found = await http.get(
                        f"/sessile/v1/turns/{turn}/receipt",
                        headers={"Authorization": f"Bearer {other}"},
                    )
                    assert found.status_code == (200 if other == key else 404)
    assert {reason for _, reason in sessions} == {"new"}
    async with client("wrong") as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(**BODY)
    async with httpx2.AsyncClient(base_url=router.url) as http:
        answer = await http.post("/v1/messages", json=BODY)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"


async def test_batches_are_refused_by_name(client, start):
    """In Anthropic's shape, to who may ask: made, listed, looked at, cancelled, deleted."""
    batches = client.messages.batches
    request: Any = {"custom_id": "a", "params": BODY}
    for asking in (
        batches.create(requests=[request]), batches.list(), batches.retrieve("b"),
        batches.cancel("b"), batches.delete("b"), batches.results("b"),
    ):  # fmt: skip
        with pytest.raises(anthropic.APIStatusError) as caught:
            await asking
        assert caught.value.status_code == 501 and isinstance(caught.value.body, dict)
        assert "batches are not supported" in caught.value.body["error"]["message"]
        assert caught.value.request_id == caught.value.body["request_id"]
    closed = await start(auth={"api_keys": "a=one"})
    async with AsyncAnthropic(base_url=closed.url, api_key="none", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.batches.list()
