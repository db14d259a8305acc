"""Redis is the same store as the reference in memory, whatever is done in whatever order."""

from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessile.errors import TurnLockLost
from sessile.sessions.memory_store import MemoryStore
from sessile.sessions.record import Binding, SessionKey, SessionRecord, TurnRecord
from sessile.sessions.store import HeldKey, OnceKey, Store, StoredResult, StoreLimits, TurnEnd
from stored_sessions import KEY, OpenStore, record_of

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
        st.tuples(st.just("renew"), st.sampled_from(["t1", "t2"])),
        st.tuples(st.just("answer"), st.sampled_from(["t1", "t2"]), st.booleans()),
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
            case "renew":
                return await store.renew_once([HeldKey(tenant, "k", args[0])])
            case _:
                result = StoredResult(args[0], 200, "x", b"y") if args[1] else None
                return await store.end_once(HeldKey(tenant, "k", args[0]), result)

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
        found = await record_of(self.store, key)
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
    ours, reference = Player(redis, tenant), Player(MemoryStore(StoreLimits()), tenant)
    for step in steps:
        assert await ours.play(step) == await reference.play(step), step
    await redis.aclose()
