"""What every store must do for conversations, whatever it keeps them in."""

from typing import Any

import pytest

from sessile.sessions.conversation import PAGE, ConversationRecord, read_whole
from sessile.sessions.record import SessionKey, TurnRecord
from sessile.sessions.store import Store, TurnEnd


def record(id: str = "conv_1", tenant: str = "acme", **metadata: str) -> ConversationRecord:
    return ConversationRecord(tenant=tenant, id=id, created_at=1_700_000_000, metadata=metadata)


def items(*names: str) -> list[dict[str, Any]]:
    return [{"id": name, "type": "message", "content": f"of {name} ü"} for name in names]


async def ids(store: Store, **options: Any) -> list[str]:
    page = await store.conversations.page("acme", "conv_1", **options)
    assert page is not None
    return [item["id"] for item in page]


async def test_a_conversation_comes_back_as_it_was_made(store: Store) -> None:
    """Its facts, its metadata and its items, word for word."""
    kept = store.conversations
    await kept.create(record(topic="tea", odd="\r\n{ü}"), items("a", "b"))
    found = await kept.get("acme", "conv_1")
    assert found is not None
    assert (found.created_at, found.metadata) == (1_700_000_000, {"topic": "tea", "odd": "\r\n{ü}"})
    assert found.size == 2
    assert await kept.page("acme", "conv_1") == items("a", "b")
    assert await kept.get_item("acme", "conv_1", "b") == items("b")[0]


async def test_one_without_items_is_one(store: Store) -> None:
    """It has an empty page, where one that is not there has none."""
    await store.conversations.create(record(), [])
    assert await store.conversations.page("acme", "conv_1") == []
    assert await store.conversations.page("acme", "conv_2") is None
    assert await store.conversations.get("acme", "conv_2") is None


async def test_items_keep_the_order_in_which_they_came(store: Store) -> None:
    """Pages go forward and backward, and go on behind an item."""
    await store.conversations.create(record(), items("c"))
    assert await store.conversations.append("acme", "conv_1", items("a", "b"))
    assert await store.conversations.append("acme", "conv_1", items("d"))
    assert await ids(store) == ["c", "a", "b", "d"]
    assert await ids(store, newest_first=True) == ["d", "b", "a", "c"]
    assert await ids(store, after="a", limit=1) == ["b"]
    assert await ids(store, after="b", newest_first=True) == ["a", "c"]
    assert await ids(store, after="d") == []
    assert await ids(store, after="nothing") == []


async def test_appending_again_changes_nothing(store: Store) -> None:
    """An item of an id that is there is replaced where it stands."""
    await store.conversations.create(record(), items("a", "b"))
    assert await store.conversations.append("acme", "conv_1", items("a", "b"))
    assert await ids(store) == ["a", "b"]
    await store.conversations.append("acme", "conv_1", [{"id": "a", "text": "new"}])
    assert await store.conversations.get_item("acme", "conv_1", "a") == {"id": "a", "text": "new"}
    assert await ids(store) == ["a", "b"]


async def test_metadata_is_replaced(store: Store) -> None:
    """All of it, and of a conversation that is there only."""
    await store.conversations.create(record(a="1"), items("a"))
    changed = await store.conversations.update("acme", "conv_1", {"b": "2"})
    assert changed is not None and changed.metadata == {"b": "2"} and changed.size == 1
    assert await store.conversations.update("acme", "conv_2", {}) is None
    assert await store.conversations.get("acme", "conv_2") is None


async def test_what_is_deleted_stays_deleted(store: Store) -> None:
    """Nothing can be appended to it, and none of its items is found."""
    await store.conversations.create(record(), items("a"))
    assert await store.conversations.delete("acme", "conv_1")
    assert not await store.conversations.delete("acme", "conv_1")
    assert not await store.conversations.append("acme", "conv_1", items("b"))
    assert await store.conversations.get("acme", "conv_1") is None
    assert await store.conversations.page("acme", "conv_1") is None
    assert await store.conversations.get_item("acme", "conv_1", "a") is None


async def test_one_item_is_deleted(store: Store) -> None:
    """The others stay in their order."""
    await store.conversations.create(record(), items("a", "b", "c"))
    assert await store.conversations.delete_item("acme", "conv_1", "b")
    assert not await store.conversations.delete_item("acme", "conv_1", "b")
    assert not await store.conversations.delete_item("acme", "conv_2", "a")
    assert await ids(store) == ["a", "c"]


async def test_tenants_do_not_share_conversations(store: Store) -> None:
    """The same id of another tenant is another conversation, or none."""
    kept = store.conversations
    await kept.create(record(), items("a"))
    assert await kept.get("other", "conv_1") is None
    assert not await kept.append("other", "conv_1", items("b"))
    assert await kept.get_item("other", "conv_1", "a") is None
    assert not await kept.delete_item("other", "conv_1", "a")
    assert not await kept.delete("other", "conv_1")
    await kept.create(record(tenant="other"), items("z"))
    assert await ids(store) == ["a"]


async def test_a_conversation_lives_from_its_last_use(bench: Any) -> None:
    """Each use renews it; left alone it ends, with all of its items."""
    kept = bench.store.conversations
    await kept.create(record(), items("a"))
    for use in (
        kept.get("acme", "conv_1"),
        kept.page("acme", "conv_1"),
        kept.append("acme", "conv_1", items("b")),
    ):
        await bench.elapse(3000)
        assert await use
    await bench.elapse(4001)
    assert await kept.get("acme", "conv_1") is None
    assert await kept.page("acme", "conv_1") is None


async def test_a_long_conversation_is_read_in_pages(store: Store) -> None:
    """A page is bounded; the whole is read in several."""
    names = [f"item_{n}" for n in range(2 * PAGE + 1)]
    await store.conversations.create(record(), items(*names))
    assert len(await ids(store, limit=10 * PAGE)) == PAGE
    whole = await read_whole(store.conversations, "acme", "conv_1")
    assert whole is not None and [item["id"] for item in whole] == names
    assert await read_whole(store.conversations, "acme", "conv_2") is None


@pytest.mark.parametrize("tenant", ["acme", "other"])
async def test_a_turn_is_deleted_for_its_tenant(store: Store, tenant: str) -> None:
    """The turn is gone for its own tenant, and no other can make it go."""
    key = SessionKey("acme", "m", "s")
    turn = TurnRecord(turn="resp_1", tenant="acme", session="s", model="m")
    await store.commit_turn(TurnEnd(key=key, turn="resp_1", binding=None), turn)
    mine = tenant == "acme"
    assert await store.delete_turn(tenant, "resp_1") is mine
    assert (await store.get_turn("acme", "resp_1") is None) is mine
