"""Lanes of a WebSocket, before an engine that plays a script."""

import asyncio

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from lane_lines import LAST, Lines
from scripted_engine import STOP


async def test_lanes_run_side_by_side(router, lines):
    """A lane that takes long keeps no other waiting, and each is first come, first served."""
    gate = asyncio.Event()
    router.engine.plays("slow", gate, STOP)
    await lines.ask("a", input="a1")
    await router.until(lambda: router.engine.running == 1)
    await lines.ask("a", input="a2")
    assert (await lines.turn("b", input="b1"))["type"] == "response.completed"
    assert (await lines.turn(input="none"))["type"] == "response.completed"
    gate.set()
    for _ in range(2):
        assert (await lines.next(*LAST, lane="a"))["type"] == "response.completed"
    asked = [request["messages"][-1]["content"] for request in router.engine.asked]
    assert asked == ["a1", "b1", "none", "a2"]


async def test_lanes_fork_from_one_response(router, lines):
    """Two lanes follow a response at once: one goes on with its session, one is a child of it, and
    each goes on from its own reply."""
    first = (await lines.turn("a"))["response"]["id"]
    gate = asyncio.Event()
    for _ in range(2):
        router.engine.plays("go", gate, STOP)
    for lane in "bc":
        await lines.ask(lane, previous_response_id=first, input=lane)
    await router.until(lambda: router.engine.running == 2)
    gate.set()
    heads = {lane: (await lines.next(*LAST, lane=lane))["response"]["id"] for lane in "bc"}
    store = router.app.store
    sessions = [
        (await store.get_turn("default", turn)).session for turn in (first, *heads.values())
    ]
    assert len(set(sessions)) == 2
    forked = next(session for session in sessions if session != sessions[0])
    (record,) = await store.find_session("default", forked)
    assert record.parent == sessions[0]
    for lane, head in heads.items():
        await lines.turn(lane, previous_response_id=head, input="more")
        said = [message["content"] for message in router.engine.asked[-1]["messages"]]
        assert said == ["Hi", "1", lane, "go", "more"]


async def test_a_repeated_key_is_answered_in_the_lane_that_repeats_it(router, lines):
    """It may be another lane, or none, while the response runs and when it is there."""
    gate = asyncio.Event()
    router.engine.plays("once", gate, STOP)
    await lines.ask("a", idempotency_key="k")
    await router.until(lambda: router.engine.running == 1)
    await lines.ask("b", idempotency_key="k")
    gate.set()
    made = (await lines.next(*LAST, lane="a"))["response"]["id"]
    assert (await lines.next(*LAST, lane="b"))["response"]["id"] == made
    assert (await lines.turn(idempotency_key="k"))["response"]["id"] == made
    assert len(router.engine.asked) == 1


async def test_lanes_of_a_named_session_run_side_by_side(router):
    """The handshake names one session for all lanes; a lane that would wait for another's turn is
    a child of it."""
    async with connect(router.ws_url, additional_headers={"X-Session-ID": "mine"}) as ws:
        lines = Lines(ws)
        heads = {lane: (await lines.turn(lane, input=lane))["response"]["id"] for lane in "ab"}
        gate = asyncio.Event()
        for lane, head in heads.items():
            router.engine.plays(gate, STOP)
            await lines.ask(lane, previous_response_id=head)
        await router.until(lambda: router.engine.running == 2)
        gate.set()
        ends = [await lines.next(*LAST, lane=lane) for lane in heads]
    store = router.app.store
    sessions = [(await store.get_turn("default", e["response"]["id"])).session for e in ends]
    assert sessions[0] == "mine" != sessions[1]
    (child,) = await store.find_session("default", sessions[1])
    assert child.parent == "mine"


async def test_a_slow_reader_stops_every_lane(start):
    """Whichever lane finds it out, the connection is closed once, and no engine is left at work."""
    router = await start(websocket={"send_timeout_s": 0.3})
    async with connect(router.ws_url, max_queue=1, max_size=None, close_timeout=0.2) as ws:
        for lane in "ab":
            router.engine.plays(*["x" * 100_000] * 200, asyncio.Event())
            await Lines(ws).ask(lane)
        await router.until(lambda: router.engine.aborted == 2 and router.engine.running == 0)
        with pytest.raises(ConnectionClosed):
            while True:
                await ws.recv()
        assert ws.close_code == 1013


async def test_lanes_are_bounded(start):
    """One lane too many is refused by name, in its own lane; the others go on."""
    router = await start(websocket={"max_lanes": 2})
    gate = asyncio.Event()
    async with connect(router.ws_url) as ws:
        lines = Lines(ws)
        for lane in "ab":
            router.engine.plays(gate, STOP)
            await lines.ask(lane)
        await router.until(lambda: router.engine.running == 2)
        error = await lines.turn("c")
        assert (error["status"], error["error"]["param"]) == (429, "stream_id")
        assert error["error"]["headers"] == {"retry-after": "1"}
        gate.set()
        for lane in "ab":
            assert (await lines.next(*LAST, lane=lane))["type"] == "response.completed"
        assert (await lines.turn("c"))["type"] == "response.completed"


async def test_a_full_lane_is_told_so_and_others_are_not(router, lines):
    """A running turn and a full queue: the next is refused in that lane, and only there."""
    gate = asyncio.Event()
    router.engine.plays("a", gate, STOP)
    await lines.ask("a")
    await lines.next("response.created", lane="a")
    for _ in range(17):
        await lines.ask("a")
    error = await lines.next("error", lane="a")
    assert error["status"] == 429 and "16 requests wait" in error["error"]["message"]
    assert (await lines.turn("b"))["type"] == "response.completed"
    gate.set()
    for _ in range(17):
        assert (await lines.next(*LAST, lane="a"))["type"] == "response.completed"


async def test_a_hang_up_stops_every_lane(router):
    """All that runs for the client is stopped, and nothing that waits is begun."""
    async with connect(router.ws_url) as ws:
        lines = Lines(ws)
        for lane in "abc":
            router.engine.plays("x", asyncio.Event())
            await lines.ask(lane)
            await lines.ask(lane)
        await router.until(lambda: router.engine.running == 3)
    await router.until(lambda: router.engine.aborted == 3 and router.engine.running == 0)
    assert len(router.engine.asked) == 3
