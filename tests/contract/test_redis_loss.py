"""A Redis that dies, falls silent or comes back: calls end at once, what is lost is counted."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sessile.errors import StoreUnavailable
from sessile.sessions.record import SessionKey
from stored_sessions import KEY, OpenStore, ends, every_call


async def until(true: Callable[[], bool]) -> None:
    """Wait for what must come true; the test's own time-out says that it did not."""
    while not true():  # noqa: ASYNC110 - the store tells nobody
        await asyncio.sleep(0.005)


async def test_a_killed_server(open_store: OpenStore, redis_server: Any) -> None:
    """Every call fails at once while it is gone; restarted empty at the same socket, it serves."""
    store = await open_store()
    binding = (await store.claim(KEY, "r1", "i1")).binding
    redis_server.kill()
    found = await every_call(store)
    assert all(isinstance(one, StoreUnavailable) for one in found), found
    assert not store.available
    with pytest.raises(StoreUnavailable):
        await store.claim(KEY, "r1", "i1")
    redis_server.start()
    await until(lambda: store.available)
    assert await store.refresh(KEY, binding) is None
    assert (await store.claim(KEY, "r2", "i2")).won


async def test_killed_under_load(open_store: OpenStore, redis_server: Any) -> None:
    """Killed with calls on the way, each of them ends with an answer or `StoreUnavailable`."""
    store = await open_store()

    async def caller(n: int) -> int:
        failures = 0
        for turn in range(200):
            key = SessionKey("acme", "m", f"s{n}-{turn}")
            try:
                assert (await store.claim(key, "r", "i")).won
            except StoreUnavailable:
                failures += 1
                await asyncio.sleep(0.001)
        return failures

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(caller(n)) for n in range(16)]
        await asyncio.sleep(0.02)
        redis_server.kill()
        redis_server.start()
    assert sum(one.result() for one in callers) > 0
    await until(lambda: store.available)


async def test_a_silent_server(open_store: OpenStore, redis_server: Any) -> None:
    """A server that accepts and never answers makes every call fail, none hang; then it serves."""
    store = await open_store(timeout_s=0.1)
    redis_server.pause()
    async with asyncio.timeout(30):
        found = await every_call(store)
        assert all(isinstance(one, StoreUnavailable) for one in found), found
        found = await every_call(store)
        assert all(isinstance(one, StoreUnavailable) for one in found), found
    redis_server.resume()
    await until(lambda: store.available)
    await store.claim(SessionKey("acme", "m", "new"), "r1", "i1")


async def test_closing_on_a_silent_server(open_store: OpenStore, redis_server: Any) -> None:
    """A store closes also while the server is silent, and says what was lost."""
    store = await open_store(timeout_s=0.1)
    for n in range(5):
        store.end_turn(*ends(f"t{n}"))
    redis_server.pause()
    async with asyncio.timeout(30):
        await store.aclose()
    assert store.lost_writes == 5
    assert not store.available
    with pytest.raises(StoreUnavailable):
        await store.claim(KEY, "r", "i")


async def test_closing_with_calls_on_the_way(open_store: OpenStore, redis_server: Any) -> None:
    """Calls that a closing store can no longer serve fail; none is left waiting."""
    store = await open_store(timeout_s=0.1)
    redis_server.pause()
    calls = [asyncio.create_task(store.claim(KEY, "r", "i")) for _ in range(3)]
    await asyncio.sleep(0)
    await store.aclose()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, StoreUnavailable) for one in found), found


@pytest.mark.parametrize("silent", [False, True])
async def test_opening_without_a_server(
    open_store: OpenStore, redis_server: Any, silent: bool
) -> None:
    """A store whose server is gone or silent opens degraded, and recovers by itself."""
    if silent:
        redis_server.pause()
    else:
        redis_server.kill()
    store = await open_store(timeout_s=0.1)
    assert not store.available
    with pytest.raises(StoreUnavailable):
        await store.claim(KEY, "r", "i")
    if silent:
        redis_server.resume()
    else:
        redis_server.start()
    await until(lambda: store.available)
    assert (await store.claim(KEY, "r", "i")).won


async def test_a_lost_cluster(redis_cluster: Any, open_store: OpenStore) -> None:
    """A silent Cluster makes calls fail, none hang; once it answers again the store serves."""
    store = await open_store(redis_cluster.url, timeout_s=0.2)
    await store.claim(KEY, "r", "i")
    redis_cluster.pause()
    try:
        async with asyncio.timeout(30):
            found = await every_call(store)
            assert all(isinstance(one, StoreUnavailable) for one in found), found
    finally:
        redis_cluster.resume()
    await until(lambda: store.available)
    assert (await store.claim(KEY, "r2", "i2")).binding.replica == "r"


async def test_a_killed_cluster(tmp_path: Any, redis_cluster: Any, open_store: OpenStore) -> None:
    """A Cluster that dies fails its calls with `StoreUnavailable`, and nothing else."""
    server = type(redis_cluster)(tmp_path, cluster=True)
    server.start()
    try:
        store = await open_store(server.url)
        await store.claim(KEY, "r", "i")
        server.kill()
        for _ in range(3):
            found = await every_call(store)
            assert all(isinstance(one, StoreUnavailable) for one in found), found
            await asyncio.sleep(0.02)
        server.start()
        await until(lambda: store.available)
        assert (await store.claim(KEY, "r", "i")).won
    finally:
        server.stop()


async def test_lost_writes_are_counted(open_store: OpenStore, redis_server: Any) -> None:
    """Turn ends that cannot be written are counted, each once, and nothing else is."""
    store = await open_store()
    redis_server.kill()
    for n in range(3):
        store.end_turn(*ends(f"t{n}", lineage=["a", "b", "c"]))
    await until(lambda: not store.available)
    assert store.lost_writes == 3
    store.end_turn(*ends("t4"))
    assert store.lost_writes == 4
    redis_server.start()
    await until(lambda: store.available)
    await store.commit_turn(*ends("t5"))
    assert store.lost_writes == 4
    assert await store.get_turn("acme", "t1") is None


async def test_a_full_queue_drops_and_counts(open_store: OpenStore, redis_server: Any) -> None:
    """Turn ends beyond the queue's bound are dropped and counted; memory does not grow."""
    store = await open_store(timeout_s=30.0)
    for n in range(10_100):
        store.end_turn(*ends(f"t{n}"))
    assert store.lost_writes == 100
    await store.aclose()
    assert store.lost_writes == 100


async def test_a_turn_that_cannot_be_encoded(open_store: OpenStore) -> None:
    """The end of such a turn is lost and counted; it neither raises nor harms the next."""
    store = await open_store()
    end, record = ends("t1")
    store.end_turn(end, msgspec.structs.replace(record, response={"a": object()}))
    store.end_turn(msgspec.structs.replace(end, parent="\ud800"), record)
    await store.commit_turn(*ends("t2"))
    await until(lambda: store.lost_writes == 2)
    assert store.available
    with pytest.raises(StoreUnavailable):
        await store.claim(KEY, "\ud800", "i")
    assert (await store.claim(KEY, "r", "i")).won
