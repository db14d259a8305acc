"""What a WebSocket remembers, and how it ends when it is old."""

import asyncio
import json

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from lane_lines import LAST, Lines
from scripted_engine import STOP


async def test_what_is_not_stored_goes_on_while_its_connection_lasts(router, lines):
    """A response with `store: false` can be followed on the connection, and nowhere after it."""
    async with connect(router.ws_url) as ws:
        own = Lines(ws)
        head = (await own.turn(store=False))["response"]["id"]
        last = await own.turn(previous_response_id=head, input="more", store=False)
        assert last["response"]["output"][0]["content"][0]["text"] == "3"
    assert await router.app.store.get_turn("default", head) is not None  # its receipt
    for response in (head, last["response"]["id"]):
        for _ in range(100):
            error = await lines.turn(previous_response_id=response)
            if error["type"] == "error":
                break
        assert error["error"]["code"] == "previous_response_not_found"


async def test_an_old_connection_is_closed(start):
    """An idle one is told so and closed as clients expect that reconnect."""
    router = await start(websocket={"max_age_s": 0.05})
    async with connect(router.ws_url) as ws:
        error = json.loads(await ws.recv())
        assert error["error"]["code"] == "websocket_connection_limit_reached"
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1001


async def test_an_old_connection_finishes_what_runs(start):
    """The turn that runs is answered whole; what waits and what comes is refused by name; another
    connection, at another router, goes on from there."""
    router = await start(websocket={"max_age_s": 0.5})
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", STOP)
    async with connect(router.ws_url) as ws:
        lines = Lines(ws)
        await lines.ask("a")
        created = (await lines.next("response.created", lane="a"))["response"]["id"]
        await lines.ask("a", input="waits")
        error = await lines.next("error", lane="a")
        assert error["error"]["code"] == "websocket_connection_limit_reached"
        await lines.ask("b", input="comes")
        assert (await lines.next("error", lane="b"))["status"] == 400
        steered = await lines.steer(created)
        assert steered["type"] == "response.steer.accepted"
        gate.set()
        ended = await lines.next(*LAST, lane="a")
        failed = await lines.next("response.steer.failed", lane="a")
        assert failed["error"]["code"] == "successor_creation_failed"
        with pytest.raises(ConnectionClosed):
            while True:
                await ws.recv()
        assert ws.close_code == 1001
    assert [request["messages"][-1]["content"] for request in router.engine.asked] == ["Hi"]
    async with connect(router.ws_url) as ws:
        last = await Lines(ws).turn(previous_response_id=ended["response"]["id"], input="more")
        assert last["response"]["output"][0]["content"][0]["text"] == "3"
