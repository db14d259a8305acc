"""What the contract tests share: session stores with a way to let time pass, and pages that are no
answer to anything."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from recorded_engines import KINDS
from sessile.errors import ReplicaRefused
from sessile.router.engine import Engine, Reply
from sessile.sessions.memory_store import MemoryStore
from sessile.sessions.redis_store import RedisStore
from sessile.sessions.store import Store, StoreLimits
from sessile.sessions.stream_log import LogLimits
from stored_sessions import OpenStore

EVENTS = LogLimits(ttl_s=1000, lease_s=100, most_events=40, most_bytes=20_000)
GARBAGE = {
    "500": Reply(500, b'{"error": "no"}'),
    "html": Reply(200, b"<html><body>It works!</body></html>"),
    "not utf-8": Reply(200, b"\xff\xfe\x00"),
    "not an object": Reply(200, b'"ok"'),
}
LIMITS = StoreLimits(
    ttl_s=4000, binding_ttl_s=1000, turn_ttl_s=3000, idempotency_ttl_s=500, events=EVENTS
)


class Bench:
    """One kind of store: `store` is open, `another()` opens a second one on the same facts."""

    def __init__(
        self,
        store: Store,
        another: Callable[[], Awaitable[Store]],
        elapse: Callable[[float], Awaitable[None]],
    ) -> None:
        self.store = store
        self.another = another
        self.elapse = elapse


@pytest.fixture(params=KINDS)
def kind(request: Any) -> str:
    """Every kind of engine that was recorded, in turn."""
    return str(request.param)


@pytest.fixture(params=GARBAGE.values(), ids=GARBAGE)
def garbage(request: Any) -> Reply:
    """Every page that is no answer, in turn."""
    page: Reply = request.param
    return page


@pytest.fixture
def refuses(garbage: Reply) -> Callable[[Engine, tuple[Reply, ...], tuple[Reply, ...]], None]:
    """Asserts that an engine's adapter refuses a replica, and raises nothing else, whichever page
    of its identity or load is not what it should be."""

    def check(adapter: Engine, identity: tuple[Reply, ...], load: tuple[Reply, ...]) -> None:
        for place in range(len(identity)):
            with pytest.raises(ReplicaRefused, match="its /"):
                adapter.read_identity((*identity[:place], garbage, *identity[place + 1 :]))
        for place in range(len(load)):
            with pytest.raises(ReplicaRefused, match="its /"):
                adapter.read_load((*load[:place], garbage, *load[place + 1 :]), 1000.0)

    return check


@pytest.fixture(params=["memory", "redis", "cluster"])
async def bench(request: Any) -> AsyncIterator[Bench]:
    """Every kind of store in turn."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield _memory()
            return
        server = request.getfixturevalue(
            "redis_cluster" if request.param == "cluster" else "redis_server"
        )

        async def another() -> Store:
            # Generous: these tests are of what is kept, also on a machine that stalls.
            store = RedisStore(server.url, LIMITS, timeout_s=5.0, retry_after_s=0.05)
            await store.open()
            stack.push_async_callback(store.aclose)
            return store

        async def elapse(seconds: float) -> None:
            await age(server.socket_url, seconds)

        yield Bench(await another(), another, elapse)


@pytest.fixture
def store(bench: Bench) -> Store:
    """An open store of every kind in turn."""
    return bench.store


@pytest.fixture
async def open_store(redis_server: Any) -> AsyncIterator[OpenStore]:
    """Opens stores on the private server; they are closed, whatever the server does by then."""
    async with AsyncExitStack() as stack:

        async def open_store(url: str = redis_server.url, **changes: Any) -> RedisStore:
            store = RedisStore(
                url, StoreLimits(), **{"timeout_s": 1.0, "retry_after_s": 0.05, **changes}
            )
            stack.push_async_callback(store.aclose)
            await store.open()
            return store

        yield open_store


def _memory() -> Bench:
    now = [1_000_000.0]
    store = MemoryStore(LIMITS, clock=lambda: now[0])

    async def another() -> Store:
        return store

    async def elapse(seconds: float) -> None:
        now[0] += seconds

    return Bench(store, another, elapse)


async def age(url: str, seconds: float) -> None:
    """Bring every key's end nearer, and that of every lease, as if time had passed: no test
    has to sleep."""
    async with Redis.from_url(url) as client:
        async for key in client.scan_iter():
            if key.endswith(b":events") or key.startswith(b"sessile:once:"):
                await client.hincrby(key, "until", -round(seconds * 1000))
            left_ms = await client.pttl(key)
            await client.pexpire(key, left_ms - round(seconds * 1000))
