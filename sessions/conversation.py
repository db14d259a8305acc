"""A conversation by name: metadata and items in their order, that turns read and append to.

What a store must do for them, as a protocol; the items are a client's and an engine's, and nothing
here looks into them beyond their id.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

Item = dict[str, Any]

PAGE = 1_000
"""How many items one call gives at most, so that a long conversation is not one long wait."""


class ConversationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The stored fact of a conversation. `created_at` is in Unix seconds, `size` in items."""

    tenant: str
    id: str
    created_at: int
    metadata: dict[str, str] = {}
    size: int = 0


class Conversations(Protocol):
    """Keeps conversations, each until it was not used for the life of a session.

    A conversation of another tenant is as one that does not exist. Every method may raise
    `StoreUnavailable`.
    """

    async def create(self, record: ConversationRecord, items: Sequence[Item]) -> None:
        """Store a new conversation with its first items; `record.size` is not looked at."""

    async def get(self, tenant: str, conversation: str) -> ConversationRecord | None:
        """The conversation as it is now."""

    async def update(
        self, tenant: str, conversation: str, metadata: dict[str, str]
    ) -> ConversationRecord | None:
        """Replace its metadata; the conversation as it is then, None if there is none."""

    async def delete(self, tenant: str, conversation: str) -> bool:
        """Drop it with its items; False if there is none. What is deleted stays so: only `create`
        makes a conversation."""

    async def append(self, tenant: str, conversation: str, items: Sequence[Item]) -> bool:
        """Add items, each with an `id`, at the end, all or none; False if there is no such
        conversation. An item whose id is there already is replaced in its place, so that appending
        the same items again changes nothing."""

    async def page(
        self,
        tenant: str,
        conversation: str,
        *,
        after: str | None = None,
        limit: int = PAGE,
        newest_first: bool = False,
    ) -> list[Item] | None:
        """At most `limit` items in their order, or from the newest on: those behind `after`, which
        is an item's id (none for one that is unknown). None: there is no such conversation."""

    async def get_item(self, tenant: str, conversation: str, item: str) -> Item | None:
        """One item."""

    async def delete_item(self, tenant: str, conversation: str, item: str) -> bool:
        """Drop one item; False if it is not there."""


async def read_whole(store: Conversations, tenant: str, conversation: str) -> list[Item] | None:
    """Every item in order, page by page; None if there is no such conversation."""
    items: list[Item] = []
    while True:
        after = items[-1]["id"] if items else None
        page = await store.page(tenant, conversation, after=after)
        if page is None:
            return None
        items += page
        if len(page) < PAGE:
            return items
