"""Requests that an engine goes on with when nobody reads them: found, stopped and counted."""

import asyncio
from contextlib import AsyncExitStack

import httpx2
import pytest

from sessile.lab.fake_replica import Fault, serve_fake
from sessile.router.replica import ReplicaSpec

CHAT = "/v1/chat/completions"
ENDLESS = {
    "model": "m", "stream": True, "max_tokens": 100_000,
    "messages": [{"role": "user", "content": "word " * 50_000}],
}  # fmt: skip


@pytest.fixture
async def site(start):
    """Two routers before one replica that looks at it often, and does not notice hang-ups."""
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(
            serve_fake(model="m", always=Fault(pause_s=0.01), deaf=True)
        )
        router = await start(router={"probe_interval_s": 0.05})
        await router.app.pool.remove("one")
        router.app.pool.add(ReplicaSpec(id="deaf", engine="sglang", url=fake.url))
        await router.until(lambda: len(router.app.pool.candidates("m")) == 1)
        router.fake = fake
        yield router


async def _hang_up(site) -> None:
    async with (
        httpx2.AsyncClient(timeout=30, trust_env=False) as http,
        http.stream("POST", site.url + CHAT, json=ENDLESS) as reply,
    ):
        async for _ in reply.aiter_bytes():
            break
    await site.until(lambda: all(r.in_flight == 0 for r in site.app.pool))


async def test_an_engine_that_missed_the_abort_is_told_again(site):
    """Deaf to the hang-up and to the first abort, it stops at the second; both are counted."""
    site.fake.misses_aborts = 1
    await _hang_up(site)
    await site.until(lambda: site.fake.running == 0)
    (replica,) = site.app.pool
    assert (replica.ghosts.found, replica.ghosts.aborted) == (1, 1)
    async with httpx2.AsyncClient(trust_env=False) as http:
        page = (await http.get(site.url + "/metrics")).text
    assert 'sessile_ghosts_total{kind="aborted",replica="deaf"} 1.0' in page


async def test_a_turn_that_is_read_is_no_ghost(site):
    """However long it runs."""
    (replica,) = site.app.pool
    async with (
        httpx2.AsyncClient(timeout=30, trust_env=False) as http,
        http.stream("POST", site.url + CHAT, json=ENDLESS) as reply,
    ):
        pieces = reply.aiter_bytes()
        for _ in range(50):
            await anext(pieces)
        assert replica.ghosts.found == 0
    await site.until(lambda: site.fake.running == 0)


async def test_what_nobody_of_us_sent_is_counted_and_left_alone(site):
    """A request that somebody sent to the engine itself is not ours to stop."""
    (replica,) = site.app.pool
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        asking = asyncio.create_task(
            http.post(site.fake.url + CHAT, json={**ENDLESS, "rid": "theirs", "max_tokens": 100})
        )
        await site.until(lambda: replica.ghosts.found == 1)
        assert (await asking).status_code == 200
    assert replica.ghosts.aborted == 0
