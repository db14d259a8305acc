"""What every session store must do for bindings and turn locks: each is one, for all routers."""

import asyncio
from typing import Any

import pytest

from sessile.errors import TurnLockLost
from sessile.sessions.record import Binding, SessionKey
from sessile.sessions.store import Claim, Store
from stored_sessions import KEY, LONG, ended, ends, record_of


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
    record = await record_of(store, KEY)
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
    record = await record_of(store, KEY)
    assert record is not None and (record.head, record.turns, record.context_tokens) == ("t2", 1, 5)
    assert await store.get_turn("acme", "t1") is not None


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
