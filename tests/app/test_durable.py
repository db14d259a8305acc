"""Responses that outlive their store and their router, over HTTP."""

import asyncio
import json
from collections import deque
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.asyncio.client import connect

from sessile.lab.fake_replica import Fault, serve_fake
from sessile.router.replica import ReplicaSpec
from sessile.sessions.record import TurnRecord
from stored_responses import (
    ASK,
    TERMINAL,
    Stream,
    begun,
    ended,
    finish,
    numbers,
    object_of,
    pair,
    replayed,
    text,
)

# -- the store is gone


async def test_redis_gone_in_the_middle_is_not_noticed(start, store, http, redis_server):
    """Who listens misses nothing; once it is back, empty, the whole sequence is there again."""
    one, two = await pair(start, store)
    gates = [asyncio.Event(), asyncio.Event()]
    one.engine.plays("a", gates[0], "b", gates[1], "c", finish())
    async with http.stream("POST", f"{one.url}/v1/responses", json=ASK) as answer:
        live = Stream(answer)
        created = await live.until("response.created")
        response = created["response"]["id"]
        await asyncio.sleep(0.05)
        redis_server.kill()
        await one.until(lambda: not one.app.store.available and not two.app.store.available)
        gates[0].set()
        while text(live.events) != "ab":
            await live.next()
        redis_server.start()
        await one.until(lambda: one.app.store.available and two.app.store.available)
        gates[1].set()
        events = await live.rest()
    assert text(events) == "abc" and numbers(events) == list(range(len(events)))
    await one.until(lambda: one.app.responses.turns.writer.find("default", response) is None)
    assert await replayed(http, two, response) == events


async def test_what_was_not_kept_is_said(start, store, http, redis_server):
    """More than memory holds while Redis is gone: a marker names the events that are missing."""
    one, two = await pair(start, store)
    gates = [asyncio.Event(), asyncio.Event()]
    pieces = [f"{n} " for n in range(50)]
    one.engine.plays("a ", gates[0], *pieces, gates[1], "z", finish())
    async with http.stream("POST", f"{one.url}/v1/responses", json=ASK) as answer:
        live = Stream(answer)
        response = (await live.until("response.created"))["response"]["id"]
        await live.until("response.output_text.delta")
        await asyncio.sleep(0.1)
        redis_server.pause()
        turn = one.app.responses.turns.writer.find("default", response)
        turn.most_bytes = 3000
        gates[0].set()
        while not text(live.events).endswith("49 "):
            await live.next()
        await one.until(lambda: not one.app.store.available)
        redis_server.resume()
        turn.most_bytes = 2**20
        await one.until(lambda: one.app.store.available and two.app.store.available)
        gates[1].set()
        events = await live.rest()
    await one.until(lambda: one.app.responses.turns.writer.find("default", response) is None)
    again = await replayed(http, two, response)
    gaps = [event for event in again if event["type"] == "sessile.gap"]
    missing = {n for gap in gaps for n in range(gap["first"], gap["last"] + 1)}
    assert len(missing) > 10
    assert [event for event in again if event not in gaps] == [
        event for event in events if event["sequence_number"] not in missing
    ]
    assert one.app.responses.turns.writer.lost_events == len(missing)


async def test_a_response_in_the_background_without_redis(start, store, http, redis_server):
    """It runs, and its own router knows of it."""
    one = await start(store=store)
    redis_server.kill()
    await one.until(lambda: not one.app.store.available)
    one.engine.says("Hel", "lo")
    made = await begun(http, one)
    events = await replayed(http, one, made["id"])
    assert text(events) == "Hello" and events[-1]["type"] == "response.completed"


# -- the router is gone


SOON = {"lease_s": 0.5}


async def orphaned(router: Any, response: str) -> None:
    """The router does no more for the turn, as if it had been killed."""
    turns = router.app.responses.turns
    live = turns.writer.find("default", response)
    await router.until(lambda: not live.dirty)
    turns.writer.forget(live)  # from here on it writes and renews nothing
    await router.app.store.events.release("default", response, live.fence)


async def test_a_turn_that_told_no_output_is_run_by_another_router(start, store, http):
    """Under the same id, behind the events that were told; the client is told the rest there."""
    one, two = await pair(start, store, events=SOON)
    one.engine.plays(asyncio.Event())
    made = await begun(http, one)
    await one.until(lambda: one.engine.running == 1)
    one.engine.says("Hel", "lo")
    await orphaned(one, made["id"])
    events = await replayed(http, two, made["id"])
    assert numbers(events) == list(range(len(events))) and text(events) == "Hello"
    assert [e["type"] for e in events[:3]] == [
        "response.created", "response.queued", "response.in_progress",
    ]  # fmt: skip
    assert events[-1]["response"]["id"] == made["id"]
    assert (await object_of(http, two, made["id"]))["status"] == "completed"


async def test_a_turn_that_told_output_fails_once(start, store, http):
    """What was told stays, a typed error ends it, and the first router's word counts no more."""
    one, two = await pair(start, store, events=SOON)
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", finish())
    made = await begun(http, one)
    events = asyncio.create_task(replayed(http, two, made["id"]))
    await one.until(lambda: one.engine.running == 1)
    await asyncio.sleep(0.1)
    await orphaned(one, made["id"])
    told = await events
    go.set()
    assert text(told) == "Hel" and numbers(told) == list(range(len(told)))
    failed = told[-1]["response"]
    assert told[-1]["type"] == "response.failed" and failed["error"]["type"] == "router_lost"
    assert failed["output"][0]["content"][0]["text"] == "Hel"
    await one.until(lambda: one.engine.running == 0)
    assert await replayed(http, two, made["id"]) == told


@pytest.fixture
async def talkers(request, start, store):
    """Two routers before two replicas that take their time and can go on from a text."""
    pause_s = getattr(request, "param", 0.03)
    one, two = await pair(start, store, events=SOON)
    async with AsyncExitStack() as stack:
        faults = deque([Fault(pause_s=pause_s), Fault(pause_s=pause_s)])
        fakes = [
            await stack.enter_async_context(serve_fake(model="m", faults=faults)) for _ in range(2)
        ]
        for router in (one, two):
            await router.app.pool.remove("one")
            for name, fake in zip(("left", "right"), fakes, strict=True):
                router.app.pool.add(ReplicaSpec(id=name, engine="sglang", url=fake.url))
            await router.until(lambda r=router: len(r.app.pool.candidates("m")) == 2)
        yield one, two
        await one.until(lambda: not any(fake.running for fake in fakes))


@pytest.mark.parametrize("fields", [{}, {"max_output_tokens": 12}])
async def test_a_text_goes_on_at_another_router(talkers, http, fields):
    """From what was told, in the same sequence: no word is lost or told twice, an event says where
    it went on, the counts are those of the whole, and the receipt tells of it."""
    one, two = talkers
    said = " ".join(f"w{n}" for n in range(20))
    made = await begun(http, one, input=said, **fields)
    live = one.app.responses.turns.writer.find("default", made["id"])
    await one.until(lambda: live.next >= 8)
    await one.app.responses.aclose()
    events = await replayed(http, two, made["id"])
    assert numbers(events) == list(range(len(events)))
    words = f"echo: {said}".split(" ")[: fields.get("max_output_tokens")]
    assert text(events) == " ".join(words)
    kinds = [event["type"] for event in events]
    assert kinds.count("response.sessile.continued") == 1
    assert kinds.count("response.output_item.added") == kinds.count("response.created") == 1
    whole = events[-1]["response"]
    assert whole["status"] == ("incomplete" if fields else "completed")
    assert whole["output"][0]["content"][0]["text"] == text(events)
    assert whole["usage"]["output_tokens"] == len(words)
    assert await object_of(http, two, made["id"]) == whole
    receipt = (await http.get(f"{two.url}/sessile/v1/turns/{made['id']}/receipt")).json()
    assert receipt["continued"] == 1 and receipt["outcome"] == "ok"


@pytest.mark.parametrize("talkers", [0.8], indirect=True)
async def test_a_router_that_loses_a_turn_while_it_lives_tells_what_the_other_tells(talkers, http):
    """Its own run of the engine ends once the log tells it so, which is before the next token here,
    and its client is told the rest without a seam."""
    one, two = talkers
    said = " ".join(f"w{n}" for n in range(6))
    body = {**ASK, "input": said}
    async with http.stream("POST", f"{one.url}/v1/responses", json=body) as answer:
        live = Stream(answer)
        response = (await live.until("response.created"))["response"]["id"]
        while len(text(live.events).split(" ")) < 3:
            await live.next()
        mine = one.app.responses.turns.writer.find("default", response)
        turns = two.app.responses.turns
        while not turns.taken:  # it may renew its lease, or the other find it by itself
            await one.app.store.events.release("default", response, mine.fence)
            await turns.adopt("default", response, -1)
        events = await live.rest()
    assert mine.stopped == "lost" and numbers(events) == list(range(len(events)))
    assert text(events) == f"echo: {said}"
    kinds = [event["type"] for event in events]
    assert kinds.count("response.sessile.continued") == 1
    assert [kind for kind in kinds if kind in TERMINAL] == ["response.completed"]
    assert await replayed(http, two, response) == events


@pytest.mark.parametrize("talkers", [0.3], indirect=True)
async def test_a_websocket_whose_router_loses_the_turn_is_told_the_rest(talkers, http):
    """Nothing that counts no more, and no event twice, though events are told there without being
    waited for."""
    one, two = talkers
    said = " ".join(f"w{n}" for n in range(8))
    async with connect(one.ws_url) as socket:
        await socket.send(json.dumps({"type": "response.create", "model": "m", "input": said}))
        events = []
        while len(text(events).split(" ")) < 3:
            events.append(json.loads(await socket.recv()))
        response = events[0]["response"]["id"]
        mine = one.app.responses.turns.writer.find("default", response)
        turns = two.app.responses.turns
        while not turns.taken:  # it may renew its lease, or the other find it by itself
            await one.app.store.events.release("default", response, mine.fence)
            await turns.adopt("default", response, -1)
        while events[-1]["type"] not in TERMINAL:
            events.append(json.loads(await socket.recv()))
    assert mine.stopped == "lost" and numbers(events) == list(range(len(events)))
    assert text(events) == f"echo: {said}"
    assert await replayed(http, two, response) == events


async def test_a_turn_with_tools_of_others_is_not_run_again(start, store, http):
    """Its first router may have called them, and only that one had their keys: it fails."""
    one, two = await pair(start, store, events=SOON)
    one.engine.plays(asyncio.Event())
    server = {"type": "mcp", "server_label": "s", "server_url": "http://127.0.0.1:9/mcp",
              "authorization": "secret", "require_approval": "never"}  # fmt: skip
    made = await begun(http, one, tools=[server])
    await one.until(lambda: one.engine.running == 1)
    assert b"secret" not in one.app.responses.turns.writer.find("default", made["id"]).accept.record
    await orphaned(one, made["id"])
    failed = (await replayed(http, two, made["id"]))[-1]
    assert failed["response"]["error"]["type"] == "router_lost"
    assert len(one.engine.asked) == 1


async def test_a_turn_that_was_stored_only_lacks_its_last_word(start, store, http):
    """The router died between storing the response and telling so: the response is as stored."""
    one, two = await pair(start, store, events=SOON)
    one.engine.plays("Hel", asyncio.Event())
    made = await begun(http, one)
    await one.until(lambda: one.engine.running == 1)
    await asyncio.sleep(0.1)
    stored = {**made, "status": "completed", "output": [{"type": "message", "status": "completed"}]}
    await orphaned(one, made["id"])
    one.app.store.put_turn(_record(made["id"], stored))
    await asyncio.sleep(0.05)
    events = await replayed(http, two, made["id"])
    assert events[-1]["type"] == "response.completed" and events[-1]["response"] == stored
    assert events[-2]["type"] == "sessile.gap"
    assert numbers(events) == list(range(len(events)))


async def test_a_client_that_has_seen_more_than_was_kept(start, store, http):
    """Its router was killed before it wrote what it had told: the last word is told all the same,
    and another client is told of what is missing, if anything is."""
    one, two = await pair(start, store, events=SOON)
    one.engine.plays("Hel", asyncio.Event())
    made = await begun(http, one)
    await one.until(lambda: one.engine.running == 1)
    await asyncio.sleep(0.1)
    await orphaned(one, made["id"])
    mine = await replayed(http, two, made["id"], after=20)
    assert [event["type"] for event in mine] == ["response.failed"]
    all_of_it = await replayed(http, two, made["id"])
    assert all_of_it[-1] == mine[0]
    assert [e["type"] for e in all_of_it].count("response.failed") == 1
    again = await replayed(http, two, made["id"], after=20)
    assert again == mine


async def test_a_router_that_stops_leaves_its_turns_to_others(start, store, http):
    """Without waiting for the lease; the next one runs them anew where nothing was told."""
    one, two = await pair(start, store, events=SOON)
    one.engine.plays(asyncio.Event())
    made = await begun(http, one)
    await one.until(lambda: one.engine.running == 1)
    one.engine.says("Hello")
    await one.app.responses.turns.aclose()
    events = await replayed(http, two, made["id"])
    assert text(events) == "Hello" and len(one.engine.asked) == 2


async def test_a_conversation_goes_on_after_a_take_over(start, store, http):
    """The lock that the first router held is given to the turn, whoever runs it."""
    one, two = await pair(start, store, events=SOON)
    first = await ended(http, one, (await begun(http, one))["id"])
    one.engine.plays(asyncio.Event())
    made = await begun(http, one, previous_response_id=first["id"])
    await one.until(lambda: one.engine.running == 1)
    one.engine.says("Hello")
    await orphaned(one, made["id"])
    assert (await replayed(http, two, made["id"]))[-1]["type"] == "response.completed"
    third = await begun(http, two, previous_response_id=made["id"])
    assert (await ended(http, two, third["id"]))["output"][0]["content"][0]["text"] == "5"


def _record(turn: str, response: dict[str, Any]) -> TurnRecord:
    return TurnRecord(turn=turn, tenant="default", session="s", model="m", response=response)
