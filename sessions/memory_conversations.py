"""Conversations in one router's memory: the reference that the other stores are tested against."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from sessile.sessions.conversation import PAGE, ConversationRecord, Item


class _Kept(msgspec.Struct):
    """A conversation with its items by id, in their order, and when it ends."""

    record: ConversationRecord
    items: dict[str, Item]
    ends_at: float


class MemoryConversations:
    """Implements `Conversations`. Every step is atomic because none of them awaits."""

    def __init__(
        self, ttl_s: float, clock: Callable[[], float] = time.time, most: int = 100_000
    ) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._most = most
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def create(self, record: ConversationRecord, items: Sequence[Item]) -> None:
        kept = _Kept(record, {item["id"]: item for item in items}, 0.0)
        self._kept[record.tenant, record.id] = kept
        self._find(record.tenant, record.id, new=True)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    async def get(self, tenant: str, conversation: str) -> ConversationRecord | None:
        kept = self._find(tenant, conversation)
        return None if kept is None else _counted(kept)

    async def update(
        self, tenant: str, conversation: str, metadata: dict[str, str]
    ) -> ConversationRecord | None:
        kept = self._find(tenant, conversation)
        if kept is None:
            return None
        kept.record = msgspec.structs.replace(kept.record, metadata=metadata)
        return _counted(kept)

    async def delete(self, tenant: str, conversation: str) -> bool:
        found = self._find(tenant, conversation) is not None
        self._kept.pop((tenant, conversation), None)
        return found

    async def append(self, tenant: str, conversation: str, items: Sequence[Item]) -> bool:
        kept = self._find(tenant, conversation)
        if kept is None:
            return False
        kept.items.update((item["id"], item) for item in items)
        return True

    async def page(
        self,
        tenant: str,
        conversation: str,
        *,
        after: str | None = None,
        limit: int = PAGE,
        newest_first: bool = False,
    ) -> list[Item] | None:
        kept = self._find(tenant, conversation)
        if kept is None:
            return None
        ids = list(kept.items)
        if newest_first:
            ids.reverse()
        if after is not None:
            ids = ids[ids.index(after) + 1 :] if after in kept.items else []
        return [kept.items[id] for id in ids[: min(limit, PAGE)]]

    async def get_item(self, tenant: str, conversation: str, item: str) -> Item | None:
        kept = self._find(tenant, conversation)
        return None if kept is None else kept.items.get(item)

    async def delete_item(self, tenant: str, conversation: str, item: str) -> bool:
        kept = self._find(tenant, conversation)
        return kept is not None and kept.items.pop(item, None) is not None

    def _find(self, tenant: str, conversation: str, *, new: bool = False) -> _Kept | None:
        """What is kept, its expiry renewed."""
        kept = self._kept.get((tenant, conversation))
        if kept is None:
            return None
        now = self._clock()
        if kept.ends_at <= now and not new:
            del self._kept[tenant, conversation]
            return None
        kept.ends_at = now + self._ttl_s
        self._kept.move_to_end((tenant, conversation))
        return kept


def _counted(kept: _Kept) -> ConversationRecord:
    return msgspec.structs.replace(kept.record, size=len(kept.items))
