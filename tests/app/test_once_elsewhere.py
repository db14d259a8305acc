"""A key is repeated at another router while its turn runs: it is told the same, once."""

import asyncio
import json
from typing import Any

import httpx2
import pytest

from stored_responses import ASK, Stream, ended, finish, pair

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
UNLOGGED = [
    ("responses", {"model": "m", "input": "Hi", "store": False}),
    ("chat/completions", CHAT),
    ("messages", {**CHAT, "max_tokens": 9}),
]
"""What is in no log, and so cannot be followed: its end is waited for."""
KEY = {"Idempotency-Key": "k"}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_repeated_key_follows_the_running_turn(
    start: Any, store: Any, http: httpx2.AsyncClient, stream: bool
) -> None:
    """At another router, from its first event on; the engine is asked once."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", finish())
    async with http.stream("POST", f"{one.url}/v1/responses", json=ASK, headers=KEY) as answer:
        first = Stream(answer)
        await first.until("response.output_text.delta")
        await asyncio.sleep(0.05)
        body = {**ASK, "stream": stream}
        asking = asyncio.create_task(http.post(f"{two.url}/v1/responses", json=body, headers=KEY))
        await asyncio.sleep(0.1)
        go.set()
        events, again = await first.rest(), await asking
    if stream:
        data = [line[6:] for line in again.text.splitlines() if line.startswith("data: ")]
        assert [json.loads(line) for line in data] == events
    else:
        assert again.json() == events[-1]["response"]
    assert len(one.engine.asked) == 1


async def test_a_repeated_key_in_the_background(
    start: Any, store: Any, http: httpx2.AsyncClient
) -> None:
    """Gives the response that it began, running or done."""
    one, two = await pair(start, store)
    go = asyncio.Event()
    one.engine.plays("Hel", go, "lo", finish())
    body = {"model": "m", "input": "Hi", "background": True}
    made = (await http.post(f"{one.url}/v1/responses", json=body, headers=KEY)).json()
    await one.until(lambda: one.engine.running == 1)
    again = (await http.post(f"{two.url}/v1/responses", json=body, headers=KEY)).json()
    assert again["id"] == made["id"]
    go.set()
    await ended(http, two, made["id"])
    done = (await http.post(f"{two.url}/v1/responses", json=body, headers=KEY)).json()
    assert (done["id"], done["status"]) == (made["id"], "completed")
    assert len(one.engine.asked) == 1


@pytest.mark.parametrize(("path", "fields"), UNLOGGED)
@pytest.mark.parametrize("stream", [True, False])
async def test_the_same_answer_is_given_once_it_is_there(
    start: Any, store: Any, http: httpx2.AsyncClient, path: str, fields: Any, stream: bool
) -> None:
    """Nothing before the turn has ended, and then, byte for byte, what the first was told; the
    engine is asked once."""
    one, two = await pair(start, store)
    gate = asyncio.Event()
    one.engine.plays("Hel", gate, "lo", finish())
    body = {**fields, "stream": stream}
    first = asyncio.create_task(http.post(f"{one.url}/v1/{path}", json=body, headers=KEY))
    await one.until(lambda: one.engine.running == 1)
    repeats = [
        asyncio.create_task(http.post(f"{router.url}/v1/{path}", json=body, headers=KEY))
        for router in (two, two, one)
    ]
    await asyncio.sleep(0.1)
    assert not any(repeat.done() for repeat in repeats) and len(one.engine.asked) == 1
    gate.set()
    told, *same = await asyncio.gather(first, *repeats)
    assert told.status_code == 200 and "lo" in told.text
    for answer in same:
        assert (answer.status_code, answer.content) == (200, told.content)
        for name in ("content-type", "x-sessile-turn"):
            assert answer.headers[name] == told.headers[name]
    assert len(one.engine.asked) == 1
