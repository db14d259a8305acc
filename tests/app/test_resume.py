"""Streams of stored responses are taken up again, from any event and at any router."""

import asyncio

import pytest

from stored_responses import ASK, Stream, begun, ended, finish, numbers, pair, replayed, text


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


async def test_a_number_beyond_a_turn_that_runs_is_refused(start, store, http):
    """By the router that runs it and by another, with the last number so far; from there on, and
    from what was not told yet on, it can be followed."""
    one, two = await pair(start, store, events={"lease_s": 0.5})
    gate = asyncio.Event()
    one.engine.plays("a", gate, finish())
    made = await begun(http, one)
    live = one.app.responses.turns.writer.find("default", made["id"])
    await one.until(lambda: live.next > 5)
    last = live.next - 1
    for router in (one, two):
        for number in ("9999", str(last + 1), "-1", "x"):
            url = f"{router.url}/v1/responses/{made['id']}?stream=true&starting_after={number}"
            answer = await http.get(url)
            assert answer.status_code == 400, (router, number)
            error = answer.json()["error"]
            assert error["param"] == "starting_after"
            assert number in ("-1", "x") or f"number {last}" in error["message"]
    followers = [
        asyncio.create_task(replayed(http, router, made["id"], last)) for router in (one, two)
    ]
    gate.set()
    for events in await asyncio.gather(*followers):
        assert numbers(events)[0] == last + 1 and events[-1]["type"] == "response.completed"


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
    one.engine.plays(*steps, finish())
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
