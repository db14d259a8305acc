"""What every session store must do while models are swapped."""

from typing import Any

from sessile.sessions.record import SessionKey, SessionRecord, TurnRecord
from sessile.sessions.store import Assignment, Store, TurnEnd
from stored_sessions import KEY


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
