"""Lanes, steers, prewarming and the age of a WebSocket, before an engine that plays a script."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sessile.lab.fake_replica import FakeReplica

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)
_LAST = ("response.completed", "response.incomplete", "response.failed", "error")
_STOP = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
_TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}


class Lines:
    """A connection whose events are sorted by lane, each valid for OpenAI's models."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self._read: list[dict[str, Any]] = []

    async def ask(self, lane: str | None = None, **fields: Any) -> None:
        """Send a `response.create`."""
        body = {"type": "response.create", "model": "m", "input": "Hi", **fields}
        await self.ws.send(json.dumps(body | ({"stream_id": lane} if lane else {})))

    async def steer(self, response: str, words: Any = "Stop.") -> dict[str, Any]:
        """Send a `response.steer`; what is said to it."""
        frame = {"type": "response.steer", "previous_response_id": response, "input": words}
        await self.ws.send(json.dumps(frame))
        return await self.next("response.steer.accepted", "response.steer.failed")

    async def next(self, *kinds: str, lane: str | None = None) -> dict[str, Any]:
        """The next event of those kinds in a lane; what comes before it there is dropped."""
        while True:
            for index, event in enumerate(self._read):
                if event.get("stream_id") == lane or event["type"].startswith("response.steer"):
                    del self._read[index]
                    if event["type"] in kinds:
                        return event
                    break
            else:
                frame = await self.ws.recv()
                _EVENT.validate_json(frame, strict=True)
                self._read.append(json.loads(frame))

    async def turn(self, lane: str | None = None, **fields: Any) -> dict[str, Any]:
        """One turn from its request to its last event, which is given."""
        await self.ask(lane, **fields)
        return await self.next(*_LAST, lane=lane)


@pytest.fixture
async def lines(router) -> AsyncIterator[Lines]:
    async with connect(router.ws_url) as ws:
        yield Lines(ws)


# -- lanes


async def test_lanes_run_side_by_side(router, lines):
    """A lane that takes long keeps no other waiting, and each is first come, first served."""
    gate = asyncio.Event()
    router.engine.plays("slow", gate, _STOP)
    await lines.ask("a", input="a1")
    await router.until(lambda: router.engine.running == 1)
    await lines.ask("a", input="a2")
    assert (await lines.turn("b", input="b1"))["type"] == "response.completed"
    assert (await lines.turn(input="none"))["type"] == "response.completed"
    gate.set()
    for _ in range(2):
        assert (await lines.next(*_LAST, lane="a"))["type"] == "response.completed"
    asked = [request["messages"][-1]["content"] for request in router.engine.asked]
    assert asked == ["a1", "b1", "none", "a2"]


async def test_lanes_fork_from_one_response(router, lines):
    """Two lanes follow a response at once: one goes on with its session, one is a child of it, and
    each goes on from its own reply."""
    first = (await lines.turn("a"))["response"]["id"]
    gate = asyncio.Event()
    for _ in range(2):
        router.engine.plays("go", gate, _STOP)
    for lane in "bc":
        await lines.ask(lane, previous_response_id=first, input=lane)
    await router.until(lambda: router.engine.running == 2)
    gate.set()
    heads = {lane: (await lines.next(*_LAST, lane=lane))["response"]["id"] for lane in "bc"}
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


async def test_lanes_of_a_named_session_run_side_by_side(router):
    """The handshake names one session for all lanes; a lane that would wait for another's turn is
    a child of it."""
    async with connect(router.ws_url, additional_headers={"X-Session-ID": "mine"}) as ws:
        lines = Lines(ws)
        heads = {lane: (await lines.turn(lane, input=lane))["response"]["id"] for lane in "ab"}
        gate = asyncio.Event()
        for lane, head in heads.items():
            router.engine.plays(gate, _STOP)
            await lines.ask(lane, previous_response_id=head)
        await router.until(lambda: router.engine.running == 2)
        gate.set()
        ends = [await lines.next(*_LAST, lane=lane) for lane in heads]
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
            router.engine.plays(gate, _STOP)
            await lines.ask(lane)
        await router.until(lambda: router.engine.running == 2)
        error = await lines.turn("c")
        assert (error["status"], error["error"]["param"]) == (429, "stream_id")
        assert error["error"]["headers"] == {"retry-after": "1"}
        gate.set()
        for lane in "ab":
            assert (await lines.next(*_LAST, lane=lane))["type"] == "response.completed"
        assert (await lines.turn("c"))["type"] == "response.completed"


async def test_a_full_lane_is_told_so_and_others_are_not(router, lines):
    """A running turn and a full queue: the next is refused in that lane, and only there."""
    gate = asyncio.Event()
    router.engine.plays("a", gate, _STOP)
    await lines.ask("a")
    await lines.next("response.created", lane="a")
    for _ in range(17):
        await lines.ask("a")
    error = await lines.next("error", lane="a")
    assert error["status"] == 429 and "16 requests wait" in error["error"]["message"]
    assert (await lines.turn("b"))["type"] == "response.completed"
    gate.set()
    for _ in range(17):
        assert (await lines.next(*_LAST, lane="a"))["type"] == "response.completed"


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


# -- steers


async def test_a_steer_stops_the_response_and_another_follows(router, lines):
    """What was said so far is the assistant's, the steer the user's next words, and the settings
    are the same; nobody asks for the successor."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    await lines.ask("a", input="Talk.", instructions="Be brief.", max_output_tokens=9)
    first = (await lines.next("response.output_text.delta", lane="a"))["item_id"]
    created = "resp_" + first.removeprefix("msg_")[:-2]
    accepted = await lines.steer(created)
    assert accepted["type"] == "response.steer.accepted" and accepted["stream_id"] == "a"
    gate.set()
    ended = (await lines.next(*_LAST, lane="a"))["response"]
    assert ended["status"] == "incomplete" and ended["incomplete_details"]["reason"] == "steered"
    assert ended["output"][0]["content"][0]["text"] == "Hello"
    follows = (await lines.next("response.created", lane="a"))["response"]
    assert follows["previous_response_id"] == ended["id"] == created
    assert (follows["instructions"], follows["max_output_tokens"]) == ("Be brief.", 9)
    assert (await lines.next(*_LAST, lane="a"))["type"] == "response.completed"
    await router.until(lambda: router.engine.aborted == 1)
    said = [(m["role"], m["content"]) for m in router.engine.asked[1]["messages"]]
    assert said == [
        ("system", "Be brief."), ("user", "Talk."), ("assistant", "Hello"), ("user", "Stop."),
    ]  # fmt: skip


async def test_a_steer_is_followed_before_what_waits(router, lines):
    """The successor comes by itself, and the request behind it after it."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    await lines.ask(input="first")
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.ask(input="second")
    await lines.steer(created)
    gate.set()
    for _ in range(3):
        await lines.next(*_LAST)
    assert [r["messages"][-1]["content"] for r in router.engine.asked] == [
        "first", "Stop.", "second",
    ]  # fmt: skip


async def test_a_steer_that_comes_at_the_very_end_is_not_lost(router, lines):
    """The response completes, and its successor follows all the same."""
    gate = asyncio.Event()
    router.engine.plays("Hello", gate, _STOP)
    await lines.ask(store=False)
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.steer(created)
    gate.set()
    assert (await lines.next(*_LAST))["type"] == "response.completed"
    follows = (await lines.next(*_LAST))["response"]
    assert follows["previous_response_id"] == created and follows["status"] == "completed"


async def test_a_steer_waits_for_the_clients_tools(router, lines):
    """Within a call nothing is stopped; the steer goes with the outputs, behind them, and a first
    try that was wrong costs it nothing."""
    gate = asyncio.Event()
    router.engine.calls("add", '{"a":1}')
    router.engine._scripts[-1].insert(1, gate)
    await lines.ask(tools=[_TOOL])
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.next("response.output_item.added")
    accepted = await lines.steer(created)
    gate.set()
    assert (await lines.next(*_LAST))["type"] == "response.completed"
    pending = await lines.next("response.steer.pending")
    assert pending["steer"] == accepted["steer"]
    assert pending["required_input"] == [
        {"type": "function_call_output", "call_id": "call_1", "name": "add"}
    ]
    wrong = [{**pending["required_input"][0], "call_id": "call_2", "output": "1"}]
    error = await lines.turn(previous_response_id=created, input=wrong, tools=[_TOOL])
    assert error["type"] == "error"
    outputs = [{**pending["required_input"][0], "output": "1"}]
    last = await lines.turn(previous_response_id=created, input=outputs, tools=[_TOOL])
    assert last["type"] == "response.completed"
    said = [(m["role"], m["content"]) for m in router.engine.asked[-1]["messages"]]
    assert said[-2:] == [("tool", "1"), ("user", "Stop.")]


async def test_a_steer_of_somebody_else_or_too_late_fails(router, lines):
    """Unknown here, over, or not a steer at all: each with its code, and nothing is harmed."""
    done = (await lines.turn("a"))["response"]["id"]
    assert (await lines.steer(done))["error"]["code"] == "response_already_completed"
    async with connect(router.ws_url) as ws:
        failed = await Lines(ws).steer(done)
        assert failed["error"]["code"] == "response_not_found"
        assert failed["steer"] == {"previous_response_id": done, "input": "Stop."}
    router.engine.plays("Hel", router.cut)
    broken = await lines.turn("a")
    assert broken["type"] == "response.failed"
    late = await lines.steer(broken["response"]["id"])
    assert late["error"]["code"] == "response_not_active"
    empty = await lines.steer(done, [])
    assert empty["error"]["code"] == "invalid_input" and empty["steer"]["input"] == []
    assert (await lines.turn("a"))["type"] == "response.completed"


async def test_a_successor_that_cannot_be_made_gives_the_steer_back(router, lines):
    """With the engine's reason; the lane serves the next request."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    router.engine.refuses(400, "the model is tired")
    await lines.ask("a")
    created = (await lines.next("response.created", lane="a"))["response"]["id"]
    accepted = await lines.steer(created)
    gate.set()
    assert (await lines.next(*_LAST, lane="a"))["type"] == "response.incomplete"
    failed = await lines.next("response.steer.failed", lane="a")
    assert failed["error"]["code"] == "successor_creation_failed"
    assert "tired" in failed["error"]["message"]
    assert failed["steer"] == {**accepted["steer"], "input": "Stop."}
    assert (await lines.turn("a"))["type"] == "response.completed"


async def test_a_broken_response_gives_its_steers_back(router, lines):
    """Nothing can follow what failed."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, router.cut)
    await lines.ask()
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.steer(created)
    gate.set()
    assert (await lines.next(*_LAST))["type"] == "response.failed"
    failed = await lines.next("response.steer.failed")
    assert failed["error"]["code"] == "response_not_active"


async def test_a_steered_session_keeps_its_place(router, lines):
    """It pauses like one whose turn ended well: its memory is held, and its binding stands."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    await lines.ask(session_id="s")
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.steer(created)
    gate.set()
    for _ in range(2):
        ended = (await lines.next(*_LAST))["response"]
    receipts = [
        (await router.app.store.get_turn("default", turn)).receipt
        for turn in (created, ended["id"])
    ]
    assert [r.outcome for r in receipts] == ["steered", "ok"]
    assert receipts[1].reason == "bound"
    assert router.app.pool.get("one").outlook.paused


# -- prewarming


@pytest.mark.parametrize("how", [{"generate": False}, {"prompt_cache_options": {"prewarm": True}}])
async def test_prewarming_prefills_and_can_be_followed(router, lines, how):
    """The engine is given the prompt for one token, the client no output; the next turn's prompt
    begins with what was prefilled."""
    router.engine.says("x", finish="length")
    await lines.ask(input="Long.", max_output_tokens=50, **how)
    types = [(await lines.next(*_LAST, "response.output_item.added", "response.in_progress"))]
    types.append(await lines.next(*_LAST, "response.output_item.added"))
    assert types[-1]["type"] == "response.completed"
    warm = types[-1]["response"]
    assert warm["output"] == [] and warm["usage"]["output_tokens"] == 0
    assert warm["usage"]["input_tokens"] == 1
    assert router.engine.asked[0]["max_tokens"] == 1
    last = await lines.turn(previous_response_id=warm["id"], input="Go.")
    assert last["response"]["output"]
    said = [message["content"] for message in router.engine.asked[1]["messages"]]
    assert said == ["Long.", "Go."] and "max_tokens" not in router.engine.asked[1]


async def test_prewarming_is_for_http_too(router, client):
    """By `prewarm`, which the API has there; `generate` belongs to the WebSocket."""
    warm = await client.responses.create(
        model="m", input="Long.", prompt_cache_options={"prewarm": True}
    )
    assert warm.status == "completed" and warm.output == []
    said = await client.responses.create(model="m", input="Go.", previous_response_id=warm.id)
    assert said.output_text == "2"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input="Go.", extra_body={"generate": False})
    assert caught.value.param == "generate"


async def test_prewarming_stands_in_no_turns_way(router, lines):
    """It runs beside a turn of its session, is no fork, and comes behind all in the queue."""
    head = (await lines.turn("a"))["response"]["id"]
    gate = asyncio.Event()
    router.engine.plays("go", gate, _STOP)
    await lines.ask("a", previous_response_id=head, input="on")
    await router.until(lambda: router.engine.running == 1)
    warm = await lines.turn("b", previous_response_id=head, input="next", generate=False)
    assert warm["type"] == "response.completed"
    gate.set()
    turn = await lines.next(*_LAST, lane="a")
    sessions = [
        (await router.app.store.get_turn("default", response)).session
        for response in (head, warm["response"]["id"], turn["response"]["id"])
    ]
    assert len(set(sessions)) == 1


@pytest.mark.parametrize("over", ["http", "websocket"])
async def test_a_ttl_leases_the_sessions_memory(router, client, lines, over):
    """Held for so long after the turn; the response says what was applied."""
    options: Any = {"ttl": "12h", "mode": "implicit"}
    if over == "http":
        made = await client.responses.create(
            model="m", input="Hi", prompt_cache_options=options,
            extra_headers={"X-Session-ID": "held"},
        )  # fmt: skip
        told = made.prompt_cache_options.model_dump(exclude_unset=True)
    else:
        last = await lines.turn(session_id="held", prompt_cache_options=options)
        told = last["response"]["prompt_cache_options"]
    assert told == options
    pauses = router.app.flow.scheduler.live.pauses._pauses
    (pause,) = (pause for session, pause in pauses.items() if "held" in session)
    assert pause.told and pause.until - time.monotonic() == pytest.approx(43_200, abs=60)


async def test_a_comparison_tells_where_prompts_part(router, client, lines):
    """The next turn goes on from it, an edited one does not, and nobody knows a foreign one."""
    long = "word " * 500
    first = (await lines.turn(instructions="Be brief.", input=long))["response"]["id"]

    async def compared(**fields: Any) -> Any:
        options = {"comparison_response_id": first}
        last = await lines.turn(prompt_cache_options=options, **fields)
        return last["response"]["prompt_cache_diagnostics"]

    follows = {"previous_response_id": first, "input": "and"}
    goes_on = await compared(instructions="Be brief.", **follows)
    assert goes_on["sessile"]["message"] is None
    other = await compared(instructions="Be long.", **follows)
    assert (other["type"], other["reason"]) == ("cache_miss", "input_changed")
    assert other["sessile"]["message"] == 0 and other["sessile"]["character"] == len("Be ")
    tools = await compared(instructions="Be brief.", tools=[_TOOL], **follows)
    assert tools["reason"] == "tools_changed"
    made = await client.responses.create(
        model="m", input="x", prompt_cache_options={"comparison_response_id": "resp_other"}
    )
    assert made.prompt_cache_diagnostics.type == "comparison_response_not_found"


async def test_a_comparison_tells_of_lost_memory(start):
    """A prompt that goes on from the other one, at an engine that has forgotten it, and that has
    not."""
    replica = FakeReplica(model="m")
    router = await start([replica])
    async with connect(router.ws_url) as ws:
        lines = Lines(ws)
        first = (await lines.turn(input="word " * 500))["response"]["id"]
        options = {"comparison_response_id": first}
        follows = {"previous_response_id": first, "prompt_cache_options": options}
        for lost, kind, why in ((False, "cache_hit", None), (True, "unavailable", "evicted")):
            if lost:
                replica.forget()
            told = (await lines.turn(**follows))["response"]["prompt_cache_diagnostics"]
            assert (told["type"], told["sessile"]["why"]) == (kind, why)
            assert told["sessile"]["replica"] == told["sessile"]["comparison_replica"] == "one"


async def test_a_breakpoint_asks_for_nothing_more(router, lines):
    """All prefixes are cached: explicit ones are taken, and the engine sees nothing of them."""
    part = {"type": "input_text", "text": "Hi", "prompt_cache_breakpoint": {"mode": "explicit"}}
    last = await lines.turn(
        input=[{"role": "user", "content": [part]}], prompt_cache_options={"mode": "explicit"}
    )
    assert last["type"] == "response.completed"
    assert router.engine.asked[0]["messages"] == [{"role": "user", "content": "Hi"}]


# -- what a connection remembers, and its end


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
    router.engine.plays("Hel", gate, "lo", _STOP)
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
        ended = await lines.next(*_LAST, lane="a")
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
