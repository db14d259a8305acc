"""What becomes of a response whose client is gone."""

import asyncio

import pytest
from websockets.asyncio.client import connect

from lane_lines import Lines
from stored_responses import ASK, TERMINAL, Stream, finish, numbers, replayed, text


async def test_a_turn_goes_on_without_a_client_that_has_said_so(router, http):
    """With `detach` the engine runs on, and the stream can be taken up again."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", finish())
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


@pytest.mark.parametrize("by_default", ["abort", "detach"])
async def test_each_response_of_a_connection_declares_for_itself(router, http, by_default):
    """One of two lanes goes on without its client, whatever the handshake said of both; the engine
    is told nothing of that."""
    go = asyncio.Event()
    headers = {"X-Sessile-On-Disconnect": by_default}
    made = {}
    async with connect(router.ws_url, additional_headers=headers) as ws:
        lines = Lines(ws)
        for wish in ("abort", "detach"):
            router.engine.plays("Hel", go, "lo", finish())
            await lines.ask(lane=wish, on_disconnect=wish)
            made[wish] = (await lines.next("response.created", lane=wish))["response"]["id"]
            await lines.next("response.output_text.delta", lane=wish)
    await router.until(lambda: router.engine.aborted == 1)
    go.set()
    ends = {wish: (await replayed(http, router, made[wish]))[-1]["type"] for wish in made}
    assert ends == {"abort": "response.failed", "detach": "response.completed"}
    assert not any("on_disconnect" in asked for asked in router.engine.asked)


async def test_a_wish_over_a_websocket_must_be_one(router):
    """What is refused is the frame, by the field's name."""
    async with connect(router.ws_url) as ws:
        lines = Lines(ws)
        error = await lines.turn(on_disconnect="keep")
        assert (error["status"], error["error"]["param"]) == (400, "on_disconnect")
        assert (await lines.turn(on_disconnect="detach"))["type"] == "response.completed"


async def test_a_plain_answer_goes_on_too(router, http):
    """Who waits for the whole response may go as well, and find it later."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", finish())
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
