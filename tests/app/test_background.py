"""Responses in the background: found, listed, steered, cancelled and deleted at any router."""

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI

from stored_responses import (
    ASK,
    TERMINAL,
    Stream,
    begun,
    comes_to,
    ended,
    finish,
    gone,
    numbers,
    pair,
    replayed,
    text,
)


async def test_the_input_of_a_response_that_runs_is_listed(start, store, http):
    """At any router, references made whole, and the same once it has ended."""
    one, two = await pair(start, store)
    first = await http.post(f"{one.url}/v1/responses", json={"model": "m", "input": "Before"})
    said = first.json()["output"][0]
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", finish())
    given = [{"type": "item_reference", "id": said["id"]}, {"role": "user", "content": "Hi"}]
    made = await begun(http, one, input=given)
    await one.until(lambda: one.engine.running == 1)
    listed = []
    for router in (one, two):
        url = f"{router.url}/v1/responses/{made['id']}/input_items?order=asc"
        listed.append((await http.get(url)).json())
    go.set()
    await ended(http, two, made["id"])
    listed.append((await http.get(url)).json())
    texts = [item["content"][0]["text"] for item in listed[0]["data"]]
    assert texts == [said["content"][0]["text"], "Hi"]
    assert listed[1:] == listed[:1] * 2
    assert (await http.get(url + "&limit=0")).status_code == 400


async def test_a_response_in_the_background(router, http):
    """It is answered at once, seen as it runs, and found whole afterwards."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", finish())
    made = await begun(http, router)
    assert made["status"] == "queued" and made["background"] is True
    await router.until(lambda: router.engine.running == 1)
    found = await comes_to(http, router, made["id"], "in_progress")
    assert found["created_at"] == made["created_at"]
    go.set()
    whole = await ended(http, router, made["id"])
    assert whole["status"] == "completed" and whole["background"] is True
    assert whole["output"][0]["content"][0]["text"] == "Hello"
    follow = {"model": "m", "input": "And?", "previous_response_id": made["id"]}
    assert (await http.post(f"{router.url}/v1/responses", json=follow)).status_code == 200


async def test_openais_client_streams_in_the_background_and_takes_it_up_again(start, store):
    """Its stream tells created, queued and in_progress; after a hang-up it is followed from the
    last event at another router, which replays and then follows, with no event lost or doubled."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("a", "b", go, "c", "d", finish())
    async with (
        AsyncOpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0) as client,
        AsyncOpenAI(base_url=two.url + "/v1", api_key="none", max_retries=0) as other,
    ):
        seen = []
        async with await client.responses.create(
            model="m", input="Hi", background=True, stream=True
        ) as stream:
            async for event in stream:
                seen.append(event)
                if event.type == "response.output_text.delta":
                    break
        assert [event.type for event in seen[:3]] == [
            "response.created", "response.queued", "response.in_progress",
        ]  # fmt: skip
        response = seen[0].response.id
        assert one.engine.running == 1
        async with await other.responses.retrieve(
            response, stream=True, starting_after=seen[-1].sequence_number
        ) as stream:
            go.set()
            rest = [event async for event in stream]
        both = [*seen, *rest]
        assert [event.sequence_number for event in both] == list(range(len(both)))
        said = [e.delta for e in both if e.type == "response.output_text.delta"]
        assert "".join(said) == "abcd"
        assert both[-1].type == "response.completed"
        assert (await other.responses.retrieve(response)).output_text == "abcd"


async def test_a_response_in_the_background_that_fails(router, http):
    """An engine's refusal is the response's failure, to be found."""
    router.engine.refuses(400, "maximum context length is 10")
    failed = await ended(http, router, (await begun(http, router))["id"])
    assert failed["status"] == "failed" and failed["error"]["type"] == "context_length_exceeded"
    unknown = await ended(http, router, (await begun(http, router, model="nope"))["id"])
    assert unknown["error"]["type"] == "model_not_found"
    assert [e["type"] for e in await replayed(http, router, failed["id"])] == [
        "response.created", "response.queued", "response.failed",
    ]  # fmt: skip


@pytest.mark.parametrize("at", ["owner", "other"])
async def test_a_response_in_the_background_is_cancelled(start, store, http, at):
    """At whichever router: the engine stops, the response says so, and cancelling again is fine."""
    one, two = await pair(start, store)
    one.engine.plays("Hel", asyncio.Event())
    made = await begun(http, one)
    await one.until(lambda: one.engine.running == 1)
    asked = one if at == "owner" else two
    answer = await http.post(f"{asked.url}/v1/responses/{made['id']}/cancel")
    assert answer.status_code == 200 and answer.json()["status"] == "cancelled"
    await one.until(lambda: one.engine.aborted == 1 and one.engine.running == 0)
    again = await http.post(f"{asked.url}/v1/responses/{made['id']}/cancel")
    assert again.json()["status"] == "cancelled"
    events = await replayed(http, two, made["id"])
    assert [e["type"] for e in events if e["type"] in TERMINAL] == ["response.incomplete"]
    assert numbers(events) == list(range(len(events)))


async def test_what_follows_a_response_that_runs_or_was_cut_off_is_told_why(start, store, http):
    """It is there, at any router: not yet to be followed, or not any more."""
    one, two = await pair(start, store)
    one.engine.plays("Hel", asyncio.Event())
    made = (await begun(http, one))["id"]
    await one.until(lambda: one.engine.running == 1)
    following = {"model": "m", "input": "And?", "previous_response_id": made}
    for router in (one, two):
        busy = await http.post(f"{router.url}/v1/responses", json=following)
        assert busy.status_code == 409 and "still being made" in busy.json()["error"]["message"]
        assert busy.headers["retry-after"] == "1"
    await http.post(f"{two.url}/v1/responses/{made}/cancel")
    for router in (one, two):
        refused = await http.post(f"{router.url}/v1/responses", json=following)
        assert refused.status_code == 400
        assert "continue from its parent" in refused.json()["error"]["message"]


async def say(http: Any, router: Any, response: str, **body: Any) -> dict[str, Any]:
    """What a steer over HTTP is answered."""
    url = f"{router.url}/sessile/v1/turns/{response}/steer"
    told: dict[str, Any] = (await http.post(url, json={"input": "Stop.", **body})).json()
    return told


@pytest.mark.parametrize("at", ["owner", "other"])
async def test_a_response_that_runs_by_itself_is_steered(start, store, http, at):
    """At whichever router, once under its key: the response stops, and its last event names the one
    that took the steer in, which runs by itself too, at the router of the first."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", asyncio.Event())
    one.engine.says("Stopped.")
    made = await begun(http, one)
    await one.until(lambda: one.engine.running == 1)
    asked = one if at == "owner" else two
    for _ in range(2):
        told = await say(http, asked, made["id"], idempotency_key="k")
        assert told["type"] == "response.steer.accepted"
        assert told["steer"]["idempotency_key"] == "k"
    if at == "other":
        await asyncio.sleep(1.2)  # its owner hears of it with the next renewal of the lease
    go.set()
    events = await replayed(http, two, made["id"])
    assert text(events) == "Hello" and numbers(events) == list(range(len(events)))
    assert events[-1]["response"]["incomplete_details"] == {"reason": "steered"}
    follower = events[-1]["successor"]
    assert follower["steers"] == ["k"]
    after = await replayed(http, two, follower["id"])
    assert text(after) == "Stopped." and after[-1]["type"] == "response.completed"
    assert after[0]["response"]["previous_response_id"] == made["id"]
    messages = one.engine.asked[-1]["messages"]
    assert [message["content"] for message in messages] == ["Hi", "Hello", "Stop."]
    assert len(one.engine.asked) == 2
    late = await say(http, two, made["id"], idempotency_key="late")
    assert late["error"]["code"] == "response_already_completed"
    assert (await say(http, two, made["id"], idempotency_key="k"))["type"].endswith("accepted")


async def test_what_cannot_be_steered_over_http(router, http):
    """What ends with its client, what nothing can follow, and what is no steer: each by its
    code."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, finish())
    async with http.stream("POST", f"{router.url}/v1/responses", json=ASK) as answer:
        stream = Stream(answer)
        created = await stream.until("response.created")
        told = await say(http, router, created["response"]["id"])
        assert told["error"]["code"] == "steering_not_supported"
        go.set()
        await stream.rest()
    bound = await begun(http, router, context_management=[
        {"type": "compaction", "compact_threshold": 1000}])  # fmt: skip
    assert (await say(http, router, bound["id"]))["error"]["code"] == "steering_not_supported"
    assert (await say(http, router, "resp_no"))["error"]["code"] == "response_not_found"
    answer = await http.post(
        f"{router.url}/sessile/v1/turns/resp_no/steer", json={"idempotency_key": ""}
    )
    assert answer.status_code == 400


async def test_what_cannot_be_cancelled(router, http):
    """One that has ended, one that is not in the background, one that is not there."""
    done = await ended(http, router, (await begun(http, router))["id"])
    plain = (await http.post(f"{router.url}/v1/responses", json={**ASK, "stream": False})).json()
    for response, status in ((done["id"], 400), (plain["id"], 400), ("resp_no", 404)):
        answer = await http.post(f"{router.url}/v1/responses/{response}/cancel")
        assert answer.status_code == status
        assert answer.json()["error"]["param"] == "response_id"


async def test_a_deleted_response_is_gone_with_its_events(start, store, http):
    """At every router; one that is still being made is to be cancelled first."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("Hel", go, finish())
    made = await begun(http, one)
    await one.until(lambda: one.engine.running == 1)
    for router in (one, two):
        early = await http.delete(f"{router.url}/v1/responses/{made['id']}")
        assert early.status_code == 400 and early.json()["error"]["param"] == "response_id"
    go.set()
    await ended(http, two, made["id"])
    deleted = await http.delete(f"{two.url}/v1/responses/{made['id']}")
    assert deleted.json() == {"id": made["id"], "object": "response", "deleted": True}
    for router in (one, two):
        await gone(http, f"{router.url}/v1/responses/{made['id']}")
        await gone(http, f"{router.url}/v1/responses/{made['id']}?stream=true")
        await gone(http, f"{router.url}/sessile/v1/turns/{made['id']}/events")
    assert (await http.delete(f"{two.url}/v1/responses/{made['id']}")).status_code == 404
