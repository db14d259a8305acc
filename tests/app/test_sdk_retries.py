"""OpenAI's client tries again by itself, under the key that its caller gave: one turn runs."""

import asyncio
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from bad_line import Line
from scripted_engine import STOP

KEY = {"Idempotency-Key": "k"}
BODIES = {
    "chat/completions": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
    "responses": {"model": "m", "input": "Hi"},
}


async def asked_by(client: AsyncOpenAI, path: str, **headers: str) -> str:
    """The answer that the client comes home with, as the router told it."""
    of: Any = client.responses if path == "responses" else client.chat.completions
    raw = await of.with_raw_response.create(**BODIES[path], extra_headers={**KEY, **headers})
    text: str = raw.http_response.text
    return text


def client_of(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=url + "/v1", api_key="-", max_retries=2)


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_that_was_lost_on_its_way_is_told_again(
    router: Any, http: httpx2.AsyncClient, path: str
) -> None:
    """The turn had ended: the second try is given its answer, without the engine."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", STOP)
    async with Line(router.url) as line, client_of(line.url) as client:
        asking = asyncio.create_task(asked_by(client, path))
        await router.until(lambda: router.engine.running == 1)
        line.dumb = True
        gate.set()
        # Who asks directly is given the same answer, once there is one.
        direct = await http.post(f"{router.url}/v1/{path}", json=BODIES[path], headers=KEY)
        assert direct.status_code == 200 and "Hello" in direct.text
        line.cut()
        line.dumb = False
        assert await asking == direct.text
    assert len(router.engine.asked) == 1


@pytest.mark.parametrize("path", BODIES)
async def test_a_line_that_broke_while_the_turn_ran(router: Any, path: str) -> None:
    """A turn that outlives its client is what the second try is given, once it ends."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", STOP)
    async with Line(router.url) as line, client_of(line.url) as client:
        detach = {"X-Sessile-On-Disconnect": "detach"}
        asking = asyncio.create_task(asked_by(client, path, **detach))
        await router.until(lambda: router.engine.running == 1)
        line.cut()
        await router.until(lambda: line.served == 2)
        gate.set()
        assert "Hello" in await asking
    assert len(router.engine.asked) == 1 and router.engine.aborted == 0


@pytest.mark.parametrize("path", BODIES)
async def test_a_replica_that_failed_the_first_try(
    router: Any, http: httpx2.AsyncClient, path: str
) -> None:
    """A failure is not kept under the key: the second try runs, once, and what it made is what the
    key gives from then on."""
    router.engine.refuses(503, "no")
    router.engine.says("Hel", "lo")
    async with client_of(router.url) as client:
        made = await asked_by(client, path)
        assert "Hello" in made and len(router.engine.asked) == 2
        again = await asked_by(client, path)
    assert again == made and len(router.engine.asked) == 2
