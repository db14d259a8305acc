"""Conversations in Redis: a hash of facts, the order of the items, and the items by id, under one
hash tag. The names of the keys are `redis_store.Keys`'."""

from collections.abc import Callable, Sequence

import msgspec

from sessile.sessions import scripts
from sessile.sessions.conversation import PAGE, ConversationRecord, Item
from sessile.sessions.redis_link import RedisLink, Script

_CREATE = Script(scripts.CONVERSATION_CREATE)
_UPDATE = Script(scripts.CONVERSATION_UPDATE)
_APPEND = Script(scripts.CONVERSATION_APPEND)
_PAGE = Script(scripts.CONVERSATION_PAGE)
_GET = Script(scripts.CONVERSATION_GET)
CONVERSATION_SCRIPTS = (_CREATE, _UPDATE, _APPEND, _PAGE, _GET)

_encode = msgspec.msgpack.Encoder().encode
_item = msgspec.msgpack.Decoder(Item).decode
_metadata = msgspec.msgpack.Decoder(dict[str, str]).decode

KeysOf = Callable[[str, str], tuple[str, str, str]]


class RedisConversations:
    """Implements `Conversations`. Made by `RedisStore`, whose link it shares; `keys` gives the keys
    of a tenant's conversation: facts, order, items."""

    def __init__(self, link: RedisLink, keys: KeysOf, ttl_ms: int) -> None:
        self._link = link
        self._keys = keys
        self._ttl_ms = ttl_ms

    async def create(self, record: ConversationRecord, items: Sequence[Item]) -> None:
        await self._link.run(
            _CREATE.command(
                self._keys(record.tenant, record.id), self._ttl_ms, record.created_at,
                _encode(record.metadata), *_pairs(items),
            )
        )  # fmt: skip

    async def get(self, tenant: str, conversation: str) -> ConversationRecord | None:
        keys = self._keys(tenant, conversation)
        found = await self._link.run(_GET.command(keys, self._ttl_ms))
        if found is None:
            return None
        created_at, metadata, size = found
        return ConversationRecord(
            tenant=tenant,
            id=conversation,
            created_at=int(created_at),
            metadata=_metadata(metadata),
            size=size,
        )

    async def update(
        self, tenant: str, conversation: str, metadata: dict[str, str]
    ) -> ConversationRecord | None:
        facts, _, _ = self._keys(tenant, conversation)
        await self._link.run(_UPDATE.command((facts,), _encode(metadata)))
        return await self.get(tenant, conversation)

    async def delete(self, tenant: str, conversation: str) -> bool:
        facts, order, items = self._keys(tenant, conversation)
        # One command: what comes between two would append to half a conversation.
        dropped: int = await self._link.run(("DEL", facts, order, items))
        return dropped > 0

    async def append(self, tenant: str, conversation: str, items: Sequence[Item]) -> bool:
        keys = self._keys(tenant, conversation)
        return bool(await self._link.run(_APPEND.command(keys, self._ttl_ms, *_pairs(items))))

    async def page(
        self,
        tenant: str,
        conversation: str,
        *,
        after: str | None = None,
        limit: int = PAGE,
        newest_first: bool = False,
    ) -> list[Item] | None:
        keys = self._keys(tenant, conversation)
        found = await self._link.run(
            _PAGE.command(
                keys, self._ttl_ms, after or "", min(limit, PAGE), "REV" if newest_first else ""
            )
        )
        return None if found is None else [_item(data) for data in found]

    async def get_item(self, tenant: str, conversation: str, item: str) -> Item | None:
        _, _, items = self._keys(tenant, conversation)
        data = await self._link.run(("HGET", items, item))
        return None if data is None else _item(data)

    async def delete_item(self, tenant: str, conversation: str, item: str) -> bool:
        _, order, items = self._keys(tenant, conversation)
        dropped, _ = await self._link.run_all([("HDEL", items, item), ("ZREM", order, item)])
        return bool(dropped)


def _pairs(items: Sequence[Item]) -> list[str | bytes]:
    return [part for item in items for part in (item["id"], _encode(item))]
