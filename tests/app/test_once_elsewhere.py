"""A key is repeated at another router while its turn runs: it is told the same, once."""

import asyncio
from typing import Any

import httpx2
import pytest

from stored_responses import finish, pair

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
UNLOGGED = [
    ("responses", {"model": "m", "input": "Hi", "store": False}),
    ("chat/completions", CHAT),
    ("messages", {**CHAT, "max_tokens": 9}),
]
"""What is in no log, and so cannot be followed: its end is waited for."""
KEY = {"Idempotency-Key": "k"}


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
