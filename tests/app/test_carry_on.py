"""A replica that dies in the middle of its answer: another goes on, in the same stream."""

from collections import deque
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from sessile.lab.fake_replica import Fault, serve_fake
from sessile.relay import events
from sessile.router.replica import ReplicaSpec
from sessile.sessions.identity import SessionClaims
from sessile.turn_request import TurnRequest

CHAT = "/v1/chat/completions"
SAID = "the rain in Spain  stays\nmainly in the plain"
WHOLE = f"echo: {SAID}"


def ask(text: str = SAID, **fields: Any) -> dict[str, Any]:
    """A streamed chat request."""
    messages = [{"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "stream": True, **fields}


@pytest.fixture
async def site(start):
    """A router before two replicas that speak as SGLang."""
    async with AsyncExitStack() as stack:
        router = await start()
        await router.app.pool.remove("one")
        faults: deque[Fault] = deque()
        fakes = [
            await stack.enter_async_context(serve_fake(model="m", faults=faults)) for _ in range(2)
        ]
        for name, fake in zip(("left", "right"), fakes, strict=True):
            router.app.pool.add(ReplicaSpec(id=name, engine="sglang", url=fake.url))
        await router.until(lambda: len(router.app.pool.candidates("m")) == 2)
        router.fakes, router.faults = fakes, faults
        yield router
        await router.until(lambda: not any(fake.running for fake in fakes))
        assert all(replica.in_flight == 0 for replica in router.app.pool)


def lose_once(site: Any, **fault: Any) -> None:
    """Whichever replica gets the next request, that one fails; the other goes on well."""
    site.faults.append(Fault(**(fault or {"drop_after": 4})))


def bodies_of(reply: httpx2.Response) -> list[dict[str, Any]]:
    return list(events(reply.content))


def text_of(bodies: list[dict[str, Any]]) -> str:
    parts = [c.get("delta", c) for body in bodies for c in body.get("choices", ())]
    return "".join(part.get("content") or part.get("text") or "" for part in parts)


async def receipt_of(site: Any, http: Any, reply: Any) -> dict[str, Any]:
    turn = reply.headers["x-sessile-turn"]
    return (await http.get(f"{site.url}/sessile/v1/turns/{turn}/receipt")).json()


@pytest.mark.parametrize("fault", [{"drop_after": 4}, {"error_after": 4}])
async def test_a_chat_goes_on_at_another_replica(site, http, fault):
    """One stream with one name, no word lost or repeated, the counts of the whole, a comment where
    it went on, and a receipt that tells of it."""
    lose_once(site, **fault)
    options = {"stream_options": {"include_usage": True}}
    reply = await http.post(site.url + CHAT, json=ask(**options), headers={"x-session-id": "s"})
    bodies = bodies_of(reply)
    assert text_of(bodies) == WHOLE
    assert len({body["id"] for body in bodies}) == 1
    finishes = [c["finish_reason"] for b in bodies for c in b["choices"] if c["finish_reason"]]
    assert finishes == ["stop"]
    assert reply.text.count(": continued on replica=") == 1
    assert reply.text.endswith("data: [DONE]\n\n") and "error" not in reply.text
    (usage,) = [body["usage"] for body in bodies if body.get("usage")]
    lost = site.fakes[("left", "right").index(reply.headers["x-sessile-replica"])]
    assert usage["prompt_tokens"] == lost.seen[0].prompt_tokens
    assert usage["completion_tokens"] == len(WHOLE.split(" "))
    receipt = await receipt_of(site, http, reply)
    assert (receipt["outcome"], receipt["continued"], receipt["attempts"]) == ("ok", 1, 2)
    assert receipt["replicas"] == [reply.headers["x-sessile-replica"], receipt["replica"]]
    assert receipt["completion_tokens"] == usage["completion_tokens"]
    page = (await http.get(site.url + "/metrics")).text
    assert 'sessile_continued_total{model="m"} 1.0' in page


async def test_the_session_goes_on_where_its_answer_did(site, http):
    """The binding has moved with the turn."""
    lose_once(site)
    headers = {"x-session-id": "s"}
    first = await http.post(site.url + CHAT, json=ask(), headers=headers)
    receipt = await receipt_of(site, http, first)
    second = await http.post(site.url + CHAT, json=ask(), headers=headers)
    assert second.headers["x-sessile-replica"] == receipt["replica"]


@pytest.mark.parametrize("limit", [3, 4, 5, 6])
async def test_the_limit_of_tokens_holds_over_both(site, http, limit):
    """Cut at the fourth of so many tokens: as many as were asked for, and the reason is told."""
    lose_once(site, drop_after=4)
    options = {"stream_options": {"include_usage": True}}
    reply = await http.post(site.url + CHAT, json=ask(max_tokens=limit, **options))
    bodies = bodies_of(reply)
    assert text_of(bodies) == " ".join(WHOLE.split(" ")[:limit])
    finishes = [c["finish_reason"] for b in bodies for c in b["choices"] if c["finish_reason"]]
    assert finishes == ["length"]
    (usage,) = [body["usage"] for body in bodies if body.get("usage")]
    assert usage["completion_tokens"] == limit


async def test_a_text_completion_goes_on_after_its_prompt(site, http):
    """The prompt and what was said of the answer make up the new prompt."""
    lose_once(site)
    body = {"model": "m", "prompt": SAID, "stream": True}
    reply = await http.post(site.url + "/v1/completions", json=body)
    assert text_of(bodies_of(reply)) == WHOLE
    assert (await receipt_of(site, http, reply))["continued"] == 1


async def test_a_message_goes_on_for_the_official_client(site):
    """Anthropic's client sees one message, and a ping where it went on."""
    lose_once(site)
    async with (
        AsyncAnthropic(base_url=site.url, api_key="-", max_retries=0) as client,
        client.messages.stream(
            model="m", max_tokens=50, messages=[{"role": "user", "content": SAID}]
        ) as stream,
    ):
        kinds = [event.type async for event in stream]
        message = await stream.get_final_message()
    assert message.content[0].text == WHOLE
    assert message.usage.output_tokens == len(WHOLE.split(" "))
    assert kinds.count("message_stop") == 1 and kinds.count("content_block_start") == 1


async def test_a_response_goes_on_for_the_official_client(site):
    """OpenAI's client sees one item, numbered without a gap, and an event where it went on."""
    async with AsyncOpenAI(base_url=site.url + "/v1", api_key="-", max_retries=0) as client:
        lose_once(site)
        seen = [e async for e in await client.responses.create(model="m", input=SAID, stream=True)]
        lose_once(site)
        async with client.responses.stream(model="m", input=SAID) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_response()
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert [event.type for event in seen].count("response.sessile.continued") == 1
    assert seen[-1].type == "response.completed"
    assert seen[-1].response.output_text == final.output_text == WHOLE
    assert seen[-1].response.usage.output_tokens == len(WHOLE.split(" "))


async def test_what_cannot_go_on_fails_with_one_typed_error(site, http):
    """Log-probabilities would be judged anew: the stream ends with an error that says so."""
    lose_once(site)
    reply = await http.post(site.url + CHAT, json=ask(logprobs=True))
    last = bodies_of(reply)[-1]["error"]
    assert last["code"] == "stream_broken" and "logprobs" in last["message"]
    assert reply.text.count('"error"') == 1 and "[DONE]" not in reply.text
    assert (await receipt_of(site, http, reply))["outcome"] == "stream_broken"


async def test_a_tool_call_under_way_is_not_continued(site, http):
    """Half a call is never repeated nor made up: a typed error."""
    lose_once(site, drop_after=1)
    reply = await http.post(
        site.url + CHAT, json=ask('call f {"a": 1}', tools=[{"type": "function"}])
    )
    assert bodies_of(reply)[-1]["error"]["code"] == "stream_broken"


FORM = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
SEEN = {"role": "user", "content": [{"type": "input_text", "text": SAID}, IMAGE]}
CALL = 'call f {"a": 1}'
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("lost_after", [1, 3])
@pytest.mark.parametrize(
    "fields", [{"input": SAID, "text": {"format": FORM}}, {"input": [SEEN]}], ids=["form", "image"]
)
async def test_a_plain_response_that_cannot_go_on_is_begun_anew(
    site, http, fields, lost_after, store
):
    """Its client has been told nothing: it gets the whole answer, once."""
    lose_once(site, drop_after=lost_after)
    body = {"model": "m", "store": store, **fields}
    made = (await http.post(site.url + "/v1/responses", json=body)).json()
    (message,) = made["output"]
    assert [part["text"] for part in message["content"]] == [WHOLE]
    assert made["usage"]["output_tokens"] == len(WHOLE.split(" "))
    assert sum(len(fake.seen) for fake in site.fakes) == 2


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
async def test_a_call_of_a_plain_response_is_begun_anew(site, http, headers):
    """Half a call was told to nobody, whether the response can be followed by its key or not."""
    lose_once(site, drop_after=1)
    body = {"model": "m", "input": CALL, "tools": [FUNCTION]}
    reply = await http.post(site.url + "/v1/responses", json=body, headers=headers)
    (call,) = reply.json()["output"]
    assert (call["name"], call["arguments"], call["status"]) == ("f", '{"a": 1}', "completed")
    receipt = await receipt_of(site, http, reply)
    assert (receipt["outcome"], receipt["continued"], receipt["attempts"]) == ("ok", 1, 2)


@pytest.mark.parametrize("lost_after", [1, 3])
async def test_a_plain_message_that_cannot_go_on_is_begun_anew(site, http, lost_after):
    """As a response is."""
    lose_once(site, drop_after=lost_after)
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    body = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": SAID}]}
    reply = await http.post(site.url + "/v1/messages", json={**body, "output_config": form})
    assert [block["text"] for block in reply.json()["content"]] == [WHOLE]
    assert reply.json()["usage"]["output_tokens"] == len(WHOLE.split(" "))


async def test_a_streamed_response_that_cannot_go_on_fails(site, http):
    """What its client has heard is not taken back."""
    lose_once(site, drop_after=3)
    body = {"model": "m", "input": SAID, "text": {"format": FORM}, "stream": True}
    reply = await http.post(site.url + "/v1/responses", json=body)
    assert '"stream_broken"' in reply.text and reply.text.count("response.failed") == 2


async def test_a_plain_answer_is_begun_anew_where_engines_cannot_go_on(start, http):
    """It need not go on from a text that nobody has."""
    router = await start(engines=2)
    router.engines["one"].plays("a", router.cut)
    router.engines["two"].plays("a", router.cut)
    made = http.post(router.url + "/v1/responses", json={"model": "m", "input": SAID})
    assert (await made).status_code == 200


async def test_an_engine_that_cannot_go_on_says_so(start, http):
    """A plain OpenAI server takes every last message for a whole one."""
    router = await start(engines=2)
    for engine in router.engines.values():
        engine.plays("a", router.cut)
    reply = await http.post(router.url + CHAT, json=ask())
    assert bodies_of(reply)[-1]["error"]["code"] == "stream_broken"
    assert "cannot go on" in bodies_of(reply)[-1]["error"]["message"]


async def test_a_turn_that_kills_its_replicas_is_given_up(site, http):
    """Each one goes on a little and dies: after three of them the client is told."""
    for fake in site.fakes:
        fake.always = Fault(drop_after=1)
    reply = await http.post(site.url + CHAT, json=ask())
    assert bodies_of(reply)[-1]["error"]["code"] == "stream_broken"
    assert sum(len(fake.seen) for fake in site.fakes) == 4
    assert WHOLE.startswith(text_of(bodies_of(reply)[:-1]))


async def test_a_turn_is_taken_over_from_the_text_that_was_told(site):
    """What another router told of the answer is gone on from, and counted with it."""
    request = TurnRequest(
        tenant="", path=CHAT, model="m", claims=SessionClaims(), document=ask(), stream=True,
        relay_usage=True, told="echo: the rain ",
    )  # fmt: skip
    async with site.app.flow.serve_turn(request) as turn:
        data = b"".join([chunk async for chunk in turn])
    bodies = list(events(data))
    assert "echo: the rain " + text_of(bodies) == WHOLE
    assert bodies[-1]["usage"]["completion_tokens"] == len(WHOLE.split(" "))
    assert turn.receipt.outcome == "ok"


async def test_a_turn_taken_over_may_be_lost_again(site):
    """The text told elsewhere and here are one."""
    lose_once(site, drop_after=2)
    request = TurnRequest(
        tenant="", path=CHAT, model="m", claims=SessionClaims(), document=ask(), stream=True,
        told="echo: the",
    )  # fmt: skip
    async with site.app.flow.serve_turn(request) as turn:
        data = b"".join([chunk async for chunk in turn])
    assert "echo: the" + text_of(list(events(data))) == WHOLE
    assert turn.receipt.continued == 1


async def test_a_turn_taken_over_at_its_limit_has_its_end_only(site):
    """All that was asked for has been told: the finish reason and the counts are missing."""
    request = TurnRequest(
        tenant="", path=CHAT, model="m", claims=SessionClaims(), stream=True, relay_usage=True,
        document=ask(max_tokens=2), told="echo: the",
    )  # fmt: skip
    async with site.app.flow.serve_turn(request) as turn:
        bodies = list(events(b"".join([chunk async for chunk in turn])))
    assert bodies[0]["choices"][0]["finish_reason"] == "length"
    assert bodies[1]["usage"]["completion_tokens"] == 2
    assert not any(fake.seen for fake in site.fakes)


async def test_a_client_that_leaves_after_the_last_event_has_had_all(site, http):
    """Engines may end their stream a moment after they have said that it is over."""
    site.faults.append(Fault(linger_s=60))
    async with http.stream("POST", site.url + CHAT, json=ask()) as reply:
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                break
    await site.until(lambda: not any(fake.running for fake in site.fakes))
    receipt = await receipt_of(site, http, reply)
    assert (receipt["outcome"], receipt["completion_tokens"]) == ("ok", len(WHOLE.split(" ")))
