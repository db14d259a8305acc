"""The store that many routers share: Redis 7 or Valkey, one server or a Cluster.

What is kept is decided here, under which keys in `redis_keys`; how commands travel is
`redis_link`'s business. Every key has an expiry.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from sessile.errors import StoreUnavailable, TurnLockLost
from sessile.sessions import scripts
from sessile.sessions.record import Binding, SessionKey, SessionRecord, TurnRecord
from sessile.sessions.redis_conversations import CONVERSATION_SCRIPTS, RedisConversations
from sessile.sessions.redis_keys import Keys
from sessile.sessions.redis_link import RedisLink, Script
from sessile.sessions.redis_log import SCRIPTS as LOG_SCRIPTS
from sessile.sessions.redis_log import RedisLog
from sessile.sessions.redis_records import read_binding, read_record, write_binding, write_record
from sessile.sessions.redis_wire import Command
from sessile.sessions.store import (
    NEWS_AT_ONCE,
    NEWS_LIVE,
    Assignment,
    Claim,
    HeldKey,
    OnceKey,
    Running,
    StoredResult,
    StoreLimits,
    Told,
    TurnEnd,
)

log = logging.getLogger("sessile.store")

_MOST_RECENT = 10_000
_MOST_NEWS_BYTES = 1 << 20  # of one call, so that a backlog is not what the time-out catches
_RECENT_EVERY_S = 0.05  # how often the list of recent sessions is told of the turns that ended

_CLAIM = Script(scripts.CLAIM)
_REFRESH = Script(scripts.REFRESH)
_REBIND = Script(scripts.REBIND)
_ASSIGN = Script(scripts.ASSIGN)
_ACQUIRE = Script(scripts.ACQUIRE)
_RELEASE = Script(scripts.RELEASE)
_CREATE = Script(scripts.CREATE)
_CLOSE = Script(scripts.CLOSE)
_END = Script(scripts.END)
_RECENT = Script(scripts.RECENT)
_EXCHANGE = Script(scripts.EXCHANGE)
_PUT_RELEASE = Script(scripts.PUT_RELEASE)
_BEGIN_ONCE = Script(scripts.BEGIN_ONCE)
_RENEW_ONCE = Script(scripts.RENEW_ONCE)
_END_ONCE = Script(scripts.END_ONCE)
_SCRIPTS = (
    _CLAIM, _REFRESH, _REBIND, _ASSIGN, _ACQUIRE, _RELEASE, _CREATE, _CLOSE, _END, _RECENT,
    _EXCHANGE, _PUT_RELEASE, _BEGIN_ONCE, _RENEW_ONCE, _END_ONCE,
    *CONVERSATION_SCRIPTS,
    *LOG_SCRIPTS,
)  # fmt: skip

_encode = msgspec.msgpack.Encoder().encode
_turn = msgspec.msgpack.Decoder(TurnRecord).decode
_result = msgspec.msgpack.Decoder(StoredResult).decode


class RedisStore:
    """Implements `Store`. One a router; opened and closed by the router's lifespan."""

    def __init__(
        self,
        url: str,
        limits: StoreLimits,
        *,
        timeout_s: float = 0.25,
        retry_after_s: float = 1.0,
        most_recent: int = _MOST_RECENT,
    ) -> None:
        """Raises `SettingsError` for a URL that names no Redis. Nothing is connected yet."""
        self._link = RedisLink(url, _SCRIPTS, timeout_s=timeout_s, retry_after_s=retry_after_s)
        self.events = RedisLog(
            self._link, limits.events, Keys.events, Keys.open_turns(), Keys.newest
        )
        self._most_recent = most_recent
        self._recent: dict[str, dict[str, float]] = {}  # by tenant and session, not sent yet
        self._telling: asyncio.Task[None] | None = None
        self._ttl_ms = _ms(limits.ttl_s)
        self._binding_ttl_ms = _ms(limits.binding_ttl_s)
        self._turn_ttl_ms = _ms(limits.turn_ttl_s)
        self._once_ttl_ms = _ms(limits.idempotency_ttl_s)
        self._lease_ms = _ms(limits.events.lease_s)
        self.conversations = RedisConversations(self._link, Keys.conversation, self._ttl_ms)

    async def open(self) -> None:
        await self._link.open()

    async def aclose(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        with suppress(StoreUnavailable):
            await self._link.run_all(self._take_recent())
        await self._link.aclose()

    @property
    def available(self) -> bool:
        return self._link.available

    @property
    def available_since(self) -> float:
        return self._link.available_since

    @property
    def lost_writes(self) -> int:
        return self._link.lost_writes

    # -- the binding

    async def claim(self, key: SessionKey, replica: str, incarnation: str) -> Claim:
        keys = Keys(key.tenant, key.session, key.model)
        won, binding, state, held = await self._link.run(
            _CLAIM.command((keys.binding, keys.record), replica, incarnation, self._binding_ttl_ms)
        )
        if state == b"closed":
            return Claim(Binding(replica, incarnation, 0), False, "closed", int(held))
        return Claim(read_binding(binding), won == 1, "open", int(held))

    async def refresh(self, key: SessionKey, binding: Binding) -> Binding | None:
        keys = Keys(key.tenant, key.session, key.model)
        current = await self._link.run(
            _REFRESH.command((keys.binding,), write_binding(binding), self._binding_ttl_ms)
        )
        return None if current is None else read_binding(current)

    async def rebind(
        self, key: SessionKey, seen: Binding, replica: str, incarnation: str
    ) -> Binding:
        keys = Keys(key.tenant, key.session, key.model)
        moved = Binding(replica, incarnation, seen.epoch + 1)
        return read_binding(
            await self._link.run(
                _REBIND.command(
                    (keys.binding,), write_binding(seen), write_binding(moved),
                    self._binding_ttl_ms,
                )
            )
        )  # fmt: skip

    # -- the variant

    async def assign(
        self, key: SessionKey, variants: Sequence[str], keeping: Collection[str], proposal: str
    ) -> Assignment:
        named = list(dict.fromkeys(variants))
        here = [Keys(key.tenant, key.session, name) for name in named]
        variant, left, new = await self._link.run(
            _ASSIGN.command(
                (
                    Keys(key.tenant, key.session, key.model).variant,
                    *(part for keys in here for part in (keys.record, keys.binding)),
                ),
                self._ttl_ms,
                proposal,
                *(part for name in named for part in (name, int(name in keeping))),
            )
        )
        return Assignment(variant.decode(), left.decode() or None, new == 1)

    # -- the turn lock

    async def acquire(self, key: SessionKey, turn: str, ttl_s: float) -> int | None:
        keys = Keys(key.tenant, key.session, key.model)
        fence: int | None = await self._link.run(
            _ACQUIRE.command((keys.lock, keys.fence), turn, _ms(ttl_s), self._ttl_ms)
        )
        return fence

    async def release(self, key: SessionKey, turn: str) -> None:
        keys = Keys(key.tenant, key.session, key.model)
        await self._link.run(_RELEASE.command((keys.lock,), turn))

    # -- turns and sessions

    def end_turn(self, end: TurnEnd, record: TurnRecord) -> None:
        self._link.queue(partial(self._end, end, record))
        self._recent.setdefault(end.key.tenant, {})[end.key.session] = time.time()
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell_recent(), name="tell recent sessions")

    async def commit_turn(self, end: TurnEnd, record: TurnRecord) -> None:
        self._recent.setdefault(end.key.tenant, {})[end.key.session] = time.time()
        commands = [*self._end(end, record), *self._take_recent()]
        kept, *_ = await self._link.run_all(commands)
        if kept == 0:
            raise TurnLockLost(f"turn {end.turn} has lost the lock of its session")

    def _end(self, end: TurnEnd, record: TurnRecord) -> list[Command]:
        key = end.key
        keys = Keys(key.tenant, key.session, key.model)
        commands = [
            _END.command(
                (keys.record, keys.models, keys.binding, keys.fence),
                _given(end.fence),
                "" if end.binding is None else write_binding(end.binding),
                end.turn if end.stateful else "",
                _given(end.prompt_tokens),
                _given(end.cached_tokens),
                _given(end.completion_tokens),
                end.parent or "",
                key.tenant,
                key.session,
                key.model,
                self._ttl_ms,
                self._binding_ttl_ms,
            ),
            self._put(record),
        ]
        commands += [
            ("SET", Keys.lineage(key.tenant, end.served or key.model, step), key.session, "PX",
             self._binding_ttl_ms)
            for step in end.lineage
        ]  # fmt: skip
        return commands

    def _put(self, record: TurnRecord) -> Command:
        key = Keys.turn(record.tenant, record.turn)
        return ("SET", key, _encode(record), "PX", self._turn_ttl_ms)

    async def _tell_recent(self) -> None:
        await asyncio.sleep(_RECENT_EVERY_S)
        self._telling = None
        with suppress(StoreUnavailable):
            await self._link.run_all(self._take_recent())

    def _take_recent(self) -> list[Command]:
        recent, self._recent = self._recent, {}
        return [self._list_recent(tenant, sessions) for tenant, sessions in recent.items()]

    def _list_recent(self, tenant: str, sessions: dict[str, float]) -> Command:
        pairs = [part for session, at in sessions.items() for part in (at, session)]
        key = Keys.recent(tenant)
        return _RECENT.command((key,), time.time(), self._ttl_ms, self._most_recent, *pairs)

    def put_turn(self, record: TurnRecord) -> None:
        self._link.queue(lambda: [self._put(record)])

    async def get_turn(self, tenant: str, turn: str) -> TurnRecord | None:
        data = await self._link.run(("GET", Keys.turn(tenant, turn)))
        found = _turn(data) if data is not None else None
        return found if found is not None and found.tenant == tenant else None

    async def delete_turn(self, tenant: str, turn: str) -> bool:
        return bool(await self._link.run(("DEL", Keys.turn(tenant, turn))))

    async def create_session(self, record: SessionRecord) -> bool:
        keys = Keys(record.tenant, record.session, record.model)
        made = await self._link.run(
            _CREATE.command(
                (keys.record, keys.models), self._ttl_ms, record.model, *write_record(record)
            )
        )
        if made:
            await self._link.run(self._list_recent(record.tenant, {record.session: time.time()}))
        return bool(made)

    async def find_session(self, tenant: str, session: str) -> list[SessionRecord]:
        models = await self._link.run(("SMEMBERS", Keys(tenant, session).models))
        reads = [
            ("HGETALL", Keys(tenant, session, model.decode()).record) for model in sorted(models)
        ]
        found = [read_record(pairs) for pairs in await self._link.run_all(reads)]
        return [record for record in found if record is not None]

    async def close_session(self, key: SessionKey) -> bool:
        keys = Keys(key.tenant, key.session, key.model)
        return bool(await self._link.run(_CLOSE.command((keys.record, keys.binding))))

    async def list_sessions(self, tenant: str, limit: int) -> list[SessionRecord]:
        if limit < 1:
            return []
        await self._link.run_all(self._take_recent())
        ids = await self._link.run(("ZREVRANGE", Keys.recent(tenant), 0, limit - 1))
        sessions = [raw.decode() for raw in ids]
        known = await self._link.run_all(
            [("SMEMBERS", Keys(tenant, session).models) for session in sessions]
        )
        reads = [
            ("HGETALL", Keys(tenant, session, model.decode()).record)
            for session, models in zip(sessions, known, strict=True)
            for model in sorted(models)
        ]
        found = [read_record(pairs) for pairs in await self._link.run_all(reads)]
        return [record for record in found if record is not None][:limit]

    async def find_lineage(self, tenant: str, model: str, keys: Sequence[str]) -> str | None:
        reads = [("GET", Keys.lineage(tenant, model, step)) for step in keys]
        found = [value for value in await self._link.run_all(reads) if value is not None]
        return found[0].decode() if found else None

    # -- what routers tell each other

    async def exchange(
        self, router: str, report: bytes, ttl_s: float, *, news: bytes = b"", seen: str = ""
    ) -> Told:
        reports, told, last = await self._link.run(
            _EXCHANGE.command(
                Keys.reports(), router, report, ttl_s, _ms(NEWS_LIVE * ttl_s), news, seen,
                NEWS_AT_ONCE, _MOST_NEWS_BYTES,
            )
        )  # fmt: skip
        return Told(
            {name.decode(): other for name, other in _pairs(reports)},
            [(name.decode(), other) for name, other in _pairs(told)],
            last.decode(),
        )

    async def put_adapter(self, name: str, data: bytes) -> None:
        key = Keys.adapters()
        await self._link.run_all(
            [("HSET", key, name, data), ("PEXPIRE", key, self._ttl_ms)],
        )

    async def adapters(self) -> dict[str, bytes]:
        return await self._hash(Keys.adapters())

    async def put_release(self, served: str, seen: bytes | None, data: bytes) -> bytes:
        said: bytes = await self._link.run(
            _PUT_RELEASE.command((Keys.releases(),), served, seen or b"", data, self._ttl_ms)
        )
        return said

    async def releases(self) -> dict[str, bytes]:
        return await self._hash(Keys.releases())

    async def put_figures(self, release: str, router: str, data: bytes) -> None:
        key = Keys.figures(release)
        await self._link.run_all([("HSET", key, router, data), ("PEXPIRE", key, self._ttl_ms)])

    async def figures(self, release: str) -> dict[str, bytes]:
        return await self._hash(Keys.figures(release))

    async def _hash(self, key: str) -> dict[str, bytes]:
        """What is kept in it, and its expiry renewed."""
        told, _ = await self._link.run_all([("HGETALL", key), ("PEXPIRE", key, self._ttl_ms)])
        pairs = told.items() if isinstance(told, dict) else _pairs(told)  # RESP2 gives a list
        return {name.decode(): data for name, data in pairs}

    # -- idempotency

    async def begin_once(
        self, tenant: str, once: OnceKey, turn: str
    ) -> StoredResult | Running | None:
        found = await self._link.run(
            _BEGIN_ONCE.command(
                (Keys.once(tenant, once.key),), turn, once.asked, self._once_ttl_ms, self._lease_ms
            )
        )
        if found is None:
            return None
        by, asked, result, leased = found
        return _result(result) if result else Running(by.decode(), asked.decode(), leased == 1)

    async def renew_once(self, held: Sequence[HeldKey]) -> None:
        await self._link.run_together(
            [
                _RENEW_ONCE.command(
                    (Keys.once(tenant, key),), turn, self._once_ttl_ms, self._lease_ms
                )
                for tenant, key, turn in held
            ]
        )

    async def end_once(self, held: HeldKey, result: StoredResult | None) -> None:
        answer = b"" if result is None else _encode(result)
        name = Keys.once(held.tenant, held.key)
        await self._link.run(_END_ONCE.command((name,), held.turn, answer, self._once_ttl_ms))


def _pairs(flat: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _given(value: int | None) -> str | int:
    return "" if value is None else value
