"""What every session store must do for turns and sessions, whatever it keeps its facts in."""

import asyncio
from typing import Any

import msgspec
import pytest

from sessile.sessions.record import Receipt, SessionKey, SessionRecord, TurnRecord
from sessile.sessions.store import HeldKey, OnceKey, Running, Store, StoredResult, TurnEnd
from stored_sessions import KEY, LONG, ended, ends, record_of


async def test_a_turn_may_be_stored_by_itself(store: Store) -> None:
    """It is found again, and its session knows nothing of it."""
    _, record = ends("t1")
    record.response = {"status": "failed"}
    store.put_turn(record)
    while (found := await store.get_turn("acme", "t1")) is None:  # noqa: ASYNC110 (as in `ended`)
        await asyncio.sleep(0.002)
    assert found == record
    assert await record_of(store, KEY) is None


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
    record = await record_of(store, key)
    assert record is not None
    assert record.created_at > 0 and record.last_turn_at >= record.created_at
    assert msgspec.structs.replace(record, created_at=0, last_turn_at=0) == SessionRecord(
        tenant=key.tenant, session=key.session, model=key.model, turns=3, head="t2",
        parent="mother", program="mother", context_tokens=23, prompt_tokens=30, cached_tokens=12,
        completion_tokens=5,
    )  # fmt: skip
    assert (await store.claim(key, "r", "i")).context_tokens == 23


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
    assert await record_of(store, other) is None
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
    assert await record_of(store, KEY) == record
    assert (await store.claim(KEY, "r1", "i1")).state == "open"
    await bench.elapse(4001)
    assert await record_of(store, KEY) is None
    assert await store.create_session(record)


async def test_reading_changes_nothing(store: Store) -> None:
    """A record that was read is the caller's own: writing to it does not reach the store."""
    await ended(store, "t1")
    record = await record_of(store, KEY)
    assert record is not None
    record.turns = 99
    again = await record_of(store, KEY)
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
    assert await record_of(bench.store, KEY) is not None


async def test_a_turn_runs_once(bench: Any) -> None:
    """A key is reserved once, then gives the answer, until it is freed or expires."""
    store: Store = bench.store
    result = StoredResult("t1", 200, "application/json", b'{"a":\x00\xff}', "d")
    assert await store.begin_once("acme", OnceKey("k", "d"), "t1") is None
    assert await store.begin_once("acme", OnceKey("k", "e"), "t2") == Running("t1", "d")
    assert await store.begin_once("other", OnceKey("k", "d"), "t2") is None
    await store.end_once(HeldKey("acme", "k", "t1"), result)
    assert await store.begin_once("acme", OnceKey("k", "d"), "t2") == result
    assert await store.begin_once("acme", OnceKey("k", "d"), "t3") == result
    await bench.elapse(501)
    assert await store.begin_once("acme", OnceKey("k", "d"), "t4") is None
    await store.end_once(HeldKey("acme", "k", "t4"), None)
    assert await store.begin_once("acme", OnceKey("k", "d"), "t5") is None


async def test_the_lease_of_a_key(bench: Any) -> None:
    """It runs out unless it is renewed, which keeps the key too, however long its turn runs; what
    is renewed for a turn that does not hold the key changes nothing."""
    store: Store = bench.store
    held = [HeldKey("acme", key, "t1") for key in ("k", "l")]
    for _, key, turn in held:
        assert await store.begin_once("acme", OnceKey(key), turn) is None
    for _ in range(9):
        await bench.elapse(90)
        await store.renew_once(held)
    for _, key, _ in held:
        assert await store.begin_once("acme", OnceKey(key), "t2") == Running("t1", "", True)
    await bench.elapse(90)
    others = [HeldKey("acme", "k", "t2"), HeldKey("acme", "none", "t2")]
    await store.renew_once([*others, held[1]])
    await bench.elapse(20)
    assert await store.begin_once("acme", OnceKey("none"), "t3") is None
    assert await store.begin_once("acme", OnceKey("k"), "t2") == Running("t1", "", False)
    assert await store.begin_once("acme", OnceKey("l"), "t2") == Running("t1", "", True)
    await store.renew_once(held)
    assert await store.begin_once("acme", OnceKey("k"), "t2") == Running("t1", "", True)


async def test_a_key_is_ended_by_its_own_turn_only(bench: Any) -> None:
    """Two routers that find a key's turn gone free it once: the second does not free what the first
    has taken, nor does the turn that was gone, when it ends after all, answer for another."""
    stores = [bench.store, await bench.another()]
    store: Store = stores[0]
    gone, late = HeldKey("acme", "k", "t1"), StoredResult("t1", 200, "text/plain", b"late")
    assert await store.begin_once("acme", OnceKey("k"), "t1") is None
    await stores[0].end_once(gone, None)
    assert await stores[0].begin_once("acme", OnceKey("k"), "t2") is None
    await stores[1].end_once(gone, None)
    for result in (None, late):
        await stores[1].end_once(gone, result)
        assert await stores[1].begin_once("acme", OnceKey("k"), "t3") == Running("t2", "")
    await store.end_once(HeldKey("acme", "k", "t2"), None)
    await store.end_once(gone, late)
    assert await store.begin_once("acme", OnceKey("k"), "t3") == late


async def test_racing_for_an_idempotency_key(bench: Any) -> None:
    """Of many tries at once, from two routers, one runs and the others are told which."""
    stores = [bench.store, await bench.another()]
    found = await asyncio.gather(
        *(stores[n % 2].begin_once("acme", OnceKey("k", "d"), f"t{n}") for n in range(20))
    )
    assert found.count(None) == 1
    assert {f"t{found.index(None)}"} == {one.turn for one in found if one is not None}


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
    record = await record_of(other, KEY)
    assert record is not None and record.turns == 1000
    assert store.lost_writes == 0
