"""The Responses API over HTTP, through OpenAI's own client."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from openai.types.responses import Response


@pytest.fixture
async def http(router) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=router.url) as http:
        yield http


async def test_a_response_is_made_and_found_again(router, client):
    """A plain request is answered with a valid object, which `GET` gives again, word for word."""
    router.engine.says("Hel", "lo")
    made = await client.responses.create(model="m", input="Hi", instructions="Be brief.")
    Response.model_validate_json(made.to_json(), strict=True)
    assert made.output_text == "Hello" and made.status == "completed"
    assert made.usage is not None and made.usage.input_tokens_details.cached_tokens == 1
    found = await client.responses.retrieve(made.id)
    assert found.to_dict() == made.to_dict()
    assert router.engine.asked[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


async def test_a_stream_tells_the_same_as_its_last_event(router, client):
    """A stream's deltas add up to the response that it ends with, and that is stored."""
    router.engine.says("Hel", "lo")
    stream = await client.responses.create(model="m", input="Hi", stream=True)
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    events = [event async for event in stream]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == ["Hel", "lo"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    found = await client.responses.retrieve(events[-1].response.id)
    assert found.output_text == "Hello"


async def test_the_headers_name_the_turn(router, http):
    """The answer's headers name its session, its turn (which is its id), replica and reason."""
    answer = await http.post("/v1/responses", json={"model": "m", "input": "Hi"})
    assert answer.headers["x-sessile-turn"] == answer.json()["id"]
    assert answer.headers["x-sessile-replica"] == "one"
    session = answer.headers["x-sessile-session"]
    again = await http.post(
        "/v1/responses",
        json={"model": "m", "input": "And?", "previous_response_id": answer.json()["id"]},
    )
    assert again.headers["x-sessile-session"] == session
    assert again.headers["x-sessile-reason"] == "bound"


async def test_a_conversation_sends_only_what_is_new(router, client):
    """Each turn's messages begin with those of the turn before, though only new input is sent."""
    head = None
    for words in ("one", "two", "three"):
        made = await client.responses.create(
            model="m", input=words, previous_response_id=head, instructions="Rules."
        )
        head = made.id
    first, second, third = (asked["messages"] for asked in router.engine.asked)
    assert second[: len(first)] == first and third[: len(second)] == second
    assert [message["role"] for message in third] == [
        "system", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip


async def test_one_call_at_a_time_where_that_is_asked_for(router, client):
    """An engine that calls two tools all the same is heard of the first, and the conversation goes
    on with that one, streamed or not."""
    tools = [
        {"type": "function", "name": name, "parameters": {"type": "object"}, "strict": False}
        for name in ("f", "g")
    ]
    asked = {"model": "m", "input": "Go", "tools": tools, "parallel_tool_calls": False}
    router.engine.calls_at_once("f", "g")
    made = await client.responses.create(**asked)
    router.engine.calls_at_once("f", "g")
    seen = [event async for event in await client.responses.create(**asked, stream=True)]
    for response in (made, seen[-1].response):
        assert [item.name for item in response.output] == ["f"]
    output = {"type": "function_call_output", "call_id": "call_f", "output": "3"}
    await client.responses.create(model="m", input=[output], previous_response_id=made.id)
    calls = router.engine.asked[-1]["messages"][1]["tool_calls"]
    assert [call["id"] for call in calls] == ["call_f"]


async def test_a_function_call_and_its_output(router, client):
    """A call comes out as an item; its output, sent with the response's id, follows it upstream."""
    router.engine.calls("add", '{"a":1,"b":2}')
    router.engine.says("3")
    tool = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
    made = await client.responses.create(model="m", input="1+2?", tools=[tool])
    (item,) = made.output
    assert (item.type, item.name, item.arguments) == ("function_call", "add", '{"a":1,"b":2}')
    output = {"type": "function_call_output", "call_id": item.call_id, "output": "3"}
    again = await client.responses.create(
        model="m", input=[output], tools=[tool], previous_response_id=made.id
    )
    assert again.output_text == "3"
    said = router.engine.asked[1]["messages"]
    assert said[1]["tool_calls"][0]["id"] == said[2]["tool_call_id"] == item.call_id


async def test_a_response_that_is_not_stored_is_gone(router, client):
    """With store false the response can neither be fetched nor continued."""
    made = await client.responses.create(model="m", input="Hi", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(model="m", input="Go on", previous_response_id=made.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


async def test_a_closed_session_takes_no_turn(router, client, http):
    """A turn that continues a closed session is told so."""
    raw = await client.responses.with_raw_response.create(model="m", input="Hi")
    await http.post(f"/sessile/v1/sessions/{raw.headers['x-sessile-session']}/close")
    with pytest.raises(openai.APIStatusError) as caught:
        await client.responses.create(model="m", input="Go on", previous_response_id=raw.parse().id)
    assert caught.value.status_code == 410


async def test_a_branch_may_have_a_session_of_its_own(router, http):
    """A response may be continued under another session id: that is a fork."""
    made = (await http.post("/v1/responses", json={"model": "m", "input": "Hi"})).json()
    forked = await http.post(
        "/v1/responses",
        json={"model": "m", "input": "And?", "previous_response_id": made["id"]},
        headers={"X-Session-ID": "branch"},
    )
    assert forked.headers["x-sessile-session"] == "branch"
    assert len(router.engine.asked[1]["messages"]) == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engines_refusal_keeps_its_words(router, client, stream):
    """An engine that refuses is quoted, as an HTTP error, streaming or not."""
    router.engine.refuses(400, "maximum context length is 10")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input="Hi", stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 10" in caught.value.message


async def test_a_broken_stream_fails_its_response(router, client):
    """A replica that dies on the way ends the stream with `response.failed`, which is stored."""
    router.engine.plays("Hel", router.cut)
    stream = await client.responses.create(model="m", input="Hi", stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.failed"
    response = events[-1].response
    assert response.error.code == "server_error" and response.output_text == "Hel"
    assert (await client.responses.retrieve(response.id)).status == "failed"
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="m", input="x", previous_response_id=response.id)


async def test_a_broken_answer_is_an_error_to_who_waited_for_it(router, client):
    """Without a stream, a replica that dies on the way is a 502."""
    router.engine.plays("Hel", router.cut)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.responses.create(model="m", input="Hi")
    assert caught.value.status_code == 502


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_stops_the_engine(router, http, stream):
    """A client that goes away stops the engine's work, streaming or not."""
    router.engine.plays("Hel", asyncio.Event())
    body = {"model": "m", "input": "Hi", "stream": stream}
    asking = asyncio.create_task(http.post("/v1/responses", json=body))
    await router.until(lambda: router.engine.running == 1)
    asking.cancel()
    await router.until(lambda: router.engine.aborted == 1 and router.engine.running == 0)


async def test_a_cut_reply_is_incomplete(router, client):
    """A reply that reaches its limit says so, and can be continued."""
    router.engine.says("On", finish="length")
    made = await client.responses.create(model="m", input="Hi", max_output_tokens=1)
    assert made.status == "incomplete" and made.incomplete_details.reason == "max_output_tokens"
    assert router.engine.asked[0]["max_tokens"] == 1
    again = await client.responses.create(model="m", input="Go on", previous_response_id=made.id)
    assert again.status == "completed"


async def test_a_repeated_key_returns_the_first_response(router, http):
    """The same idempotency key runs one turn, and both answers are the same response."""
    body = {"model": "m", "input": "Hi"}
    answers = [
        await http.post("/v1/responses", json=body, headers={"Idempotency-Key": "k"})
        for _ in range(2)
    ]
    first, second = (answer.json() for answer in answers)
    assert first["id"] == second["id"] and first["output"] == second["output"]
    assert len(router.engine.asked) == 1


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"input": "x"}', 400, "model"),
        (b'{"model": "nope", "input": "x"}', 404, "model"),
        (b'{"model": "m"}', 400, "input"),
        (b'{"model": "m", "input": "x", "background": 1}', 400, "background"),
        (b'{"model": "m", "input": "x", "background": true, "store": false}', 400, "store"),
        (b'{"model": "m", "input": "x", "stream_id": "s"}', 400, "stream_id"),
        (
            b'{"model": "m", "input": "x", "previous_response_id": "resp_no"}',
            404,
            "previous_response_id",
        ),
    ],
)
async def test_bad_requests_are_told_in_openais_shape(router, http, content, status, param):
    """Each gets one sentence and the field's name, and the next request is served."""
    answer = await http.post("/v1/responses", content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param and error["message"] and error["code"]
    assert (await http.post("/v1/responses", json={"model": "m", "input": "x"})).status_code == 200


async def test_tenants_do_not_see_each_others_responses(start):
    """With keys, a response exists for its own tenant only."""
    router = await start(auth={"api_keys": "a=one,b=two"})
    async with httpx2.AsyncClient(base_url=router.url) as http:
        body = {"model": "m", "input": "x"}
        assert (await http.post("/v1/responses", json=body)).status_code == 401
        mine, other = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        made = (await http.post("/v1/responses", json=body, headers=mine)).json()
        assert (await http.get(f"/v1/responses/{made['id']}", headers=mine)).status_code == 200
        assert (await http.get(f"/v1/responses/{made['id']}", headers=other)).status_code == 404
        follow = {**body, "previous_response_id": made["id"]}
        answer = await http.post("/v1/responses", json=follow, headers=other)
        assert answer.status_code == 404
