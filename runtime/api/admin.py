"""Sessile's own routes: the native API of replicas, sessions and turns."""

import secrets
import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from sessile.api.auth import Authenticator
from sessile.errors import InvalidRequest, SessionNotFound, TurnNotFound
from sessile.flow import Flow
from sessile.pool_settings import POOL_NAME, EngineKind
from sessile.router.policy import POLICIES
from sessile.router.pool import Pool
from sessile.router.replica import Replica, ReplicaSpec
from sessile.sessions.binding import Standings
from sessile.sessions.identity import checked_id
from sessile.sessions.record import SessionKey, SessionRecord
from sessile.sessions.store import Store
from sessile.telemetry import Telemetry


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewReplica(_Body):
    """A replica to take into the pool. `pool` is what a swap knows it by; one on `standby` takes no
    session but by a swap."""

    engine: EngineKind = "auto"
    url: str
    pool: str | None = Field(None, pattern=POOL_NAME)
    standby: bool = False
    id: str | None = Field(None, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")


class NewSession(_Body):
    """A session to open before its first turn."""

    id: str | None = None
    model: str | None = None
    parent: str | None = None
    metadata: dict[str, Any] = {}


class Lease(_Body):
    """How long the session's KV memory is to be held while it pauses; 0 lets go of it."""

    seconds: float = Field(ge=0, le=24 * 3600, allow_inf_nan=False)


class Forks(_Body):
    """How many children to fork off a session."""

    n: int = Field(1, ge=1, le=64)


def native_routes(
    pool: Pool,
    store: Store,
    standings: Standings,
    flow: Flow,
    telemetry: Telemetry,
    auth: Authenticator,
) -> APIRouter:
    """Everything under `/sessile/v1`."""
    routes = APIRouter(prefix="/sessile/v1", tags=["sessile"])

    Tenant = Annotated[str, Depends(auth.told)]

    def shown(name: str, replicas: list[Replica]) -> dict[str, Any]:
        """What was named: a replica, or a server with its ranks."""
        each: list[dict[str, Any]] = [r.describe(standings.bound_to(r.id)) for r in replicas]
        if len(each) == 1:
            return each[0]
        told = {field: each[0][field] for field in ("server", "url", "engine", "models", "state")}
        sums = {field: sum(one[field] for one in each) for field in ("in_flight", "sessions")}
        return {"id": name, **told, **sums, "ranks": each}

    @routes.get("/replicas")
    async def replicas(_: Tenant) -> dict[str, Any]:
        return {"replicas": [r.describe(standings.bound_to(r.id)) for r in pool]}

    @routes.post("/replicas", status_code=201)
    async def add_replica(new: NewReplica, _: Tenant) -> dict[str, Any]:
        free = (f"{new.engine}-{n}" for n in range(len(pool.servers) + 1))
        name = new.id or next(name for name in free if name not in pool.servers)
        if new.standby and new.pool is None:
            raise InvalidRequest(
                "a replica on standby needs a pool, for a swap to name it", param="pool"
            )
        spec = ReplicaSpec(
            id=name, engine=new.engine, url=new.url.rstrip("/"), pool=new.pool, standby=new.standby
        )
        return pool.add(spec).describe(0)

    @routes.post("/replicas/{replica}/drain")
    async def drain(replica: str, _: Tenant) -> dict[str, Any]:
        return shown(replica, pool.drain(replica))

    @routes.post("/replicas/{replica}/resume")
    async def resume(replica: str, _: Tenant) -> dict[str, Any]:
        return shown(replica, pool.resume(replica))

    @routes.delete("/replicas/{replica}")
    async def remove(replica: str, _: Tenant) -> dict[str, Any]:
        return shown(replica, await pool.remove(replica))

    @routes.get("/policy")
    async def policy(caller: Tenant) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "policy": flow.policy,
            "policies": list(POLICIES),
            "routers": flow.routers,
            "reasons": {reason: n for (_, reason), n in sorted(telemetry.decisions.items())},
            "moves": {
                f"{reason} {outcome}": n for (reason, outcome), n in sorted(telemetry.moves.items())
            },
            "queued": len(flow.scheduler.queue),
            "queue": [
                {
                    "place": place,
                    "session": SessionKey.read(waiting.ask.session).session,
                    "waited_s": now - waiting.at,
                }
                for place, waiting in enumerate(flow.scheduler.queue.ordered(now), 1)
                if waiting.ask.tenant == caller
            ],
            "ttft_error_p50": telemetry.ttft_error_p50,
            "return_share": flow.scheduler.returns.share,
            "paces": flow.scheduler.paces(),
            "replicas": [{"id": r.id, **r.outlook.describe()} for r in pool],
        }

    @routes.get("/sessions")
    async def sessions(
        caller: Tenant, limit: Annotated[int, Query(ge=1, le=1000)] = 50
    ) -> dict[str, Any]:
        found = await store.list_sessions(caller, limit)
        return {"sessions": [_shown(record, standings) for record in found]}

    @routes.post("/sessions", status_code=201)
    async def open_session(new: NewSession, caller: Tenant) -> dict[str, Any]:
        if new.id is not None:
            checked_id(new.id, "id")
        model = new.model if new.model is not None else _first_model(pool)
        record = _child(caller, model, new.id, None)
        record.model = await flow.key_of(caller, model, record.session, new.parent)
        record.metadata = new.metadata
        if new.parent is not None:
            parent = await _find(store, caller, new.parent)
            record.parent = parent.session
            record.program = parent.program or parent.session
        if not await store.create_session(record):
            raise InvalidRequest(f"there is a session {record.session!r} already", param="id")
        return _shown(record, standings)

    @routes.get("/sessions/{session:path}")
    async def show_session(session: str, caller: Tenant) -> dict[str, Any]:
        return _shown(await _find(store, caller, session), standings)

    @routes.post("/sessions/{session:path}/fork", status_code=201)
    async def fork(session: str, forks: Forks, caller: Tenant) -> dict[str, Any]:
        parent = await _find(store, caller, session)
        children = [_child(caller, parent.model, None, parent) for _ in range(forks.n)]
        for child in children:
            await store.create_session(child)
        return {"sessions": [_shown(child, standings) for child in children]}

    @routes.post("/sessions/{session:path}/lease")
    async def lease(session: str, asked: Lease, caller: Tenant) -> dict[str, Any]:
        held = flow.lease(caller, session, asked.seconds)
        if not held:
            await _find(store, caller, session)
        return {"session": session, "seconds": asked.seconds, "held": held}

    @routes.post("/sessions/{session:path}/close")
    async def close(session: str, caller: Tenant) -> dict[str, Any]:
        records = await store.find_session(caller, session)
        if not records:
            raise SessionNotFound(f"there is no session {session!r}")
        for record in records:
            await store.close_session(SessionKey(caller, record.model, session))
        flow.close_session(caller, session)
        return _shown(await _find(store, caller, session), standings)

    @routes.get("/turns/{turn}")
    async def show_turn(turn: str, caller: Tenant) -> dict[str, Any]:
        found = await store.get_turn(caller, turn)
        if found is None:
            raise TurnNotFound(f"there is no turn {turn!r}")
        shown: dict[str, Any] = msgspec.to_builtins(found)
        del shown["tenant"]
        return shown

    @routes.get("/turns/{turn}/receipt")
    async def receipt(turn: str, caller: Tenant) -> dict[str, Any]:
        found = await store.get_turn(caller, turn)
        if found is None or found.receipt is None:
            raise TurnNotFound(f"there is no turn {turn!r}, or its receipt has expired")
        shown: dict[str, Any] = msgspec.to_builtins(found.receipt)
        return shown

    return routes


async def _find(store: Store, tenant: str, session: str) -> SessionRecord:
    """The session's record for the model that it spoke to last."""
    records = await store.find_session(tenant, session)
    if not records:
        raise SessionNotFound(f"there is no session {session!r}")
    return max(records, key=lambda record: (record.last_turn_at, record.created_at))


def _first_model(pool: Pool) -> str:
    models = pool.models()
    if not models:
        raise InvalidRequest("name a model: no replica has come up to say what it serves",
                             param="model")  # fmt: skip
    return models[0]


def _child(
    tenant: str, model: str, session: str | None, parent: SessionRecord | None
) -> SessionRecord:
    """A new record; a child continues from the parent's last turn and belongs to its program."""
    return SessionRecord(
        tenant=tenant,
        session=session or "ses_" + secrets.token_hex(12),
        model=model,
        created_at=time.time(),
        head=parent.head if parent else None,
        parent=parent.session if parent else None,
        program=(parent.program or parent.session) if parent else None,
    )


def _shown(record: SessionRecord, standings: Standings) -> dict[str, Any]:
    standing = standings.get(SessionKey(record.tenant, record.model, record.session))
    shown: dict[str, Any] = msgspec.to_builtins(record)
    del shown["tenant"]
    shown["replica"] = standing.binding.replica if standing is not None else None
    shown["hit_rate"] = (
        record.cached_tokens / record.prompt_tokens if record.prompt_tokens else None
    )
    return shown
