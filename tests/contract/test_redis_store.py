"""What only a store in a server has: scripts, keys, expiries and batches."""

import asyncio
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from sessile.errors import SettingsError, TurnLockLost
from sessile.sessions.conversation import ConversationRecord
from sessile.sessions.record import Binding, SessionKey, SessionRecord, TurnRecord
from sessile.sessions.redis_store import RedisStore
from sessile.sessions.store import HeldKey, OnceKey, StoredResult, StoreLimits, TurnEnd
from sessile.sessions.stream_log import Accept, Batch
from stored_sessions import KEY, OpenStore, ends, every_call


async def test_a_server_that_forgot_the_scripts(open_store: OpenStore, redis_server: Any) -> None:
    """A server that has lost the scripts is taught them again, in the middle of a batch."""
    store = await open_store()
    await store.claim(KEY, "r1", "i1")
    redis_server.ask("SCRIPT FLUSH")
    found = await every_call(store)
    assert not any(isinstance(one, BaseException) for one in found), found
    assert store.available


async def test_a_stale_turn_after_a_restart(open_store: OpenStore, redis_server: Any) -> None:
    """Numbers from before the server lost everything stay stale: they grow over a restart."""
    store = await open_store()
    old = await store.acquire(KEY, "t1", 60)
    redis_server.ask("FLUSHALL")
    new = await store.acquire(KEY, "t2", 60)
    assert old is not None and new is not None and new > old
    with pytest.raises(TurnLockLost):
        await store.commit_turn(*ends("t1", fence=old))
    await store.commit_turn(*ends("t2", fence=new))


async def test_without_any_newer_number_a_turn_commits(
    open_store: OpenStore, redis_server: Any
) -> None:
    """A turn whose lock the server forgot, and that nobody followed, is written."""
    store = await open_store()
    fence = await store.acquire(KEY, "t1", 60)
    redis_server.ask("FLUSHALL")
    await store.commit_turn(*ends("t1", fence=fence))
    assert await store.get_turn("acme", "t1") is not None


async def test_every_key_has_an_expiry(open_store: OpenStore, redis_server: Any) -> None:
    """Nothing is kept for ever, and all of it is under one prefix."""
    store = await open_store()
    record = SessionRecord(tenant="acme", session="made", model="m", metadata={"a": 1})
    await store.create_session(record)
    claim = await store.claim(KEY, "r1", "i1")
    fence = await store.acquire(KEY, "t1", 60)
    await store.commit_turn(
        *ends("t1", binding=claim.binding, fence=fence, lineage=["k1", "k2"], prompt_tokens=3)
    )
    await store.rebind(KEY, claim.binding, "r2", "i2")
    await store.begin_once("acme", OnceKey("k"), "t1")
    await store.begin_once("acme", OnceKey("k2"), "t1")
    await store.end_once(HeldKey("acme", "k", "t1"), StoredResult("t1", 200, "text/plain", b"x"))
    await store.close_session(KEY)
    await store.exchange("one", b"report", 2.0, news=b"news")
    conversation = ConversationRecord(tenant="acme", id="conv_1", created_at=1)
    await store.conversations.create(conversation, [{"id": "a"}])
    await store.conversations.append("acme", "conv_1", [{"id": "b"}])
    batch = Batch(tenant="acme", turn="t1", fence=1, first=0, accept=Accept("one", b"record"))
    await store.events.append([batch, msgspec.structs.replace(batch, events=[b"e"], accept=None)])
    async with Redis.from_url(redis_server.url) as client:
        keys = [key async for key in client.scan_iter()]
        assert len(keys) >= 13
        for key in keys:
            assert key.startswith(b"sessile:")
            assert await client.pttl(key) > 0, key


async def test_odd_ids_stand_in_no_key(open_store: OpenStore, redis_server: Any) -> None:
    """Keys stay short and plain, whatever ids the clients make up."""
    store = await open_store()
    odd = "{x}\r\n " + "ü" * 9000
    key = SessionKey(odd, odd, odd)
    record = TurnRecord(turn=odd, tenant=odd, session=odd, model=odd)
    await store.claim(key, "r", "i")
    await store.acquire(key, "t", 60)
    await store.commit_turn(TurnEnd(key=key, turn=odd, binding=None, lineage=["k"]), record)
    await store.begin_once(odd, OnceKey(odd), odd)
    assert await store.get_turn(odd, odd) == record
    async with Redis.from_url(redis_server.url) as client:
        for name in [name async for name in client.scan_iter()]:
            assert len(name) < 120 and name.decode().isascii() and b" " not in name


async def test_the_recent_sessions_are_bounded(open_store: OpenStore, redis_server: Any) -> None:
    """A tenant's index of sessions keeps the most recent, and no more than its bound."""
    store = await open_store(most_recent=10)
    for n in range(25):
        key = SessionKey("acme", "m", f"s{n}")
        record = TurnRecord(turn=f"t{n}", tenant="acme", session=key.session, model="m")
        await store.commit_turn(TurnEnd(key=key, turn=f"t{n}", binding=None), record)
    listed = [record.session for record in await store.list_sessions("acme", 100)]
    assert listed == [f"s{n}" for n in range(24, 14, -1)]


async def test_news_of_a_server_whose_clock_is_behind(
    open_store: OpenStore, redis_server: Any
) -> None:
    """One that takes over, empty, is heard from its first news on."""
    store = await open_store()
    ahead = f"{10**15}-0"
    told = await store.exchange("one", b"r", 60.0, news=b"1", seen=ahead)
    assert told.news == []  # its own
    told = await store.exchange("two", b"r", 60.0, seen=ahead)
    assert told.news == [("one", b"1")]
    assert (await store.exchange("two", b"r", 60.0, seen=told.seen)).news == []


async def test_news_are_forgotten_in_time_and_told_by_the_megabyte(
    open_store: OpenStore, redis_server: Any
) -> None:
    """What is kept depends on how long it lives, not on how much is told; what is too much for one
    call is left for the next."""
    store = await open_store()
    for number in range(40):
        await store.exchange("one", b"r", 0.01, news=b"%d" % number)
        await asyncio.sleep(0.01)
    assert int(redis_server.ask("XLEN sessile:{reports}:news").strip(":\r\n")) < 20
    for _ in range(3):
        await store.exchange("one", b"r", 60.0, news=b"x" * 900_000)
    sizes, seen = [], ""
    for _ in range(3):
        told = await store.exchange("two", b"r", 60.0, seen=seen)
        sizes.append(sum(len(news) for _, news in told.news) // 900_000)
        seen = told.seen
    assert sizes == [2, 1, 0]


async def test_calls_of_one_tick_share_a_round_trip(
    open_store: OpenStore, redis_server: Any
) -> None:
    """A hundred claims at once reach the server in few reads, not in a hundred."""
    store = await open_store()
    await store.claim(KEY, "r", "i")

    def reads() -> int:
        stats = redis_server.ask("INFO stats")
        return int(stats.split("total_reads_processed:")[1].split()[0])

    before = reads()
    await asyncio.gather(
        *(store.claim(SessionKey("acme", "m", f"s{n}"), "r", "i") for n in range(100))
    )
    assert reads() - before < 20


async def test_a_burst_of_many_batches(open_store: OpenStore) -> None:
    """More calls at once than one batch takes are all answered."""
    store = await open_store(timeout_s=5.0)
    claims = await asyncio.gather(
        *(store.claim(SessionKey("acme", "m", f"s{n}"), "r", "i") for n in range(3500))
    )
    assert all(claim.won for claim in claims)


async def test_cancelled_calls_leave_the_others_alone(open_store: OpenStore) -> None:
    """A caller that gives up in the middle of a batch gets nobody else's answer mixed up."""
    store = await open_store()
    for n in range(20):
        keys = [SessionKey("acme", "m", f"s{n}-{i}") for i in range(10)]
        calls = [asyncio.create_task(store.claim(key, key.session, "i")) for key in keys]
        for _ in range(n % 3):
            await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        claims = await asyncio.gather(*calls, return_exceptions=True)
        for key, claim in list(zip(keys, claims, strict=True))[1::2]:
            assert not isinstance(claim, BaseException) and claim.binding.replica == key.session


async def test_two_stores_agree_on_one_binding(open_store: OpenStore) -> None:
    """Routers that keep claiming and moving one session always follow one line of epochs."""
    stores = [await open_store(), await open_store()]
    line: dict[int, Binding] = {}

    async def router(n: int) -> int:
        moves = 0
        seen = (await stores[n % 2].claim(KEY, f"r{n}", "i")).binding
        for _ in range(30):
            assert line.setdefault(seen.epoch, seen) == seen
            moved = await stores[n % 2].rebind(KEY, seen, f"r{n}", f"i{n}")
            assert moved.epoch > seen.epoch
            moves += moved == Binding(f"r{n}", f"i{n}", seen.epoch + 1)
            seen = moved
        return moves

    moves = await asyncio.gather(*(router(n) for n in range(8)))
    last = (await stores[0].claim(KEY, "x", "i")).binding
    assert sum(moves) == last.epoch - 1


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://x", "redis://x:port", "redis-sentinel://x", "unix:"]
)
def test_urls_that_name_no_server(url: str) -> None:
    """A URL that cannot be used is refused before anything is opened."""
    with pytest.raises(SettingsError, match=r"store\.url"):
        RedisStore(url, StoreLimits())
