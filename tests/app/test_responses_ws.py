"""The Responses WebSocket, through OpenAI's own client and, for what it never sends, a bare one."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from scripted_engine import STOP

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)
_LAST = ("response.completed", "response.incomplete", "response.failed", "error")


@pytest.fixture
async def ws(router) -> AsyncIterator[ClientConnection]:
    async with connect(router.ws_url) as ws:
        yield ws


async def turn(connection: Any) -> list[Any]:
    """The events of one turn, from OpenAI's client."""
    events = []
    while not events or events[-1].type not in _LAST:
        events.append(await connection.recv())
    return events


async def told(ws: ClientConnection) -> list[dict[str, Any]]:
    """The events of one turn, as they are on the wire, each valid for OpenAI's models."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in _LAST:
        frame = await ws.recv()
        assert isinstance(frame, str)
        _EVENT.validate_json(frame, strict=True)
        events.append(json.loads(frame))
    return events


async def ask(ws: ClientConnection, **fields: Any) -> None:
    body = {"type": "response.create", "model": "m", "input": "Hi", **fields}
    await ws.send(json.dumps(body))


async def test_several_turns_on_one_connection(router, client):
    """Each turn sends only what is new, and the engine is given the whole conversation."""
    router.engine.says("Hel", "lo")
    async with client.responses.connect() as connection:
        head = None
        for words in ("one", "two", "three"):
            await connection.response.create(
                model="m", input=words, **({"previous_response_id": head} if head else {})
            )
            events = await turn(connection)
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert events[-1].type == "response.completed"
            head = events[-1].response.id
        assert events[-1].response.output_text == "5"
    first, second, third = (asked["messages"] for asked in router.engine.asked)
    assert second[: len(first)] == first and third[: len(second)] == second


async def test_a_function_call_and_its_output(router, client):
    """A call's events come in order, and its output continues the response."""
    router.engine.calls("add", '{"a":1,"b":2}')
    tool = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
    async with client.responses.connect() as connection:
        await connection.response.create(model="m", input="1+2?", tools=[tool])
        events = await turn(connection)
        types = [event.type.removeprefix("response.") for event in events]
        assert types == [
            "created", "in_progress", "output_item.added", "function_call_arguments.delta",
            "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
            "completed",
        ]  # fmt: skip
        item = events[-1].response.output[0]
        output = {"type": "function_call_output", "call_id": item.call_id, "output": "3"}
        await connection.response.create(
            model="m", input=[output], tools=[tool], previous_response_id=events[-1].response.id
        )
        assert (await turn(connection))[-1].response.output_text == "3"


async def test_an_error_is_an_event_and_harms_nothing(router, client):
    """What is wrong with a request is told as an event; the connection serves the next one."""
    async with client.responses.connect() as connection:
        await connection.response.create(model="nope", input="Hi")
        (error,) = await turn(connection)
        assert (error.status, error.error.code) == (404, "model_not_found")
        await connection.response.create(model="m", input="Hi", previous_response_id="resp_no")
        (error,) = await turn(connection)
        assert error.error.code == "previous_response_not_found"
        assert error.error.param == "previous_response_id"
        await connection.response.create(model="m", input="Hi")
        assert (await turn(connection))[-1].type == "response.completed"


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x01",
        "{",
        "[]",
        "3",
        "{}",
        '{"type": "response.destroy"}',
        '{"type": "response.steer"}',
        '{"type": "response.create"}',
        '{"type": "response.create", "model": "m", "input": "x", "stream_id": 3}',
        '{"type": "response.create", "model": "m", "input": "x", "stream": false}',
        '{"type": "response.create", "model": "m", "input": "x", "background": true}',
        '{"type": "response.create", "model": "m", "input": "x", "generate": 3}',
        '{"type": "response.create", "model": "m", "input": "x",'
        ' "prompt_cache_options": {"ttl": "5m"}}',
        "[" * 100_000,
    ],
)
async def test_a_bad_frame_is_told_and_harms_nothing(ws, frame):
    """Binary, garbage, unknown or unsupported: one error event each, and the next turn runs."""
    await ws.send(frame)
    (error,) = await told(ws)
    assert error["type"] == "error" and error["status"] in (400, 501)
    assert error["error"]["message"] and error["error"]["code"]
    await ask(ws)
    assert (await told(ws))[-1]["type"] == "response.completed"


async def test_a_huge_frame_closes_only_its_connection(start):
    """A frame over the limit is not read: 1009, and the server serves others."""
    router = await start(websocket={"max_message_bytes": 2048})
    async with connect(router.ws_url) as ws:
        await ws.send("x" * 4096)
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1009
    async with connect(router.ws_url) as ws:
        await ask(ws)
        assert (await told(ws))[-1]["type"] == "response.completed"


async def test_turns_of_one_lane_take_their_turn(router, ws):
    """Requests sent at once run one after another, in order; each echoes its lane's name."""
    for name in "abc":
        await ask(ws, input=name, stream_id="s")
    for _ in "abc":
        events = await told(ws)
        assert {event["stream_id"] for event in events} == {"s"}
        assert events[-1]["type"] == "response.completed"
    assert [asked["messages"][0]["content"] for asked in router.engine.asked] == ["a", "b", "c"]
    assert router.engine.running == 0


async def test_too_many_waiting_turns_are_refused(router, ws):
    """A connection queues so many requests and no more; those it took are all answered."""
    gate = asyncio.Event()
    router.engine.plays("a", gate, STOP)
    await ask(ws)
    await router.until(lambda: router.engine.running == 1)
    for _ in range(17):
        await ask(ws)
    frames = [json.loads(await ws.recv()) for _ in range(6)]
    (error,) = [frame for frame in frames if frame["type"] == "error"]
    assert error["status"] == 429 and error["error"]["headers"]["retry-after"] == "1"
    gate.set()
    for _ in range(17):
        assert (await told(ws))[-1]["type"] == "response.completed"


async def test_a_hang_up_stops_the_engine(router):
    """A client that goes away in the middle of a turn stops it, and those behind it never start."""
    router.engine.plays("Hel", asyncio.Event())
    async with connect(router.ws_url) as ws:
        await ask(ws)
        await ask(ws)
        while json.loads(await ws.recv())["type"] != "response.output_text.delta":
            pass
    await router.until(lambda: router.engine.aborted == 1 and router.engine.running == 0)
    assert len(router.engine.asked) == 1


async def test_a_broken_line_stops_the_engine(router):
    """A connection that breaks without a close is noticed too, while the engine says nothing."""
    router.engine.plays(asyncio.Event())
    ws = await connect(router.ws_url)
    await ask(ws)
    await router.until(lambda: router.engine.running == 1)
    ws.transport.abort()
    await router.until(lambda: router.engine.aborted == 1)


async def test_a_broken_replica_fails_the_response_only(router, ws):
    """A replica that dies on the way is `response.failed`; the connection serves the next turn."""
    router.engine.plays("Hel", router.cut)
    await ask(ws)
    events = await told(ws)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["type"] == "stream_broken"
    await ask(ws)
    assert (await told(ws))[-1]["type"] == "response.completed"


async def test_an_engines_refusal_is_an_error_event(router, ws):
    """An engine that refuses is quoted in an error, before any event of a response."""
    router.engine.refuses(400, "maximum context length is 10")
    await ask(ws, stream_id="s")
    (error,) = await told(ws)
    assert error["error"]["code"] == "context_length_exceeded" and error["stream_id"] == "s"


async def test_a_slow_reader_is_closed_and_stops_the_engine(start):
    """A client that does not read is cut off with 1013 instead of filling the router's memory."""
    router = await start(websocket={"send_timeout_s": 0.3})
    router.engine.plays(*["x" * 100_000] * 200, asyncio.Event())
    async with connect(router.ws_url, max_queue=1, max_size=None, close_timeout=0.2) as ws:
        await ask(ws)
        await router.until(lambda: router.engine.aborted == 1)
        with pytest.raises(ConnectionClosed):
            while True:
                await ws.recv()
        assert ws.close_code == 1013


async def test_the_handshake_names_the_session(router):
    """`X-Session-ID` holds for every turn of the connection; without it a chain has its own."""
    async with connect(router.ws_url, additional_headers={"X-Session-ID": "mine"}) as ws:
        await ask(ws)
        response = (await told(ws))[-1]["response"]
        record = await router.app.store.get_turn("default", response["id"])
        assert record.session == "mine"
    async with connect(router.ws_url) as ws:
        await ask(ws)
        first = (await told(ws))[-1]["response"]["id"]
        await ask(ws, previous_response_id=first)
        second = (await told(ws))[-1]["response"]["id"]
    records = [await router.app.store.get_turn("default", turn) for turn in (first, second)]
    assert records[0].session == records[1].session != "mine"


async def test_connections_are_counted(start):
    """Over the limit a handshake is refused by name, and a place that is free again is given."""
    router = await start(websocket={"max_connections": 1})
    async with connect(router.ws_url):
        with pytest.raises(InvalidStatus) as caught:
            await connect(router.ws_url)
        answer = caught.value.response
        assert answer.status_code == 503
        code = json.loads(answer.body)["error"]["code"]
        assert code == "websocket_connection_limit_reached"
    for _ in range(50):
        try:
            await (await connect(router.ws_url)).close()
            break
        except InvalidStatus:
            await asyncio.sleep(0.02)
    else:
        pytest.fail("the place was not given back")


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [("https://evil.example", False), ("https://app.example", True), ("null", False)],
)
async def test_pages_of_other_origins_are_refused(start, origin, admitted):
    """A browser's page connects from this server or a listed origin, and from nowhere else."""
    router = await start(server={"cors_origins": ("https://app.example",)})
    for wanted, expected in ((origin, admitted), (router.url, True)):
        if expected:
            await (await connect(router.ws_url, origin=wanted)).close()
        else:
            with pytest.raises(InvalidStatus) as caught:
                await connect(router.ws_url, origin=wanted)
            assert caught.value.response.status_code == 403


async def test_keys_come_by_header_or_by_sub_protocol(start):
    """A key is needed; a browser gives it as a sub-protocol, and is answered with its other one."""
    router = await start(auth={"api_keys": "secret"})
    with pytest.raises(InvalidStatus) as caught:
        await connect(router.ws_url)
    assert caught.value.response.status_code == 401
    async with connect(
        router.ws_url, subprotocols=["realtime", "openai-insecure-api-key.secret"]
    ) as ws:
        assert ws.subprotocol == "realtime"
        await ask(ws)
        assert (await told(ws))[-1]["type"] == "response.completed"
    async with (
        AsyncOpenAI(base_url=router.url + "/v1", api_key="secret") as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(model="m", input="Hi")
        assert (await turn(connection))[-1].type == "response.completed"


async def test_the_events_are_those_of_http(router, client, ws):
    """A turn is told alike on both: the same events in the same order."""
    router.engine.says("Hel", "lo")
    router.engine.says("Hel", "lo")
    await ask(ws)
    stream = await client.responses.create(model="m", input="Hi", stream=True)
    http = [event.type async for event in stream]
    assert [event["type"] for event in await told(ws)] == http


async def test_idle_connections_hold_one_task_each(router):
    """A connection that waits costs the server's own task and nothing besides."""
    before = len(asyncio.all_tasks())
    connections = [await connect(router.ws_url, ping_interval=None) for _ in range(20)]
    await ask(connections[0])
    await told(connections[0])
    await router.until(lambda: len(asyncio.all_tasks()) - before <= 20)
    for connection in connections:
        await connection.close()


async def test_a_response_of_the_socket_is_found_over_http(router, client):
    """What a WebSocket turn stored, `GET` gives, and nothing else."""
    async with client.responses.connect() as connection:
        await connection.response.create(model="m", input="Hi")
        response = (await turn(connection))[-1].response
    assert (await client.responses.retrieve(response.id)).output_text == response.output_text
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_no")


async def test_a_client_that_left_is_no_failure(start):
    """Turns whose client did not read, or left, are counted apart from those that failed."""
    router = await start(websocket={"send_timeout_s": 0.2})
    router.engine.plays(*["x" * 100_000] * 200, asyncio.Event())
    router.engine.plays("Hel", asyncio.Event())
    router.engine.plays("Hel", router.cut)
    async with httpx2.AsyncClient(base_url=router.url) as http:
        for stop in ("slow", "left", "cut"):
            async with connect(router.ws_url, max_queue=1, max_size=None, close_timeout=0.2) as ws:
                await ask(ws)
                if stop == "slow":
                    await router.until(lambda: router.engine.aborted == 1)
                elif stop == "left":
                    await router.until(lambda: router.engine.running == 1)
                else:
                    await told(ws)
        await router.until(lambda: router.engine.aborted == 2)
        counts = (await http.get("/metrics")).text
    assert 'sessile_turns_total{model="m",outcome="client_gone"} 2.0' in counts
    assert 'sessile_turns_total{model="m",outcome="stream_broken"} 1.0' in counts
