"""Routers of one store know of each other's work."""

import asyncio
from typing import Any

import httpx2
import pytest

from sessile.exchange import Exchange

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def http():
    """A client without a router of its own; tests give whole URLs."""
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


def outlook(router: Any) -> Any:
    """What the router expects of the one replica."""
    return router.app.pool.get("one").outlook


async def test_two_routers_see_each_others_running_turns(start, http, redis_server):
    """A turn at one router is foreign work at the other, until it ends."""
    store = {"url": redis_server.url}
    one = await start(store=store)
    two = await start(beside=one, store=store)
    hold = asyncio.Event()
    one.engine.plays(hold, "done")
    running = asyncio.create_task(http.post(one.url + CHAT, json=BODY))
    await two.until(lambda: outlook(two).foreign_running == 1)
    assert outlook(two).foreign_tokens > 0 and outlook(two).foreign_work > 0
    assert outlook(one).foreign_running == 0
    hold.set()
    await running
    await two.until(lambda: outlook(two).foreign_running == 0)
    assert outlook(two).foreign_work == 0


async def test_a_router_that_stops_telling_is_forgotten(start, redis_server):
    """Its report lives for a few seconds; then its work is nobody's."""
    one = await start(store={"url": redis_server.url})
    pool = (await start(beside=one)).app.pool  # of a store of its own: it tells nothing here
    pool.get("one").outlook.pending_work = 500.0
    gone = Exchange(pool, one.app.flow._store)
    await gone.once()
    await one.until(lambda: outlook(one).foreign_work == 500.0)
    await one.until(lambda: outlook(one).foreign_work == 0)
