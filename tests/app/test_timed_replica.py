"""A replica that models a KV cache: what it counts as cached, forgets, and says of itself."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest

from sessile.engines.kinds import engine
from sessile.lab.sim_engine import Hardware
from sessile.lab.timed_replica import TimedReplica
from sessile.router.engine import Reply

FAST = Hardware(kv_tokens=8_000, prefill_rate=200_000.0, decode_s=0.0001, base_s=0.001)
SLOW = Hardware(kv_tokens=8_000, prefill_rate=200.0, decode_s=0.0001, base_s=0.001)


@pytest.fixture
async def timed(serve: Any) -> AsyncIterator[Callable[[Hardware], Awaitable[httpx2.AsyncClient]]]:
    """Serves one; gives a client of it."""
    async with AsyncExitStack() as stack:

        async def timed(hardware: Hardware) -> httpx2.AsyncClient:
            _, url = await serve(TimedReplica(hardware, "one"))
            client = httpx2.AsyncClient(base_url=url, trust_env=False)
            return await stack.enter_async_context(client)

        yield timed


async def ask(http: httpx2.AsyncClient, text: str, **fields: Any) -> Any:
    """The usage of one turn."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}
    reply = await http.post("/v1/chat/completions", json=body)
    return reply.json()["usage"]


def cached(usage: Any) -> int:
    """Its cached tokens."""
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def test_what_was_served_is_cached_until_its_room_is_needed(timed):
    """Leading blocks of 1,024 bytes, the least recently used leave first."""
    http = await timed(FAST)
    first = await ask(http, "a" * 12_000)
    assert (cached(first), first["prompt_tokens"]) == (0, 3001)
    assert cached(await ask(http, "a" * 12_000 + "b" * 4_000)) == 11 * 256
    await ask(http, "c" * 24_000)
    assert cached(await ask(http, "a" * 12_000)) == 256 * 7  # what its end has left


async def test_a_client_that_hangs_up_gives_its_memory_back(timed):
    """The prompt that was prefilled is forgotten, the next one begins."""
    http = await timed(SLOW)
    with pytest.raises(httpx2.ReadTimeout):
        await http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "a" * 9_000}]},
            timeout=0.2,
        )  # fmt: skip
    running = 1
    while running:
        (load,) = (await http.get("/v1/loads")).json()["loads"]
        running = load["num_running_reqs"]


async def test_it_says_what_sglang_says(timed):
    """Its model, its start and its memory are read by that engine's adapter."""
    http = await timed(FAST)
    sglang = engine("sglang")

    async def replies(calls: Any) -> tuple[Reply, ...]:
        found = [await http.request(call.method, call.path) for call in calls]
        return tuple(Reply(reply.status_code, reply.content) for reply in found)

    identity = sglang.read_identity(await replies(sglang.identity_calls()))
    assert identity.models == ("timed",) and identity.incarnation
    load = sglang.read_load(await replies(sglang.load_calls()), 0.0)
    assert (load.capacity_tokens, load.slots, load.running) == (8_000, 64, 0)
