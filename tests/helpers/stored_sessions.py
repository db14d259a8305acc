"""Sessions in a store, and how their turns end, as the tests of stores make them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sessile.sessions.record import Binding, SessionKey, SessionRecord, TurnRecord
from sessile.sessions.redis_store import RedisStore
from sessile.sessions.store import HeldKey, OnceKey, Store, TurnEnd

OpenStore = Callable[..., Awaitable[RedisStore]]
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


async def record_of(store: Store, key: SessionKey) -> SessionRecord | None:
    """The session's record under that model, if there is one."""
    found = await store.find_session(key.tenant, key.session)
    return next((record for record in found if record.model == key.model), None)


async def every_call(store: Store) -> list[BaseException | object]:
    """What each awaited method gives or raises, all of them called at once."""
    binding = Binding("r", "i", 1)
    record = SessionRecord(tenant="acme", session="s", model="m")
    return await asyncio.gather(
        store.claim(KEY, "r", "i"), store.refresh(KEY, binding),
        store.rebind(KEY, binding, "r2", "i"), store.acquire(KEY, "t", 1), store.release(KEY, "t"),
        store.commit_turn(*ends("t")), store.get_turn("acme", "t"), store.create_session(record),
        store.find_session("acme", "s"), store.close_session(KEY),
        store.list_sessions("acme", 5), store.find_lineage("acme", "m", ["k"]),
        store.begin_once("acme", OnceKey("k"), "t"), store.renew_once([HeldKey("acme", "k", "t")]),
        store.end_once(HeldKey("acme", "k", "t"), None),
        return_exceptions=True,
    )  # fmt: skip
