"""A repeated idempotency key runs nothing twice, at whichever router."""

import asyncio

import pytest
from websockets.asyncio.client import connect

from lane_lines import Lines
from sessile.sessions.store import HeldKey, OnceKey
from sessile.sessions.stream_log import Batch
from stored_responses import ASK, Stream, finish, pair

REUSED = "idempotency_key_reused"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TURNS = [
    ("responses", ASK),
    ("responses", {**ASK, "store": False}),
    ("chat/completions", CHAT),
    ("messages", {**CHAT, "max_tokens": 9}),
]


async def test_a_key_is_one_over_websocket_and_http(start, store, http):
    """The same request is given its response whichever way it comes, and another is refused, while
    the first runs and after."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", finish())
    url, key = f"{two.url}/v1/responses", {"Idempotency-Key": "k"}
    async with connect(one.ws_url) as ws, connect(two.ws_url) as other:
        here, there = Lines(ws), Lines(other)
        await here.ask(idempotency_key="k")
        await here.next("response.output_text.delta")
        for is_done in (False, True):
            refused = await http.post(url, json={**ASK, "input": "Ho"}, headers=key)
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, REUSED)
            told = await there.turn("b", input="Ho", idempotency_key="k")
            assert (told["status"], told["error"]["code"]) == (422, REUSED)
            if not is_done:
                go.set()
                made = (await here.next("response.completed"))["response"]
        again = await there.turn(idempotency_key="k", on_disconnect="detach")
        assert again["response"] == made
    plain = await http.post(url, json={"model": "m", "input": "Hi"}, headers=key)
    assert plain.json() == made and len(one.engine.asked) == 1


@pytest.mark.parametrize(("path", "body"), TURNS)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_repeated_key_gives_the_finished_answer(start, store, http, path, body, stream):
    """At another router, byte for byte, whether or not it was stored."""
    one, two = await pair(start, store)
    one.engine.says("Hello", "there")
    body, key = {**body, "stream": stream}, {"Idempotency-Key": "k"}
    answers = [
        await http.post(f"{router.url}/v1/{path}", json=body, headers=key)
        for router in (one, two, one)
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-sessile-turn"] for answer in answers}) == 1
    assert answers[0].text == answers[1].text == answers[2].text
    assert "Hello" in answers[1].text and "there" in answers[1].text
    assert len(one.engine.asked) == 1


LEASE = {"events": {"lease_s": 1.0}}


@pytest.mark.parametrize(("path", "body"), TURNS)
async def test_a_key_whose_router_is_gone_is_taken_anew(start, http, store, path, body):
    """No log knows its turn, so nobody takes that over: once its lease has run out, the next
    request with the key runs."""
    one, two = await pair(start, store, **LEASE)
    two.engine.says("Hel", "lo")
    await one.app.store.begin_once("default", OnceKey("k"), "turn_gone")
    url, key = f"{two.url}/v1/{path}", {"Idempotency-Key": "k"}
    answer = await http.post(url, json=body, headers=key)
    assert answer.status_code == 200 and "Hel" in answer.text
    assert answer.headers["x-sessile-turn"] != "turn_gone"
    again = await http.post(f"{one.url}/v1/{path}", json=body, headers=key)
    assert again.text == answer.text and len(one.engine.asked) == 1


async def test_a_router_that_has_just_started_takes_such_a_key_at_once(start, http, store):
    """Routers that die soon, one after another, keep no key from its client."""
    one = await start(store=store, **LEASE)
    await one.app.store.begin_once("default", OnceKey("k"), "turn_gone")
    await asyncio.sleep(1.1)
    two = await start(
        beside=one, store=store, events={"lease_s": 60}, sessions={"lock_wait_s": 0.1}
    )
    url, key = f"{two.url}/v1/chat/completions", {"Idempotency-Key": "k"}
    assert (await http.post(url, json=CHAT, headers=key)).status_code == 200


@pytest.mark.parametrize("away", [False, True])
async def test_keys_are_kept_while_their_turns_run(start, http, store, redis_server, away):
    """However many leases that takes; and where Redis stands still for longer than one, their
    router has time to renew them. The turns are not disturbed."""
    one, two = await pair(start, store, events={"lease_s": 3.0})
    go = asyncio.Event()

    def post(router):
        return [
            asyncio.create_task(
                http.post(f"{router.url}/v1/{path}", json=body, headers={"Idempotency-Key": f"{n}"})
            )
            for n, (path, body) in enumerate(TURNS)
        ]

    for _ in TURNS:
        one.engine.plays("Hel", go, "lo", finish())
    first = post(one)
    await one.until(lambda: one.engine.running == len(TURNS))
    if away:
        redis_server.pause()
        await one.until(lambda: not (one.app.store.available or two.app.store.available))
    await asyncio.sleep(4.5)
    if away:
        redis_server.resume()
        await one.until(lambda: one.app.store.available and two.app.store.available)
    again = post(two)
    await asyncio.sleep(4.5)
    assert not any(task.done() for task in [*first, *again])
    go.set()
    told = [answer.text for answer in await asyncio.gather(*first)]
    assert [answer.text for answer in await asyncio.gather(*again)] == told
    assert len(one.engine.asked) == len(TURNS)


@pytest.mark.parametrize(("path", "body"), TURNS)
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_turn_that_ends_while_redis_is_away_is_kept_under_its_key(
    start, http, store, redis_server, path, body, restarted
):
    """Once it is back, empty or not, the answer is there for another try."""
    one, two = await pair(start, store, events={"lease_s": 3.0})
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", finish())
    key = {"Idempotency-Key": "k"}
    first = asyncio.create_task(http.post(f"{one.url}/v1/{path}", json=body, headers=key))
    await one.until(lambda: one.engine.running == 1)
    redis_server.kill() if restarted else redis_server.pause()
    await one.until(lambda: not (one.app.store.available or two.app.store.available))
    go.set()
    told = (await first).text
    await asyncio.sleep(0.5)
    redis_server.start() if restarted else redis_server.resume()
    await one.until(lambda: one.app.store.available and two.app.store.available)
    if restarted:
        await asyncio.sleep(2.0)
    again = await http.post(f"{two.url}/v1/{path}", json=body, headers=key)
    assert again.text == told and len(one.engine.asked) == 1


async def test_a_response_that_is_taken_over_is_found_by_its_key(start, http, store):
    """Its router is gone, and the lease of its key with it: the log knows it, and it is not run
    again."""
    one, two = await pair(start, store, **LEASE)
    two.engine.says("Hel", "lo")
    made = await http.post(f"{one.url}/v1/responses", json=ASK, headers={"Idempotency-Key": "k"})
    turn = made.headers["x-sessile-turn"]
    kept, log = one.app.store, one.app.store.events
    record = (await log.look("default", turn)).accept
    await kept.end_once(HeldKey("default", "k", turn), None)
    await log.forget("default", turn)
    await kept.delete_turn("default", turn)
    await kept.begin_once("default", OnceKey("k"), turn)
    await log.append([Batch(tenant="default", turn=turn, fence=1, first=0, accept=record)])
    await asyncio.sleep(1.1)
    answers = [
        await http.post(f"{router.url}/v1/responses", json=ASK, headers={"Idempotency-Key": "k"})
        for router in (two, one)
    ]
    assert {answer.headers["x-sessile-turn"] for answer in answers} == {turn}
    assert answers[0].text == answers[1].text and "response.completed" in answers[0].text
    assert len(one.engine.asked) == 2


@pytest.mark.parametrize("stored", [True, False])
async def test_a_failed_try_frees_its_key(router, http, stored):
    """Refused, failed in the middle, hung up on: the next try with the key runs."""
    body, key = {**ASK, "store": stored}, {"Idempotency-Key": "k"}
    url = f"{router.url}/v1/responses"
    router.engine.refuses(400, "maximum context length is 10")
    assert (await http.post(url, json=body, headers=key)).status_code == 400
    go = asyncio.Event()
    router.engine.plays("Hel", go, {"error": {"message": "no", "code": 400}})
    async with http.stream("POST", url, json=body, headers=key) as answer:
        stream = Stream(answer)
        await stream.until("response.output_text.delta")
        go.set()
        assert (await stream.rest())[-1]["type"] == "response.failed"
    router.engine.plays("Hel", asyncio.Event())
    async with http.stream("POST", url, json=body, headers=key) as answer:
        await Stream(answer).until("response.output_text.delta")
    await router.until(lambda: router.engine.aborted == 1)
    router.engine.says("Hello")
    assert "Hello" in (await http.post(url, json=body, headers=key)).text
    assert len(router.engine.asked) == 4


@pytest.mark.parametrize(
    ("path", "body", "other"),
    [
        ("responses", ASK, {**ASK, "input": "Ho"}),
        ("responses", {**ASK, "store": False}, {**ASK, "store": False, "temperature": 0}),
        ("chat/completions", CHAT, {**CHAT, "temperature": 0}),
        ("messages", {**CHAT, "max_tokens": 9}, {**CHAT, "max_tokens": 8}),
    ],
)
async def test_a_key_that_was_used_for_something_else(start, store, http, path, body, other):
    """Is refused at whichever router, while the first runs and after; the order of the fields, and
    whether it is streamed, are no difference."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", finish())
    key = {"Idempotency-Key": "k"}
    first = asyncio.create_task(http.post(f"{one.url}/v1/{path}", json=body, headers=key))
    await one.until(lambda: one.engine.running == 1)
    for is_done in (False, True):
        refused = await http.post(f"{two.url}/v1/{path}", json=other, headers=key)
        assert refused.status_code == 422 and first.done() is is_done
        assert "used for another request" in refused.json()["error"]["message"]
        go.set()
        told = (await first).text
    again = dict(reversed(body.items()))
    assert (await http.post(f"{two.url}/v1/{path}", json=again, headers=key)).text == told
    elsewhere = {"model": "m", "prompt": "Hi"}
    refused = await http.post(f"{one.url}/v1/completions", json=elsewhere, headers=key)
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    assert len(one.engine.asked) == 1
