"""Chat completions through the router: what passes, where it goes, what happens on failure."""

import asyncio
from typing import Any

import msgspec
import pytest
from openai import AsyncOpenAI

from scripted_engine import STOP

CHAT = "/v1/chat/completions"


def ask(*texts: str, **fields: Any) -> dict[str, Any]:
    """A chat request whose messages alternate between user and assistant."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return {"model": "m", "messages": messages, **fields}


async def test_an_answer_passes_and_carries_the_headers_of_its_turn(router, http):
    """The engine's JSON arrives as it was, with session, turn, replica and reason beside it."""
    router.engine.says("hello")
    reply = await http.post(router.url + CHAT, json=ask("hi"))
    assert reply.json()["choices"][0]["message"]["content"] == "hello"
    assert reply.headers["x-sessile-replica"] == "one"
    assert reply.headers["x-sessile-reason"] == "new"
    assert reply.headers["x-sessile-session"].startswith("ses_")
    assert reply.headers["x-sessile-turn"].startswith("turn_")


async def test_the_receipt_says_what_the_engine_reported(router, http):
    """The receipt of a turn holds the decision and the engine's own token counts."""
    reply = await http.post(router.url + CHAT, json=ask("hi"))
    turn = reply.headers["x-sessile-turn"]
    receipt = (await http.get(f"{router.url}/sessile/v1/turns/{turn}/receipt")).json()
    assert (receipt["replica"], receipt["reason"], receipt["outcome"]) == ("one", "new", "ok")
    assert (receipt["prompt_tokens"], receipt["cached_tokens"]) == (1, 1)
    assert receipt["predicted_cached_tokens"] == 0


async def test_unknown_fields_reach_the_engine_untouched(router, http):
    """What the router does not know it does not touch, nor the order or form of the rest."""
    fields = {"tools": [{"type": "function", "function": {"name": "f"}}], "min_p": 0.25,
              "response_format": {"type": "json_object"}, "logprobs": True}  # fmt: skip
    await http.post(router.url + CHAT, json=ask("hi", **fields))
    seen = router.engine.asked[0]
    assert {name: seen[name] for name in fields} == fields


@pytest.mark.parametrize("wanted", [True, False])
async def test_usage_reaches_only_the_client_that_asked(router, http, wanted):
    """The router learns the usage of every stream; a client gets the chunk only if it asked."""
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    reply = await http.post(router.url + CHAT, json=ask("hi", stream=True, **options))
    assert ('"usage"' in reply.text) is wanted
    assert reply.text.endswith("data: [DONE]\n\n")
    turn = reply.headers["x-sessile-turn"]
    receipt = (await http.get(f"{router.url}/sessile/v1/turns/{turn}/receipt")).json()
    assert receipt["completion_tokens"] == 2


async def test_a_named_session_stays_at_its_replica(start, http):
    """Whatever the load says, the second turn goes where the first one went."""
    router = await start(engines=2)
    seen = set()
    for _ in range(6):
        reply = await http.post(router.url + CHAT, json=ask("hi"), headers={"x-session-id": "s"})
        seen.add(reply.headers["x-sessile-replica"])
    assert len(seen) == 1
    assert reply.headers["x-sessile-reason"] == "bound"


async def test_a_conversation_without_any_id_continues_by_its_messages(start, http):
    """A request that extends a known request and its reply is the same session, streamed or not."""
    router = await start(engines=2)
    for stream in (False, True):
        for engine in router.engines.values():
            engine.says("the ", "reply")
            engine.says("more")
        first = await http.post(router.url + CHAT, json=ask(f"hi {stream}", stream=stream))
        second = await http.post(
            router.url + CHAT, json=ask(f"hi {stream}", "the reply", "go on", stream=stream)
        )
        assert second.headers["x-sessile-session"] == first.headers["x-sessile-session"]
        assert second.headers["x-sessile-replica"] == first.headers["x-sessile-replica"]
        assert second.headers["x-sessile-reason"] == "bound"


async def test_the_same_opening_is_not_the_same_session(router, http):
    """Two clients that begin alike, with the same system prompt and question, are two sessions."""
    sessions = set()
    for _ in range(2):
        reply = await http.post(router.url + CHAT, json=ask("hi"))
        sessions.add(reply.headers["x-sessile-session"])
    assert len(sessions) == 2


async def test_round_robin_binds_nothing(start, http):
    """The policy to measure against takes the replicas in turn, whatever session it is."""
    router = await start(engines=2, router={"policy": "round_robin"})
    seen = []
    for _ in range(4):
        reply = await http.post(router.url + CHAT, json=ask("hi"), headers={"x-session-id": "s"})
        seen.append(reply.headers["x-sessile-replica"])
    assert seen[0] != seen[1] and seen[:2] == seen[2:]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_replica_that_fails_before_the_first_token_is_replaced(start, http, stream):
    """A turn whose replica refuses or breaks off is answered by another, and the session moves."""
    router = await start(engines=2)
    headers = {"x-session-id": "s"}
    first = await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    home = first.headers["x-sessile-replica"]
    router.engines[home].plays(router.cut) if stream else router.engines[home].refuses(503, "no")
    second = await http.post(router.url + CHAT, json=ask("hi", stream=stream), headers=headers)
    assert second.status_code == 200
    assert second.headers["x-sessile-replica"] != home
    assert second.headers["x-sessile-reason"] == "failover"
    third = await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    assert third.headers["x-sessile-replica"] == second.headers["x-sessile-replica"]
    assert third.headers["x-sessile-reason"] == "bound"


async def test_when_every_replica_fails_the_error_is_the_replica_s(start, http):
    """Two failures are enough: the client is told, in OpenAI's shape."""
    router = await start(engines=2)
    for engine in router.engines.values():
        engine.refuses(503, "no")
    reply = await http.post(router.url + CHAT, json=ask("hi"))
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "replica_refused"


async def test_a_replica_lost_in_the_middle_of_a_stream_is_told_in_the_stream(router, http):
    """After the first token nothing is repeated: the stream ends with an error event."""
    router.engine.plays("a", router.cut)
    reply = await http.post(router.url + CHAT, json=ask("hi", stream=True))
    last = reply.text.strip().split("\n\n")[-1]
    assert msgspec.json.decode(last.removeprefix("data: "))["error"]["code"] == "stream_broken"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_stops_the_engine(router, stream):
    """The engine's request ends when its client goes, before or after the first token."""
    router.engine.plays(*(["a"] if stream else []), asyncio.Event())
    async with AsyncOpenAI(base_url=router.url + "/v1", api_key="-", max_retries=0) as client:
        asking = asyncio.create_task(
            client.chat.completions.create(**ask("hi"), stream=stream)  # type: ignore[call-overload]
        )
        await router.until(lambda: router.engine.running == 1)
        if stream:
            await asking
        asking.cancel()
    await router.until(lambda: router.engine.aborted == 1)
    await router.until(lambda: all(r.in_flight == 0 for r in router.app.pool))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_goes_on_without_a_client_that_has_said_so(router, http, stream):
    """With `detach` the engine runs on, its session knows the reply, and who asks again with the
    same key is given the answer."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", STOP)
    key = {"idempotency-key": "k"}
    asking = asyncio.create_task(
        http.post(
            router.url + CHAT,
            json=ask("hi", stream=stream),
            headers={"X-Sessile-On-Disconnect": "detach", **key},
        )
    )
    await router.until(lambda: router.engine.running == 1)
    asking.cancel()
    await asyncio.sleep(0.2)  # longer than a hang-up takes to be seen
    assert router.engine.running == 1
    go.set()
    again = await http.post(router.url + CHAT, json=ask("hi", stream=stream), headers=key)
    assert ("lo" if stream else "Hello") in again.text and len(router.engine.asked) == 1
    turn = again.headers["x-sessile-turn"]
    receipt = (await http.get(f"{router.url}/sessile/v1/turns/{turn}/receipt")).json()
    assert receipt["outcome"] == "ok" and receipt["completion_tokens"] is not None
    await http.post(router.url + CHAT, json=ask("hi", "Hello", "and?"))
    told = (await http.get(f"{router.url}/sessile/v1/sessions/{receipt['session']}")).json()
    assert told["turns"] == 2


async def test_a_wish_about_hanging_up_that_is_none_is_refused(router, http):
    """Before anything runs."""
    headers = {"X-Sessile-On-Disconnect": "keep"}
    reply = await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "x-sessile-on-disconnect"
    assert router.engine.asked == []


async def test_a_draining_replica_takes_nothing_more_and_its_sessions_move(start, http):
    """After a drain the session goes on elsewhere; after a resume it need not come back."""
    router = await start(engines=2)
    headers = {"x-session-id": "s"}
    first = await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    home = first.headers["x-sessile-replica"]
    await http.post(f"{router.url}/sessile/v1/replicas/{home}/drain")
    second = await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    assert second.headers["x-sessile-replica"] != home
    # Whether it was moved before its turn, or by it.
    assert second.headers["x-sessile-reason"] in ("moved", "replica_gone")
    await http.post(f"{router.url}/sessile/v1/replicas/{home}/resume")
    third = await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    assert third.headers["x-sessile-reason"] == "bound"


async def test_a_repeated_idempotency_key_gives_the_first_answer(router, http):
    """The engine runs the turn once; a repeat, also one at the same time, is given its answer."""
    gate = asyncio.Event()
    router.engine.plays("once", gate)
    headers = {"idempotency-key": "k1"}
    asked = [
        asyncio.create_task(http.post(router.url + CHAT, json=ask("hi"), headers=headers))
        for _ in range(2)
    ]
    await router.until(lambda: router.engine.running == 1)
    gate.set()
    one, two = await asyncio.gather(*asked)
    three = await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    assert one.json() == two.json() == three.json()
    assert len({r.headers["x-sessile-turn"] for r in (one, two, three)}) == 1
    assert len(router.engine.asked) == 1


async def test_a_closed_session_takes_no_turn(router, http):
    """A turn on a closed session is refused with 410, and the engine never sees it."""
    headers = {"x-session-id": "s"}
    await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    await http.post(f"{router.url}/sessile/v1/sessions/s/close")
    reply = await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    assert reply.status_code == 410
    assert reply.json()["error"]["code"] == "session_expired"
    assert len(router.engine.asked) == 1


BAD = [
    (b"{", 400, "not JSON"),
    (b"[]", 400, "JSON object"),
    (b"\xff\xfe", 400, "not JSON"),
    (b'{"messages":[{"role":"user","content":"x"}]}', 400, "model"),
    (b'{"model":"","messages":[{"role":"user","content":"x"}]}', 400, "model"),
    (b'{"model":"nope","messages":[{"role":"user","content":"x"}]}', 404, "nope"),
    (b'{"model":"m","messages":"x"}', 400, "messages"),
    (b'{"model":"m","messages":[]}', 400, "messages"),
    (b'{"model":"m","messages":[1]}', 400, "messages[0]"),
    (b'{"model":"m","messages":[{"role":"boss","content":"x"}]}', 400, "'boss'"),
    (b'{"model":"m","messages":[{"role":"user","content":1}]}', 400, "messages[0].content"),
    (b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":"yes"}', 400, "stream"),
    (b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"stream_options":1}',
     400, "stream_options"),
    (b'{"model":"m","messages":[{"role":"user","content":"x"}],"session_id":7}', 400, "session_id"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "said"), BAD)
async def test_bad_bodies_get_one_clear_sentence(router, http, body, status, said):
    """Whatever is wrong with a body is said in OpenAI's shape, and the engine never sees it."""
    reply = await http.post(router.url + CHAT, content=body)
    error = reply.json()["error"]
    assert reply.status_code == status
    assert said in error["message"] and "Traceback" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert not router.engine.asked
    assert (await http.get(router.url + "/health")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("x-session-id", "x" * 20_000)],
        [("x-session-id", "a\tb")],
        [("x-session-id", "")],
        [("x-session-id", "a"), ("x-session-id", "b")],
        [("idempotency-key", "k" * 300)],
    ],
)
async def test_bad_headers_are_refused(router, http, headers):
    """A session id that cannot be one, or a header with two values, is an error of the request."""
    reply = await http.post(router.url + CHAT, json=ask("hi"), headers=headers)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_request"


async def test_a_body_over_the_limit_is_refused(start, http):
    """413 in OpenAI's shape, whether its length was announced or not."""
    router = await start(server={"max_body_bytes": 10_000})
    big = ask("x" * 20_000)

    async def pieces():
        data = msgspec.json.encode(big)
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    for content in (msgspec.json.encode(big), pieces()):
        reply = await http.post(router.url + CHAT, content=content)
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "body_too_large"


async def test_an_engine_s_refusal_passes_through(router, http):
    """A prompt that is too long is the engine's to judge; its answer is not touched."""
    router.engine.refuses(400, "the prompt exceeds the context length")
    reply = await http.post(router.url + CHAT, json=ask("hi"))
    assert reply.status_code == 400
    assert reply.json() == {"error": {"message": "the prompt exceeds the context length"}}


async def test_keys_separate_tenants(start, http):
    """No key and a wrong one are refused; one tenant's session does not exist for another."""
    router = await start(auth={"api_keys": "right,team=other"})
    headers = {"x-session-id": "s"}
    for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right"}):
        reply = await http.post(router.url + CHAT, json=ask("hi"), headers=wrong)
        assert reply.status_code == 401
    mine = {**headers, "authorization": "Bearer right"}
    turn = (await http.post(router.url + CHAT, json=ask("hi"), headers=mine)).headers
    theirs = {"authorization": "Bearer other"}
    for path in ("sessions/s", f"turns/{turn['x-sessile-turn']}/receipt"):
        assert (await http.get(f"{router.url}/sessile/v1/{path}", headers=mine)).status_code == 200
        reply = await http.get(f"{router.url}/sessile/v1/{path}", headers=theirs)
        assert reply.status_code == 404


async def test_metrics_tell_of_decisions_tokens_and_the_store(router, http):
    """What an operator graphs is there after a turn."""
    await http.post(router.url + CHAT, json=ask("hi"))
    page = (await http.get(router.url + "/metrics")).text
    assert 'sessile_decisions_total{policy="session",reason="new"} 1.0' in page
    assert 'sessile_turns_total{model="m",outcome="ok"} 1.0' in page
    assert 'sessile_cached_tokens_total{kind="actual",replica="one"} 1.0' in page
    assert "sessile_store_available 1.0" in page
    assert 'sessile_in_flight{replica="one"} 0.0' in page
