"""What only a store in a server has: loss, silence, return, expiries, slots and queues."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from sessile.errors import SettingsError, StoreUnavailable, TurnLockLost
from sessile.sessions.conversation import ConversationRecord
from sessile.sessions.memory_store import MemoryStore
from sessile.sessions.record import Binding, SessionKey, SessionRecord, TurnRecord
from sessile.sessions.redis_store import RedisStore
from sessile.sessions.store import OnceKey, Store, StoredResult, StoreLimits, TurnEnd
from sessile.sessions.stream_log import Accept, Batch

KEY = SessionKey("acme", "m", "s")
LIMITS = StoreLimits()

OpenStore = Callable[..., Awaitable[RedisStore]]


@pytest.fixture
async def open_store(redis_server: Any) -> AsyncIterator[OpenStore]:
    """Opens stores on the private server; they are closed, whatever the server does by then."""
    async with AsyncExitStack() as stack:

        async def open_store(url: str = redis_server.url, **changes: Any) -> RedisStore:
            store = RedisStore(url, LIMITS, **{"timeout_s": 1.0, "retry_after_s": 0.05, **changes})
            stack.push_async_callback(store.aclose)
            await store.open()
            return store

        yield open_store


def ends(turn: str, **changes: Any) -> tuple[TurnEnd, TurnRecord]:
    """The two arguments that end `turn`."""
    record = TurnRecord(turn=turn, tenant="acme", session="s", model="m")
    return TurnEnd(key=KEY, turn=turn, **{"binding": None, **changes}), record


async def until(true: Callable[[], bool]) -> None:
    """Wait for what must come true; the test's own time-out says that it did not."""
    while not true():  # noqa: ASYNC110 - the store tells nobody
        await asyncio.sleep(0.005)


async def every_call(store: Store) -> list[BaseException | object]:
    """What each awaited method gives or raises, all of them called at once."""
    binding = Binding("r", "i", 1)
    record = SessionRecord(tenant="acme", session="s", model="m")
    return await asyncio.gather(
        store.claim(KEY, "r", "i"), store.refresh(KEY, binding),
        store.rebind(KEY, binding, "r2", "i"), store.acquire(KEY, "t", 1), store.release(KEY, "t"),
        store.commit_turn(*ends("t")), store.get_turn("acme", "t"), store.create_session(record),
        store.get_session(KEY), store.find_session("acme", "s"), store.close_session(KEY),
        store.list_sessions("acme", 5), store.find_lineage("acme", "m", ["k"]),
        store.begin_once("acme", OnceKey("k"), "t"), store.end_once("acme", "k", None),
        return_exceptions=True,
    )  # fmt: skip


# -- the server goes and comes back


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


# -- scripts


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


# -- keys


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
    await store.end_once("acme", "k", StoredResult("t1", 200, "text/plain", b"x"))
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


# -- batches and queues


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


# -- URLs


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://x", "redis://x:port", "redis-sentinel://x", "unix:"]
)
def test_urls_that_name_no_server(url: str) -> None:
    """A URL that cannot be used is refused before anything is opened."""
    with pytest.raises(SettingsError, match=r"store\.url"):
        RedisStore(url, LIMITS)


# -- the same as the reference, whatever is done

_SESSIONS = st.sampled_from(["s1", "s2"])
_REPLICAS = st.sampled_from(["r1", "r2"])
_BINDINGS = st.builds(Binding, _REPLICAS, st.just("i"), st.integers(1, 4))
_COUNTS = st.none() | st.integers(0, 10_000)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), _SESSIONS, _REPLICAS),
        st.tuples(st.just("refresh"), _SESSIONS, _BINDINGS),
        st.tuples(st.just("rebind"), _SESSIONS, _BINDINGS, _REPLICAS),
        st.tuples(st.just("acquire"), _SESSIONS, st.sampled_from(["t1", "t2"])),
        st.tuples(st.just("release"), _SESSIONS, st.sampled_from(["t1", "t2"])),
        st.tuples(st.just("end"), _SESSIONS, st.none() | _BINDINGS, _COUNTS, _COUNTS,
                  st.booleans(), st.none() | st.just("p"), st.booleans()),
        st.tuples(st.just("create"), _SESSIONS),
        st.tuples(st.just("close"), _SESSIONS),
        st.tuples(st.just("list")),
        st.tuples(st.just("lineage"), st.lists(st.sampled_from(["s1", "s2"]), max_size=2)),
        st.tuples(st.just("once"), st.sampled_from(["t1", "t2"])),
        st.tuples(st.just("answer"), st.booleans()),
    ),
    max_size=30,
)  # fmt: skip


class Player:
    """Plays steps on one store, in a tenant of its own, and tells what each of them gave."""

    def __init__(self, store: Store, tenant: str) -> None:
        self.store = store
        self.tenant = tenant
        self.fences: list[int] = []
        self.turns = 0

    async def play(self, step: Any) -> Any:
        store, tenant, (what, *args) = self.store, self.tenant, step
        key = SessionKey(tenant, "m", args[0]) if args and isinstance(args[0], str) else KEY
        match what:
            case "claim":
                return await store.claim(key, args[1], "i")
            case "refresh":
                return await store.refresh(key, args[1])
            case "rebind":
                return await store.rebind(key, args[1], args[2], "i")
            case "acquire":
                fence = await store.acquire(key, args[1], 60)
                if fence is not None:
                    self.fences.append(fence)
                return fence is not None
            case "release":
                return await store.release(key, args[1])
            case "end":
                return await self._end(key, *args[1:])
            case "create":
                record = SessionRecord(tenant=tenant, session=args[0], model="m", created_at=1.0)
                return await store.create_session(record)
            case "close":
                return await store.close_session(key)
            case "list":
                return [_timeless(record) for record in await store.list_sessions(tenant, 5)]
            case "lineage":
                return await store.find_lineage(tenant, "m", args[0])
            case "once":
                return await store.begin_once(tenant, OnceKey("k"), args[0])
            case _:
                result = StoredResult("t", 200, "x", b"y") if args[0] else None
                return await store.end_once(tenant, "k", result)

    async def _end(
        self, key: SessionKey, binding: Binding | None, prompt: int | None, completion: int | None,
        stateful: bool, parent: str | None, fenced: bool,
    ) -> Any:  # fmt: skip
        self.turns += 1
        turn = f"t{self.turns}"
        end = TurnEnd(
            key=key, turn=turn, binding=binding, stateful=stateful, prompt_tokens=prompt,
            cached_tokens=prompt, completion_tokens=completion, parent=parent,
            lineage=[key.session], fence=self.fences[0] if fenced and self.fences else None,
        )  # fmt: skip
        record = TurnRecord(turn=turn, tenant=self.tenant, session=key.session, model="m")
        try:
            await self.store.commit_turn(end, record)
            lost = False
        except TurnLockLost:
            lost = True
        kept = await self.store.get_turn(self.tenant, turn)
        found = await self.store.get_session(key)
        return (
            lost,
            kept and msgspec.structs.replace(kept, tenant=""),
            found and _timeless(found),
        )


def _timeless(record: SessionRecord) -> SessionRecord:
    return msgspec.structs.replace(record, tenant="", created_at=0, last_turn_at=0)


_tenants = iter(range(10**9))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
async def test_same_as_the_reference(open_store: OpenStore, steps: list[Any]) -> None:
    """Whatever is done in whatever order, Redis answers what the memory store answers."""
    tenant = f"tenant{next(_tenants)}"
    redis = await open_store()
    ours, reference = Player(redis, tenant), Player(MemoryStore(LIMITS), tenant)
    for step in steps:
        assert await ours.play(step) == await reference.play(step), step
    await redis.aclose()
