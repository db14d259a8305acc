"""The reference store: one router's memory, gone with its process.

Simple on purpose: it is what the contract means, and what `redis_store` is tested against.
"""

import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from sessile.errors import TurnLockLost
from sessile.sessions.expiring import Expiring
from sessile.sessions.memory_conversations import MemoryConversations
from sessile.sessions.memory_log import MemoryLog
from sessile.sessions.record import Binding, SessionKey, SessionRecord, TurnRecord
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

_MOST_ENTRIES = 100_000


class MemoryStore:
    """Implements `Store`. Every step is atomic because none of them awaits."""

    def __init__(
        self,
        limits: StoreLimits,
        clock: Callable[[], float] = time.time,
        most_entries: int = _MOST_ENTRIES,
    ) -> None:
        self._clock = clock
        self.events = MemoryLog(limits.events, clock)
        self._records: Expiring[SessionKey, SessionRecord] = Expiring(
            limits.ttl_s, clock, most_entries
        )
        self._bindings: Expiring[SessionKey, Binding] = Expiring(
            limits.binding_ttl_s, clock, most_entries
        )
        self._locks: Expiring[SessionKey, str] = Expiring(limits.ttl_s, clock, most_entries)
        self._fences: Expiring[SessionKey, int] = Expiring(limits.ttl_s, clock, most_entries)
        self._turns: Expiring[tuple[str, str], TurnRecord] = Expiring(
            limits.turn_ttl_s, clock, most_entries
        )
        self._lineage: Expiring[tuple[str, str, str], str] = Expiring(
            limits.binding_ttl_s, clock, most_entries
        )
        self._reports: Expiring[str, bytes] = Expiring(limits.ttl_s, clock, most_entries)
        self._news: Expiring[int, tuple[str, bytes]] = Expiring(limits.ttl_s, clock, most_entries)
        self._last_news = 0
        self._adapters: Expiring[str, bytes] = Expiring(limits.ttl_s, clock, most_entries)
        self._variants: Expiring[SessionKey, str] = Expiring(limits.ttl_s, clock, most_entries)
        self._releases: Expiring[str, bytes] = Expiring(limits.ttl_s, clock, most_entries)
        self._figures: Expiring[tuple[str, str], bytes] = Expiring(
            limits.ttl_s, clock, most_entries
        )
        self._once: Expiring[tuple[str, str], StoredResult | Running] = Expiring(
            limits.idempotency_ttl_s, clock, most_entries
        )
        self._once_leases: Expiring[tuple[str, str], str] = Expiring(
            limits.events.lease_s, clock, most_entries
        )
        self.conversations = MemoryConversations(limits.ttl_s, clock, most_entries)

    async def open(self) -> None:
        """Nothing to connect."""

    async def aclose(self) -> None:
        """Nothing to write."""

    @property
    def available(self) -> bool:
        return True

    @property
    def available_since(self) -> float:
        return 0.0

    @property
    def lost_writes(self) -> int:
        return 0

    async def claim(self, key: SessionKey, replica: str, incarnation: str) -> Claim:
        record = self._records.get(key)
        held = record.context_tokens if record is not None else 0
        if record is not None and record.state == "closed":
            return Claim(Binding(replica, incarnation, 0), False, "closed", held)
        binding = self._bindings.get(key)
        won = binding is None
        if binding is None:
            binding = Binding(replica, incarnation, 1)
        self._bindings.put(key, binding)
        return Claim(binding, won, "open", held)

    async def refresh(self, key: SessionKey, binding: Binding) -> Binding | None:
        return self._refresh(key, binding)

    def _refresh(self, key: SessionKey, binding: Binding) -> Binding | None:
        current = self._bindings.get(key)
        if current == binding:
            self._bindings.put(key, binding)
        return current

    async def rebind(
        self, key: SessionKey, seen: Binding, replica: str, incarnation: str
    ) -> Binding:
        current = self._bindings.get(key)
        if current is not None and current != seen:
            return current
        moved = Binding(replica, incarnation, seen.epoch + 1)
        self._bindings.put(key, moved)
        return moved

    async def assign(
        self, key: SessionKey, variants: Sequence[str], keeping: Collection[str], proposal: str
    ) -> Assignment:
        said = self._variants.get(key)
        here = {name: SessionKey(key.tenant, name, key.session) for name in variants}
        found = said or next(
            (n for n, k in here.items() if self._records.get(k) or self._bindings.get(k)), None
        )
        record = self._records.get(SessionKey(key.tenant, found, key.session)) if found else None
        moves = found in here and found not in keeping
        stays = not moves or (record is not None and record.state == "closed")
        variant = found if found is not None and stays else proposal
        self._variants.put(key, variant)
        return Assignment(variant, found if variant != found else None, found is None)

    async def acquire(self, key: SessionKey, turn: str, ttl_s: float) -> int | None:
        if self._locks.get(key) not in (None, turn):
            return None
        # Counted from the clock, so that it grows also over a number that was forgotten.
        fence = max((self._fences.get(key) or 0) + 1, int(self._clock() * 1_000_000))
        self._locks.put(key, turn, ttl_s)
        self._fences.put(key, fence)
        return fence

    async def release(self, key: SessionKey, turn: str) -> None:
        if self._locks.get(key) == turn:
            self._locks.drop(key)

    def end_turn(self, end: TurnEnd, record: TurnRecord) -> None:
        self._end(end, record)

    async def commit_turn(self, end: TurnEnd, record: TurnRecord) -> None:
        if not self._end(end, record):
            raise TurnLockLost(f"turn {end.turn} has lost the lock of its session")

    def _end(self, end: TurnEnd, turn: TurnRecord) -> bool:
        """Whether the turn might write to its session: not after it has lost the turn lock."""
        key = end.key
        self._turns.put((key.tenant, end.turn), turn)
        for step in end.lineage:
            self._lineage.put((key.tenant, end.served or key.model, step), key.session)
        if end.fence is not None and self._fences.get(key) not in (None, end.fence):
            return False
        record = self._records.get(key) or SessionRecord(
            tenant=key.tenant,
            session=key.session,
            model=key.model,
            created_at=self._clock(),
            parent=end.parent,
            program=end.parent,
        )
        record.turns += 1
        record.last_turn_at = self._clock()
        if end.stateful:
            record.head = end.turn
        if end.prompt_tokens is not None:
            record.prompt_tokens += end.prompt_tokens
            record.context_tokens = end.prompt_tokens + (end.completion_tokens or 0)
        record.cached_tokens += end.cached_tokens or 0
        record.completion_tokens += end.completion_tokens or 0
        self._records.put(key, record)
        if end.binding is not None:
            self._refresh(key, end.binding)
        return True

    def put_turn(self, record: TurnRecord) -> None:
        self._turns.put((record.tenant, record.turn), record)

    async def get_turn(self, tenant: str, turn: str) -> TurnRecord | None:
        return self._turns.get((tenant, turn))

    async def delete_turn(self, tenant: str, turn: str) -> bool:
        found = self._turns.get((tenant, turn)) is not None
        self._turns.drop((tenant, turn))
        return found

    async def create_session(self, record: SessionRecord) -> bool:
        key = SessionKey(record.tenant, record.model, record.session)
        if self._records.get(key) is not None:
            return False
        self._records.put(key, msgspec.structs.replace(record))
        return True

    async def find_session(self, tenant: str, session: str) -> list[SessionRecord]:
        return [
            msgspec.structs.replace(record)
            for record in self._records.newest()
            if record.tenant == tenant and record.session == session
        ]

    async def close_session(self, key: SessionKey) -> bool:
        record = self._records.get(key)
        if record is None:
            return False
        record.state = "closed"
        self._bindings.drop(key)
        return True

    async def list_sessions(self, tenant: str, limit: int) -> list[SessionRecord]:
        mine = [record for record in self._records.newest() if record.tenant == tenant]
        return [msgspec.structs.replace(record) for record in mine[:limit]]

    async def exchange(
        self, router: str, report: bytes, ttl_s: float, *, news: bytes = b"", seen: str = ""
    ) -> Told:
        self._reports.put(router, report, ttl_s)
        if news:
            self._last_news += 1
            self._news.put(self._last_news, (router, news), NEWS_LIVE * ttl_s)
        last = int(seen or 0)
        new = [entry for entry in self._news.items() if entry[0] > last][:NEWS_AT_ONCE]
        return Told(
            {name: other for name, other in self._reports.items() if name != router},
            [told for _, told in new if told[0] != router],
            str(new[-1][0]) if new else seen,
        )

    async def put_adapter(self, name: str, data: bytes) -> None:
        self._adapters.put(name, data)

    async def adapters(self) -> dict[str, bytes]:
        told = dict(self._adapters.items())
        for name, data in told.items():
            self._adapters.put(name, data)
        return told

    async def put_release(self, served: str, seen: bytes | None, data: bytes) -> bytes:
        said = self._releases.get(served)
        if said is not None and said != seen:
            return said
        self._releases.put(served, data)
        return data

    async def releases(self) -> dict[str, bytes]:
        said = dict(self._releases.items())
        for served, data in said.items():
            self._releases.put(served, data)
        return said

    async def put_figures(self, release: str, router: str, data: bytes) -> None:
        self._figures.put((release, router), data)

    async def figures(self, release: str) -> dict[str, bytes]:
        return {router: data for (of, router), data in self._figures.items() if of == release}

    async def find_lineage(self, tenant: str, model: str, keys: Sequence[str]) -> str | None:
        for step in keys:
            if (found := self._lineage.get((tenant, model, step))) is not None:
                return found
        return None

    async def begin_once(
        self, tenant: str, once: OnceKey, turn: str
    ) -> StoredResult | Running | None:
        key = tenant, once.key
        found = self._once.get(key)
        if found is None:
            self._once.put(key, Running(turn, once.asked))
            self._once_leases.put(key, turn)
        elif isinstance(found, Running):
            return found._replace(leased=self._once_leases.get(key) is not None)
        return found

    async def renew_once(self, held: Sequence[HeldKey]) -> None:
        for tenant, key, turn in held:
            found = self._once.get((tenant, key))
            if isinstance(found, Running) and found.turn == turn:
                self._once.put((tenant, key), found)
                self._once_leases.put((tenant, key), turn)

    async def end_once(self, held: HeldKey, result: StoredResult | None) -> None:
        key = held.tenant, held.key
        found = self._once.get(key)
        if found is not None and found.turn != held.turn:
            return
        if result is None:
            self._once.drop(key)
        else:
            self._once.put(key, result)
