"""Responses that outlive their client, their router and their store, over HTTP."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from sessile.lab.fake_replica import Fault, serve_fake
from sessile.router.replica import ReplicaSpec
from sessile.sessions.record import TurnRecord

ASK = {"model": "m", "input": "Hi", "stream": True}
TERMINAL = ("response.completed", "response.incomplete", "response.failed")


@pytest.fixture
def store(redis_server: Any) -> dict[str, Any]:
    """Settings of a router that keeps events in the test's Redis, with a short breaker."""
    return {"url": redis_server.url, "timeout_s": 0.5, "retry_after_s": 0.1}


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        yield http


async def pair(start: Any, store: Any, **settings: Any) -> tuple[Any, Any]:
    """Two routers before one engine, on one Redis."""
    one = await start(store=store, **settings)
    return one, await start(beside=one, store=store, **settings)


class Stream:
    """The server-sent events of one answer, read one by one."""

    def __init__(self, answer: httpx2.Response) -> None:
        assert answer.status_code == 200, answer
        self._lines = answer.aiter_lines()
        self.ids: list[int] = []
        self.events: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        fields = {}
        async for line in self._lines:
            if not line:
                break
            name, _, value = line.partition(": ")
            fields[name] = value
        event: dict[str, Any] = json.loads(fields["data"])
        assert fields["event"] == event["type"]
        self.ids.append(int(fields["id"]))
        self.events.append(event)
        return event

    async def until(self, kind: str) -> dict[str, Any]:
        while (event := await self.next())["type"] != kind:
            pass
        return event

    async def rest(self) -> list[dict[str, Any]]:
        while not self.events or self.events[-1]["type"] not in TERMINAL:
            await self.next()
        async for line in self._lines:
            assert not line, "nothing comes behind the terminal event"
        return self.events


def text(events: list[dict[str, Any]]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["sequence_number"] for event in events]


async def replayed(http: Any, router: Any, response: str, after: int | None = None) -> Any:
    """All events behind a number, of a turn that ends."""
    params = {"stream": "true"} | ({} if after is None else {"starting_after": after})
    url = f"{router.url}/v1/responses/{response}"
    async with http.stream("GET", url, params=params) as answer:
        return await Stream(answer).rest()


async def begun(http: Any, router: Any, **fields: Any) -> dict[str, Any]:
    """A response in the background."""
    body = {"model": "m", "input": "Hi", "background": True, **fields}
    answer = await http.post(f"{router.url}/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def object_of(http: Any, router: Any, response: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get(f"{router.url}/v1/responses/{response}")).json()
    return found


async def gone(http: Any, url: str) -> None:
    assert (await http.get(url)).status_code == 404


async def ended(http: Any, router: Any, response: str) -> dict[str, Any]:
    return await comes_to(http, router, response, "completed", "failed", "cancelled")


async def comes_to(http: Any, router: Any, response: str, *states: str) -> dict[str, Any]:
    """The response, once it is in one of the states."""
    while True:
        found = await object_of(http, router, response)
        if found["status"] in states:
            return found
        await asyncio.sleep(0.01)


# -- in the background


async def test_the_input_of_a_response_that_runs_is_listed(start, store, http):
    """At any router, references made whole, and the same once it has ended."""
    one, two = await pair(start, store)
    first = await http.post(f"{one.url}/v1/responses", json={"model": "m", "input": "Before"})
    said = first.json()["output"][0]
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", _finish())
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
    router.engine.plays("Hel", go, "lo", _finish())
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
    one.engine.plays("a", "b", go, "c", "d", _finish())
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
    router.engine.plays("Hel", go, _finish())
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
    one.engine.plays("Hel", go, _finish())
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


# -- taking a stream up again


async def test_a_stream_is_replayed_from_any_number(start, store, http):
    """Each event is told again behind each number, by either router, word for word."""
    one, two = await pair(start, store)
    one.engine.says("a", "b", "c")
    async with http.stream("POST", f"{one.url}/v1/responses", json=ASK) as answer:
        stream = Stream(answer)
        first = await stream.rest()
    assert stream.ids == numbers(first) == list(range(len(first)))
    response = first[-1]["response"]["id"]
    for after in (None, *range(len(first) - 1)):
        for router in (one, two):
            start_at = 0 if after is None else after + 1
            assert await replayed(http, router, response, after) == first[start_at:]
    url = f"{two.url}/sessile/v1/turns/{response}/events"
    async with http.stream("GET", url, params={"starting_after": 2}) as answer:
        assert await Stream(answer).rest() == first[3:]


async def test_a_browser_takes_its_stream_up_by_itself(router, http):
    """`Last-Event-ID` says where, whatever the address says."""
    router.engine.says("a", "b")
    async with http.stream("POST", f"{router.url}/v1/responses", json=ASK) as answer:
        first = await Stream(answer).rest()
    url = f"{router.url}/v1/responses/{first[-1]['response']['id']}?stream=true&starting_after=0"
    async with http.stream("GET", url, headers={"Last-Event-ID": "3"}) as answer:
        assert await Stream(answer).rest() == first[4:]


async def test_one_who_has_seen_all_is_told_nothing(router, http):
    """Behind the terminal event there is nothing, and that is no error."""
    router.engine.says("a")
    async with http.stream("POST", f"{router.url}/v1/responses", json=ASK) as answer:
        last = (await Stream(answer).rest())[-1]
    url = f"{router.url}/v1/responses/{last['response']['id']}"
    params = {"stream": "true", "starting_after": last["sequence_number"]}
    answer = await http.get(url, params=params)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("number", ["-1", "x", "1.5", "9999", "9" * 30, "٣"])
async def test_a_number_that_is_none_is_refused(router, http, number):
    """Beyond the end, negative, or not a number: 400, with the field's name."""
    made = await ended(http, router, (await begun(http, router))["id"])
    for path in (
        f"/v1/responses/{made['id']}?stream=true&",
        f"/sessile/v1/turns/{made['id']}/events?",
    ):
        answer = await http.get(f"{router.url}{path}starting_after={number}")
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "starting_after"


async def test_nobody_follows_what_is_not_theirs(start, http):
    """A turn of another tenant, one that never was, one that is not stored: 404."""
    router = await start(auth={"api_keys": "a=one,b=two"})
    mine, other = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    url = f"{router.url}/v1/responses"
    made = (await http.post(url, json={**ASK, "background": True, "stream": False},
                            headers=mine)).json()  # fmt: skip
    hidden = await http.post(url, json={**ASK, "stream": False, "store": False}, headers=mine)
    for response, headers in (
        (made["id"], other), ("resp_no", mine), (hidden.json()["id"], mine),
    ):  # fmt: skip
        assert (await http.get(f"{url}/{response}?stream=true", headers=headers)).status_code == 404
        assert (await http.post(f"{url}/{response}/cancel", headers=headers)).status_code == 404
        native = f"{router.url}/sessile/v1/turns/{response}/events"
        assert (await http.get(native, headers=headers)).status_code == 404
    assert (await http.get(f"{url}/{made['id']}?stream=true", headers=mine)).status_code == 200


async def test_a_response_that_was_not_streamed_has_no_events(router, http):
    """It is there, and the error says how to have it."""
    plain = (await http.post(f"{router.url}/v1/responses", json={**ASK, "stream": False})).json()
    answer = await http.get(f"{router.url}/v1/responses/{plain['id']}?stream=true")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "stream"


async def test_many_follow_one_turn_at_both_routers(start, store, http):
    """Each is told every event once, whenever it came, up to the same end."""
    one, two = await pair(start, store)
    gates = [asyncio.Event() for _ in range(6)]
    steps = [step for n, gate in enumerate(gates) for step in (f"{n} ", gate)]
    one.engine.plays(*steps, _finish())
    made = await begun(http, one)
    followers = []
    for n, gate in enumerate(gates):
        followers += [
            asyncio.create_task(replayed(http, router, made["id"])) for router in (one, two)
        ]
        if n % 2:
            await asyncio.sleep(0.03)
        gate.set()
    for events in await asyncio.gather(*followers):
        assert numbers(events) == list(range(len(events)))
        assert text(events) == "0 1 2 3 4 5 "


# -- the client is gone


async def test_a_turn_goes_on_without_a_client_that_has_said_so(router, http):
    """With `detach` the engine runs on, and the stream can be taken up again."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", _finish())
    headers = {"X-Sessile-On-Disconnect": "detach"}
    url = f"{router.url}/v1/responses"
    async with http.stream("POST", url, json=ASK, headers=headers) as answer:
        stream = Stream(answer)
        await stream.until("response.output_text.delta")
    response = answer.headers["x-sessile-turn"]
    await asyncio.sleep(0.2)  # longer than a hang-up takes to be seen
    assert router.engine.running == 1
    go.set()
    rest = await replayed(http, router, response, stream.ids[-1])
    assert text([*stream.events, *rest]) == "Hello"
    assert numbers([*stream.events, *rest]) == list(range(rest[-1]["sequence_number"] + 1))


async def test_a_plain_answer_goes_on_too(router, http):
    """Who waits for the whole response may go as well, and find it later."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", _finish())
    body, key = {**ASK, "stream": False}, {"Idempotency-Key": "k"}
    url = f"{router.url}/v1/responses"
    headers = {"X-Sessile-On-Disconnect": "detach", **key}
    asking = asyncio.create_task(http.post(url, json=body, headers=headers))
    await router.until(lambda: router.engine.running == 1)
    asking.cancel()
    await asyncio.sleep(0.2)
    go.set()
    again = (await http.post(url, json=body, headers=key)).json()
    assert again["output"][0]["content"][0]["text"] == "Hello" and len(router.engine.asked) == 1


async def test_a_hang_up_ends_the_events_too(router, http):
    """By default the engine stops, and who looks afterwards is told why, once."""
    router.engine.plays("Hel", asyncio.Event())
    async with http.stream("POST", f"{router.url}/v1/responses", json=ASK) as answer:
        created = await Stream(answer).until("response.created")
    await router.until(lambda: router.engine.aborted == 1)
    events = await replayed(http, router, created["response"]["id"])
    assert [e["type"] for e in events if e["type"] in TERMINAL] == ["response.failed"]
    assert events[-1]["response"]["error"]["type"] == "client_gone"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hel"


@pytest.mark.parametrize(
    ("header", "body", "param"),
    [("keep", {}, "x-sessile-on-disconnect"), ("detach", {"store": False}, "store")],
)
async def test_a_wish_that_cannot_be_met_is_refused(router, http, header, body, param):
    """Before anything runs."""
    headers = {"X-Sessile-On-Disconnect": header}
    answer = await http.post(f"{router.url}/v1/responses", json={**ASK, **body}, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


async def test_what_goes_wrong_before_an_answer_is_an_http_error(router, http):
    """Also for a turn that would have gone on without its client."""
    router.engine.refuses(400, "maximum context length is 10")
    headers = {"X-Sessile-On-Disconnect": "detach"}
    answer = await http.post(f"{router.url}/v1/responses", json=ASK, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"


# -- a turn runs once


@pytest.mark.parametrize("stream", [True, False])
async def test_a_repeated_key_follows_the_running_turn(start, store, http, stream):
    """At another router, from its first event on; the engine is asked once."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", _finish())
    key = {"Idempotency-Key": "k"}
    async with http.stream("POST", f"{one.url}/v1/responses", json=ASK, headers=key) as answer:
        first = Stream(answer)
        await first.until("response.output_text.delta")
        await asyncio.sleep(0.05)
        body = {**ASK, "stream": stream}
        asking = asyncio.create_task(http.post(f"{two.url}/v1/responses", json=body, headers=key))
        await asyncio.sleep(0.1)
        go.set()
        events, again = await first.rest(), await asking
    if stream:
        data = [line[6:] for line in again.text.splitlines() if line.startswith("data: ")]
        assert [json.loads(line) for line in data] == events
    else:
        assert again.json() == events[-1]["response"]
    assert len(one.engine.asked) == 1


async def test_a_repeated_key_in_the_background(start, store, http):
    """Gives the response that it began, running or done."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", _finish())
    body, key = {"model": "m", "input": "Hi", "background": True}, {"Idempotency-Key": "k"}
    made = (await http.post(f"{one.url}/v1/responses", json=body, headers=key)).json()
    await one.until(lambda: one.engine.running == 1)
    again = (await http.post(f"{two.url}/v1/responses", json=body, headers=key)).json()
    assert again["id"] == made["id"]
    go.set()
    await ended(http, two, made["id"])
    done = (await http.post(f"{two.url}/v1/responses", json=body, headers=key)).json()
    assert (done["id"], done["status"]) == (made["id"], "completed")
    assert len(one.engine.asked) == 1


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_repeated_key_gives_the_finished_response(start, store, http, stored, stream):
    """At another router, event for event, whether or not the response was stored."""
    one, two = await pair(start, store)
    one.engine.says("Hel", "lo")
    key = {"Idempotency-Key": "k"}
    body = {**ASK, "stream": stream, "store": stored}
    answers = [
        await http.post(f"{router.url}/v1/responses", json=body, headers=key)
        for router in (one, two, one)
    ]
    assert len({answer.headers["x-sessile-turn"] for answer in answers}) == 1
    assert answers[0].text == answers[1].text == answers[2].text
    assert "Hello" in answers[1].text and len(one.engine.asked) == 1


async def test_a_repeated_key_waits_for_what_cannot_be_followed(start, store, http):
    """A response that is not stored is in no log: its end is waited for, and told."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", _finish())
    body, key = {**ASK, "store": False}, {"Idempotency-Key": "k"}
    first = asyncio.create_task(http.post(f"{one.url}/v1/responses", json=body, headers=key))
    await one.until(lambda: one.engine.running == 1)
    again = asyncio.create_task(http.post(f"{two.url}/v1/responses", json=body, headers=key))
    await asyncio.sleep(0.1)
    go.set()
    assert (await first).text == (await again).text and len(one.engine.asked) == 1


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


# -- the store is gone


async def test_redis_gone_in_the_middle_is_not_noticed(start, store, http, redis_server):
    """Who listens misses nothing; once it is back, empty, the whole sequence is there again."""
    one, two = await pair(start, store)
    gates = [asyncio.Event(), asyncio.Event()]
    one.engine.plays("a", gates[0], "b", gates[1], "c", _finish())
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
    one.engine.plays("a ", gates[0], *pieces, gates[1], "z", _finish())
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
    one.engine.plays("Hel", go, "lo", _finish())
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
        adopted = False
        while not adopted:  # it may renew its lease in between
            await one.app.store.events.release("default", response, mine.fence)
            adopted = await turns.adopt("default", response, -1)
        events = await live.rest()
    assert mine.stopped == "lost" and numbers(events) == list(range(len(events)))
    assert text(events) == f"echo: {said}"
    kinds = [event["type"] for event in events]
    assert kinds.count("response.sessile.continued") == 1
    assert [kind for kind in kinds if kind in TERMINAL] == ["response.completed"]
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


def _finish() -> dict[str, Any]:
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def _record(turn: str, response: dict[str, Any]) -> TurnRecord:
    return TurnRecord(turn=turn, tenant="default", session="s", model="m", response=response)
