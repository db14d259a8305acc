"""What every session store must do, whatever it keeps its facts in."""

import asyncio
from typing import Any

import msgspec
import pytest

from sessile.errors import TurnLockLost
from sessile.sessions.record import Binding, Receipt, SessionKey, SessionRecord, TurnRecord
from sessile.sessions.store import (
    NEWS_AT_ONCE,
    Assignment,
    Claim,
    OnceKey,
    Running,
    Store,
    StoredResult,
    TurnEnd,
)

KEY = SessionKey("acme", "m", "s")
LONG = SessionKey("acme", "org/модель:7b {x}", "a\r\n{b} " + "ü" * 5000)


def ends(turn: str, key: SessionKey = KEY, **changes: Any) -> tuple[TurnEnd, TurnRecord]:
    """The two arguments that end `turn`."""
    record = TurnRecord(turn=turn, tenant=key.tenant, session=key.session, model=key.model)
    return TurnEnd(key=key, turn=turn, **{"binding": None, **changes}), record


async def ended(store: Store, turn: str, key: SessionKey = KEY, **changes: Any) -> None:
    """End a turn that nobody waits for, and wait until it is written."""
    store.end_turn(*ends(turn, key, **changes))
    while await store.get_turn(key.tenant, turn) is None:  # noqa: ASYNC110 (it is in a server)
        await asyncio.sleep(0.002)


# -- the binding


@pytest.mark.parametrize("key", [KEY, LONG])
async def test_first_claim_wins(store: Store, key: SessionKey) -> None:
    """The first claim binds at epoch 1; later ones are told of it and change nothing."""
    first = Binding("r1", "i1", 1)
    assert await store.claim(key, "r1", "i1") == Claim(first, True, "open", 0)
    assert await store.claim(key, "r2", "i2") == Claim(first, False, "open", 0)
    assert await store.claim(key, "r1", "i1") == Claim(first, False, "open", 0)


async def test_bindings_are_apart(store: Store) -> None:
    """Tenant, model and session each make a binding of its own, however they are spelled."""
    keys = [
        SessionKey("a", "b", "c"), SessionKey("a", "c", "b"), SessionKey("b", "a", "c"),
        SessionKey("ab", "", "c"), SessionKey("a", "bc", ""), SessionKey("", "ab", "c"),
    ]  # fmt: skip
    for n, key in enumerate(keys):
        assert (await store.claim(key, f"r{n}", "i")).won
    for n, key in enumerate(keys):
        assert (await store.claim(key, "other", "i")).binding.replica == f"r{n}"


async def test_odd_replica_names(store: Store) -> None:
    """A replica's name and incarnation come back as they were, whatever is in them."""
    claim = await store.claim(KEY, "http://[::1]:80/ü?a=b|c d", "")
    assert claim.binding == Binding("http://[::1]:80/ü?a=b|c d", "", 1)
    moved = await store.rebind(KEY, claim.binding, "r\n2", "{i}")
    assert moved == Binding("r\n2", "{i}", 2)


async def test_claim_renews_the_expiry(bench: Any) -> None:
    """A binding lives from its last claim on, and is then gone for good."""
    store: Store = bench.store
    await store.claim(KEY, "r1", "i1")
    await bench.elapse(700)
    await store.claim(KEY, "r2", "i2")
    await bench.elapse(700)
    assert (await store.claim(KEY, "r2", "i2")).binding.replica == "r1"
    await bench.elapse(1001)
    assert (await store.claim(KEY, "r2", "i2")).binding == Binding("r2", "i2", 1)


async def test_refresh(bench: Any) -> None:
    """It renews exactly the binding in force, tells of another's, and revives nothing."""
    store: Store = bench.store
    mine = (await store.claim(KEY, "r1", "i1")).binding
    await bench.elapse(700)
    assert await store.refresh(KEY, mine) == mine
    await bench.elapse(700)
    for other in (Binding("r1", "i1", 2), Binding("r1", "i2", 1), Binding("r2", "i1", 1)):
        assert await store.refresh(KEY, other) == mine
    await bench.elapse(301)
    assert await store.refresh(KEY, mine) is None
    assert await store.refresh(KEY, mine) is None
    assert (await store.claim(KEY, "r2", "i2")).won


async def test_rebind_compares_all_three(store: Store) -> None:
    """It moves only what it has seen: replica, incarnation and epoch."""
    seen = (await store.claim(KEY, "r1", "i1")).binding
    for wrong in (Binding("r2", "i1", 1), Binding("r1", "i2", 1), Binding("r1", "i1", 2)):
        assert await store.rebind(KEY, wrong, "r3", "i3") == seen
    moved = await store.rebind(KEY, seen, "r2", "i2")
    assert moved == Binding("r2", "i2", 2)
    assert await store.rebind(KEY, seen, "r3", "i3") == moved
    assert (await store.claim(KEY, "r3", "i3")).binding == moved


async def test_rebind_of_an_expired_binding(bench: Any) -> None:
    """What has expired is moved from the epoch that the caller saw, and lives on from there."""
    store: Store = bench.store
    seen = (await store.claim(KEY, "r1", "i1")).binding
    await bench.elapse(1001)
    assert await store.rebind(KEY, seen, "r2", "i2") == Binding("r2", "i2", 2)
    await bench.elapse(999)
    assert (await store.claim(KEY, "r1", "i1")).binding == Binding("r2", "i2", 2)


async def test_closed_sessions_are_not_bound(store: Store) -> None:
    """A closed session's claim says so; no binding is made, nor does its last turn revive one."""
    binding = (await store.claim(KEY, "r1", "i1")).binding
    await ended(store, "t1", binding=binding, prompt_tokens=7, completion_tokens=1)
    assert await store.close_session(KEY)
    assert await store.close_session(KEY)
    for _ in range(2):
        claim = await store.claim(KEY, "r2", "i2")
        assert (claim.state, claim.won, claim.context_tokens) == ("closed", False, 8)
    assert await store.refresh(KEY, binding) is None
    await ended(store, "t2", binding=binding)
    assert await store.refresh(KEY, binding) is None
    record = await store.get_session(KEY)
    assert record is not None and (record.state, record.turns) == ("closed", 2)


async def test_closing_what_is_not_there(store: Store) -> None:
    """An unknown session cannot be closed, not even one that is only bound."""
    assert not await store.close_session(KEY)
    await store.claim(KEY, "r1", "i1")
    assert not await store.close_session(KEY)


async def test_racing_claims_agree(bench: Any) -> None:
    """Of many claims at once, from two routers, one wins and all are told the same."""
    stores = [bench.store, await bench.another()]
    for round_ in range(20):
        key = SessionKey("acme", "m", f"s{round_}")
        claims = await asyncio.gather(
            *(stores[n % 2].claim(key, f"r{n}", f"i{n}") for n in range(20))
        )
        assert sum(claim.won for claim in claims) == 1
        assert len({claim.binding for claim in claims}) == 1
        seen = claims[0].binding
        moves = await asyncio.gather(
            *(stores[n % 2].rebind(key, seen, f"x{n}", "i") for n in range(20))
        )
        assert len(set(moves)) == 1 and moves[0].epoch == 2


# -- the turn lock


async def test_the_turn_lock(bench: Any) -> None:
    """One turn holds it; each new holder's number is greater, over releases and expiries."""
    store: Store = bench.store
    first = await store.acquire(KEY, "t1", 10)
    assert first is not None
    assert await store.acquire(KEY, "t2", 10) is None
    await store.release(KEY, "t2")
    assert await store.acquire(KEY, "t2", 10) is None
    await store.release(KEY, "t1")
    second = await store.acquire(KEY, "t2", 10)
    assert second is not None and second > first
    await bench.elapse(11)
    third = await store.acquire(KEY, "t3", 10)
    assert third is not None and third > second
    await store.release(KEY, "t2")
    assert await store.acquire(KEY, "t4", 10) is None
    await bench.elapse(5000)
    fourth = await store.acquire(KEY, "t4", 10)
    assert fourth is not None and fourth > third


async def test_a_turn_that_is_taken_over_takes_its_own_lock(store: Store) -> None:
    """Whoever runs the turn anew has the lock that it held, and what its first run ends writes
    nothing to the session any more."""
    first = await store.acquire(KEY, "t1", 10)
    second = await store.acquire(KEY, "t1", 10)
    assert first is not None and second is not None and second > first
    with pytest.raises(TurnLockLost):
        await store.commit_turn(*ends("t1", fence=first, stateful=True))
    await store.commit_turn(*ends("t1", fence=second, stateful=True))
    await store.release(KEY, "t1")
    assert await store.acquire(KEY, "t2", 10) is not None


async def test_a_turn_may_be_stored_by_itself(store: Store) -> None:
    """It is found again, and its session knows nothing of it."""
    _, record = ends("t1")
    record.response = {"status": "failed"}
    store.put_turn(record)
    while (found := await store.get_turn("acme", "t1")) is None:  # noqa: ASYNC110 (as in `ended`)
        await asyncio.sleep(0.002)
    assert found == record
    assert await store.get_session(KEY) is None


async def test_racing_for_the_lock(bench: Any) -> None:
    """Of many that want it at once, from two routers, one gets it."""
    stores = [bench.store, await bench.another()]
    fences = await asyncio.gather(*(stores[n % 2].acquire(KEY, f"t{n}", 10) for n in range(30)))
    assert sum(fence is not None for fence in fences) == 1


async def test_stale_fence_writes_nothing_to_the_session(bench: Any) -> None:
    """A turn that lost the lock is told, and moves the session's head no more; its own record
    stays, since it did run."""
    store: Store = bench.store
    old = await store.acquire(KEY, "t1", 10)
    await bench.elapse(11)
    new = await store.acquire(KEY, "t2", 10)
    await store.commit_turn(*ends("t2", fence=new, stateful=True, prompt_tokens=5))
    with pytest.raises(TurnLockLost):
        await store.commit_turn(*ends("t1", fence=old, stateful=True, prompt_tokens=9))
    record = await store.get_session(KEY)
    assert record is not None and (record.head, record.turns, record.context_tokens) == ("t2", 1, 5)
    assert await store.get_turn("acme", "t1") is not None


# -- turns and sessions


@pytest.mark.parametrize("key", [KEY, LONG])
async def test_the_end_of_a_turn(store: Store, key: SessionKey) -> None:
    """It makes or advances the record: counts add up, the context is the last turn's."""
    await ended(
        store, "t1", key, parent="mother", prompt_tokens=10, cached_tokens=0, completion_tokens=2
    )
    await store.commit_turn(
        *ends("t2", key, stateful=True, prompt_tokens=20, cached_tokens=12, completion_tokens=3)
    )
    await ended(store, "t3", key)
    record = await store.get_session(key)
    assert record is not None
    assert record.created_at > 0 and record.last_turn_at >= record.created_at
    assert msgspec.structs.replace(record, created_at=0, last_turn_at=0) == SessionRecord(
        tenant=key.tenant, session=key.session, model=key.model, turns=3, head="t2",
        parent="mother", program="mother", context_tokens=23, prompt_tokens=30, cached_tokens=12,
        completion_tokens=5,
    )  # fmt: skip
    assert (await store.claim(key, "r", "i")).context_tokens == 23


async def test_the_end_of_a_turn_renews_the_binding(bench: Any) -> None:
    """A turn that ends on the binding in force keeps it alive; on another, it does not."""
    store: Store = bench.store
    mine = (await store.claim(KEY, "r1", "i1")).binding
    await bench.elapse(700)
    await ended(store, "t1", binding=mine)
    await bench.elapse(700)
    await ended(store, "t2", binding=Binding("r1", "i1", 9))
    await bench.elapse(301)
    assert await store.refresh(KEY, mine) is None


async def test_turns_come_back_whole(store: Store) -> None:
    """What a turn added and what the caller was told of it are read as they were written."""
    receipt = Receipt(turn="t1", session="s", model="m", policy="session", ttft_s=0.25, attempts=2)
    item = {"type": "message", "content": [{"text": "héllo\x00"}], "n": [1, 2.5, None, True]}
    record = TurnRecord(
        turn="t1", tenant="acme", session="s", model="m", parent="t0", instructions="be brief",
        input_items=[item], output_items=[item, {}], response={"id": "t1"}, receipt=receipt,
    )  # fmt: skip
    await store.commit_turn(TurnEnd(key=KEY, turn="t1", binding=None), record)
    assert await store.get_turn("acme", "t1") == record


async def test_tenants_are_apart(store: Store) -> None:
    """What one tenant stores does not exist for another, under any method."""
    await ended(store, "t1", lineage=["k1"])
    other = SessionKey("other", "m", "s")
    assert await store.get_turn("other", "t1") is None
    assert await store.get_session(other) is None
    assert await store.find_session("other", "s") == []
    assert await store.list_sessions("other", 10) == []
    assert await store.find_lineage("other", "m", ["k1"]) is None
    assert not await store.close_session(other)
    await ended(store, "t1", other)
    mine = await store.get_turn("acme", "t1")
    assert mine is not None and mine.tenant == "acme"


async def test_odd_turn_ids_are_only_unknown(store: Store) -> None:
    """A turn id that a client made up, however odd, leads nowhere and breaks nothing."""
    for turn in ("", "{}", "a b\r\n", "x" * 100_000, "ü\x00"):
        assert await store.get_turn("acme", turn) is None


async def test_creating_sessions(bench: Any) -> None:
    """A session is created once, with its metadata, and again after it has expired."""
    store: Store = bench.store
    record = SessionRecord(
        tenant="acme", session="s", model="m", created_at=12.5, parent="p", program="root",
        head="t0", metadata={"a": [1, {"b": None}], "ü": ""},
    )  # fmt: skip
    assert await store.create_session(record)
    assert not await store.create_session(msgspec.structs.replace(record, parent="q"))
    assert await store.get_session(KEY) == record
    assert (await store.claim(KEY, "r1", "i1")).state == "open"
    await bench.elapse(4001)
    assert await store.get_session(KEY) is None
    assert await store.create_session(record)


async def test_reading_changes_nothing(store: Store) -> None:
    """A record that was read is the caller's own: writing to it does not reach the store."""
    await ended(store, "t1")
    record = await store.get_session(KEY)
    assert record is not None
    record.turns = 99
    again = await store.get_session(KEY)
    assert again is not None and again.turns == 1


async def test_finding_and_listing(bench: Any) -> None:
    """A session is found under each of its models; the list is by last use, and bounded."""
    store: Store = bench.store
    for n, (session, model) in enumerate([("a", "m"), ("b", "m"), ("c", "m"), ("a", "n")]):
        await ended(store, f"t{n}", SessionKey("acme", model, session))
        await asyncio.sleep(0.002)  # so that the order by time is one
    found = await store.find_session("acme", "a")
    assert sorted(record.model for record in found) == ["m", "n"]
    listed = [record.session for record in await store.list_sessions("acme", 10)]
    assert listed == ["a", "a", "c", "b"] or listed == ["a", "c", "b", "a"]
    assert len(await store.list_sessions("acme", 2)) == 2
    assert await store.list_sessions("acme", 0) == []
    await bench.elapse(4001)
    assert await store.list_sessions("acme", 10) == []
    assert await store.find_session("acme", "a") == []


async def test_lineage(bench: Any) -> None:
    """The deepest known key leads to the session that ended a turn under it last, for a while."""
    store: Store = bench.store
    await ended(store, "t1", lineage=["k1", "k2"])
    await ended(store, "t2", SessionKey("acme", "m", "s2"), lineage=["k2", "k3"])
    assert await store.find_lineage("acme", "m", ["k9", "k1"]) == "s"
    assert await store.find_lineage("acme", "m", ["k3", "k1"]) == "s2"
    assert await store.find_lineage("acme", "m", ["k1", "k3"]) == "s"
    assert await store.find_lineage("acme", "m", ["k2"]) == "s2"
    assert await store.find_lineage("acme", "other", ["k1"]) is None
    assert await store.find_lineage("acme", "m", []) is None
    await bench.elapse(1001)
    assert await store.find_lineage("acme", "m", ["k1", "k2", "k3"]) is None


async def test_turns_expire(bench: Any) -> None:
    """A stored turn ends at its time, whatever becomes of the session."""
    await ended(bench.store, "t1")
    await bench.elapse(3001)
    assert await bench.store.get_turn("acme", "t1") is None
    assert await bench.store.get_session(KEY) is not None


# -- idempotency


async def test_a_turn_runs_once(bench: Any) -> None:
    """A key is reserved once, then gives the answer, until it is freed or expires."""
    store: Store = bench.store
    result = StoredResult("t1", 200, "application/json", b'{"a":\x00\xff}', "d")
    assert await store.begin_once("acme", OnceKey("k", "d"), "t1") is None
    assert await store.begin_once("acme", OnceKey("k", "e"), "t2") == Running("t1", "d")
    assert await store.begin_once("other", OnceKey("k", "d"), "t2") is None
    await store.end_once("acme", "k", result)
    assert await store.begin_once("acme", OnceKey("k", "d"), "t2") == result
    assert await store.begin_once("acme", OnceKey("k", "d"), "t3") == result
    await bench.elapse(501)
    assert await store.begin_once("acme", OnceKey("k", "d"), "t4") is None
    await store.end_once("acme", "k", None)
    assert await store.begin_once("acme", OnceKey("k", "d"), "t5") is None


async def test_racing_for_an_idempotency_key(bench: Any) -> None:
    """Of many tries at once, from two routers, one runs and the others are told which."""
    stores = [bench.store, await bench.another()]
    found = await asyncio.gather(
        *(stores[n % 2].begin_once("acme", OnceKey("k", "d"), f"t{n}") for n in range(20))
    )
    assert found.count(None) == 1
    assert {f"t{found.index(None)}"} == {one.turn for one in found if one is not None}


# -- its life


async def test_available_and_lossless(store: Store) -> None:
    """A store that answers says that it is available and has lost nothing."""
    await ended(store, "t1")
    assert store.available
    assert store.lost_writes == 0


async def test_what_is_queued_is_written_before_it_closes(bench: Any) -> None:
    """The ends of turns that are queued when the store is closed are written all the same."""
    store: Store = bench.store
    other: Store = await bench.another()
    for n in range(1000):
        store.end_turn(*ends(f"t{n}"))
    await store.aclose()
    record = await other.get_session(KEY)
    assert record is not None and record.turns == 1000
    assert store.lost_writes == 0


async def test_routers_are_told_each_others_reports(store):
    """Each is given those of all the others, the newest, and never its own."""
    assert (await store.exchange("one", b"1", 60.0)).reports == {}
    assert (await store.exchange("two", b"2", 60.0)).reports == {"one": b"1"}
    assert (await store.exchange("one", b"1 again", 60.0)).reports == {"two": b"2"}
    told = await store.exchange("three", b"3", 60.0)
    assert told.reports == {"one": b"1 again", "two": b"2"} and told.news == []


async def test_a_router_that_says_nothing_more_is_forgotten(bench, store):
    """Its report goes with its time to live."""
    await store.exchange("killed", b"its work", 0.05)
    await bench.elapse(0.1)
    await asyncio.sleep(0.1)
    assert (await store.exchange("one", b"1", 0.05)).reports == {}


async def test_news_are_told_once_in_order_and_to_all_others(store: Store) -> None:
    """Whatever came between a router's own calls, and nothing of its own."""
    heard: dict[str, list[tuple[str, bytes]]] = {"one": [], "two": [], "three": []}
    seen = dict.fromkeys(heard, "")
    said = []
    for number, router in enumerate(["one", "two", "two", "one", "three", "one", "two", "three"]):
        news = b"" if number == 5 else b"%d" % number
        told = await store.exchange(router, b"r", 60.0, news=news, seen=seen[router])
        seen[router] = told.seen
        heard[router] += told.news
        if news:
            said.append((router, news))
    for router, news in heard.items():
        told = await store.exchange(router, b"r", 60.0, seen=seen[router])
        assert news + told.news == [each for each in said if each[0] != router]
        assert (await store.exchange(router, b"r", 60.0, seen=told.seen)).news == []


async def test_a_router_that_joins_hears_what_is_still_kept(bench: Any, store: Store) -> None:
    """News live longer than reports, but not for ever."""
    await store.exchange("old", b"r", 2.0, news=b"long ago")
    await bench.elapse(15.0)
    assert (await store.exchange("new", b"r", 2.0)).news == [("old", b"long ago")]
    await bench.elapse(25.0)
    assert (await store.exchange("newer", b"r", 2.0)).news == []


async def test_a_long_backlog_takes_several_calls(store: Store) -> None:
    """Each piece is told once all the same."""
    most = 2 * NEWS_AT_ONCE + 3
    for number in range(most):
        await store.exchange("busy", b"r", 60.0, news=b"%d" % number)
    heard: list[tuple[str, bytes]] = []
    seen, calls = "", 0
    while len(heard) < most:
        told = await store.exchange("late", b"r", 60.0, seen=seen)
        assert 0 < len(told.news) <= NEWS_AT_ONCE
        heard, seen, calls = heard + told.news, told.seen, calls + 1
    assert heard == [("busy", b"%d" % number) for number in range(most)] and calls == 3


async def test_adapters_are_kept_for_all_routers(bench: Any, store: Store) -> None:
    """The last word on each name, whatever is in it, as long as anybody asks."""
    assert await store.adapters() == {}
    await store.put_adapter("sql/модель", b"\x93\x00")
    await store.put_adapter("other", b"1")
    await store.put_adapter("other", b"2")
    assert await store.adapters() == {"sql/модель": b"\x93\x00", "other": b"2"}


async def test_a_session_is_assigned_to_a_variant_once(bench: Any) -> None:
    """The first proposal holds, for every router, as long as it keeps its sessions."""
    store, other = bench.store, await bench.another()
    both = ("old", "new")
    assert await store.assign(KEY, both, both, "new") == Assignment("new", None, True)
    assert await other.assign(KEY, both, both, "old") == Assignment("new", None, False)
    await bench.elapse(3000)
    assert (await store.assign(KEY, both, both, "old")).variant == "new"
    await bench.elapse(3000)
    assert (await store.assign(KEY, both, both, "old")).variant == "new"
    elsewhere = SessionKey("another", KEY.model, KEY.session)
    assert (await store.assign(elsewhere, both, both, "old")).new
    await bench.elapse(4001)
    assert await store.assign(KEY, both, both, "old") == Assignment("old", None, True)


async def test_a_session_that_runs_belongs_to_where_it_runs(store: Store) -> None:
    """By its binding, or once that has expired by its record, under any of the variants."""
    both = ("old", "new")
    old = SessionKey(KEY.tenant, "old", KEY.session)
    await store.claim(old, "r1", "i1")
    assert await store.assign(KEY, both, both, "new") == Assignment("old")
    record = SessionRecord(tenant=KEY.tenant, session="kept", model="new")
    assert await store.create_session(record)
    served = SessionKey(KEY.tenant, KEY.model, "kept")
    assert await store.assign(served, both, both, "old") == Assignment("new")


async def test_a_session_leaves_a_variant_that_keeps_it_no_longer(store: Store) -> None:
    """Once, and whoever asks then is told where it is; so does one that nobody had assigned. Who
    does not know its variant does not move it."""
    both = ("old", "new")
    await store.assign(KEY, both, both, "old")
    assert await store.assign(KEY, both, ("new",), "new") == Assignment("new", "old")
    assert await store.assign(KEY, both, both, "old") == Assignment("new")
    assert await store.assign(KEY, ("third",), ("third",), "third") == Assignment("new")
    known = ("third", "new")
    assert await store.assign(KEY, known, ("third",), "third") == Assignment("third", "new")
    running = SessionKey(KEY.tenant, KEY.model, "running")
    await store.claim(SessionKey(KEY.tenant, "old", "running"), "r1", "i1")
    assert await store.assign(running, both, ("new",), "new") == Assignment("new", "old")


async def test_a_closed_session_stays_closed_where_it_was(store: Store) -> None:
    """To be moved would open it again."""
    both = ("old", "new")
    old = SessionKey(KEY.tenant, "old", KEY.session)
    await store.create_session(SessionRecord(tenant=old.tenant, session=old.session, model="old"))
    await store.close_session(old)
    assert await store.assign(KEY, both, ("new",), "new") == Assignment("old")


async def test_what_a_name_means_is_compared_and_set(bench: Any) -> None:
    """Of two who change it at once one wins; who has not seen the last word is told it."""
    store, other = bench.store, await bench.another()
    assert await store.put_release("m", None, b"one") == b"one"
    assert await other.put_release("m", None, b"two") == b"one"
    assert await other.put_release("m", b"one", b"two") == b"two"
    assert await store.put_release("m", b"one", b"three") == b"two"
    assert await store.put_release("n", b"lost", b"again") == b"again"
    await bench.elapse(3000)
    assert await store.releases() == {"m": b"two", "n": b"again"}
    await bench.elapse(3000)
    assert await other.releases() == {"m": b"two", "n": b"again"}
    await bench.elapse(4001)
    assert await store.releases() == {}


async def test_figures_are_kept_by_release_and_router(bench: Any) -> None:
    """A router's last counts replace those before."""
    store, other = bench.store, await bench.another()
    assert await store.figures("r1") == {}
    await store.put_figures("r1", "a", b"1")
    await other.put_figures("r1", "b", b"2")
    await store.put_figures("r1", "a", b"3")
    await store.put_figures("r2", "a", b"4")
    assert await other.figures("r1") == {"a": b"3", "b": b"2"}
    assert await other.figures("r2") == {"a": b"4"}


async def test_lineage_is_found_under_the_served_name(store: Store) -> None:
    """A turn of a variant says what was asked for."""
    end = TurnEnd(key=SessionKey("t", "m@green", "s"), turn="t1", binding=None,
                  lineage=("step",), served="m")  # fmt: skip
    await store.commit_turn(end, TurnRecord(turn="t1", tenant="t", session="s", model="m"))
    assert await store.find_lineage("t", "m", ["step"]) == "s"
    assert await store.find_lineage("t", "m@green", ["step"]) is None
