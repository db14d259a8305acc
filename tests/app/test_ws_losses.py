"""A replica or the store goes away under a turn on the WebSocket: its client is told all of it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect

from faulty_pair import faulty_pair
from lane_lines import LAST
from sessile.lab.fake_replica import Fault
from stored_responses import TERMINAL, finish, numbers, pair, replayed, text

SAID = "the rain in Spain stays mainly in the plain"


async def test_a_lost_replica_under_openais_connection(router: Any) -> None:
    """One item with the whole text, numbered without a gap, an event where it went on, and the
    connection serves the next turn."""
    async with (
        faulty_pair(router) as faulty,
        AsyncOpenAI(base_url=router.url + "/v1", api_key="-", max_retries=0) as client,
        client.responses.connect() as connection,
    ):
        faulty.faults.append(Fault(drop_after=3))
        await connection.response.create(model="m", input=SAID)
        seen = []
        while not seen or seen[-1].type not in LAST:
            seen.append(await connection.recv())
        assert seen[-1].type == "response.completed"
        assert seen[-1].response.output_text == f"echo: {SAID}"
        told = [event.delta for event in seen if event.type == "response.output_text.delta"]
        assert "".join(told) == f"echo: {SAID}"
        kinds = [event.type for event in seen]
        assert kinds.count("response.sessile.continued") == 1
        assert kinds.count("response.output_item.added") == 1
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert faulty.asked == 2
        previous = seen[-1].response.id
        await connection.response.create(model="m", input="On.", previous_response_id=previous)
        while (event := await connection.recv()).type not in LAST:
            pass
        assert event.response.output_text == "echo: On."


async def test_redis_gone_under_a_turn(
    start: Any, store: Any, redis_server: Any, http: httpx2.AsyncClient
) -> None:
    """The turn ends as if nothing had happened; so does one that follows it while Redis is away,
    and once it is back another router tells the whole of that."""
    one, two = await pair(start, store)
    away, back = asyncio.Event(), asyncio.Event()
    async with connect(one.ws_url) as ws:
        one.engine.plays("a", away, "b", finish())
        await ask(ws)
        events = await read_until(ws, lambda told: text(told) == "a")
        redis_server.kill()
        await one.until(lambda: not one.app.store.available and not two.app.store.available)
        away.set()
        events += await read_until(ws, has_ended)
        assert text(events) == "ab" and numbers(events) == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        one.engine.plays("c", back, "d", finish())
        await ask(ws, previous_response_id=events[-1]["response"]["id"], input="On.")
        events = await read_until(ws, lambda told: text(told) == "c")
        redis_server.start()
        await one.until(lambda: one.app.store.available and two.app.store.available)
        back.set()
        events += await read_until(ws, has_ended)
        assert text(events) == "cd" and numbers(events) == list(range(len(events)))
        said = [m["content"] for m in one.engine.asked[-1]["messages"]]
        assert said == ["Hi", "ab", "On."]
    response = events[-1]["response"]["id"]
    await one.until(lambda: one.app.responses.turns.writer.find("default", response) is None)
    assert await replayed(http, two, response) == events


async def ask(ws: ClientConnection, **fields: Any) -> None:
    await ws.send(json.dumps({"type": "response.create", "model": "m", "input": "Hi", **fields}))


async def read_until(
    ws: ClientConnection, enough: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    """What is told next, until it is enough."""
    told: list[dict[str, Any]] = []
    while not enough(told):
        told.append(json.loads(await ws.recv()))
    return told


def has_ended(told: list[dict[str, Any]]) -> bool:
    return bool(told) and told[-1]["type"] in (*TERMINAL, "error")
