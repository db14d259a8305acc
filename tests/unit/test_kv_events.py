"""Reading KV events off the wire, and putting them in order."""

from typing import Any

import msgspec
import pytest

from sessile.errors import ReplicaRefused
from sessile.router.kv_events import Cleared, Feed, Removed, Stored, read_batch

SIGNED, UNSIGNED, BYTES = -(2**63), 2**64 - 1, b"\x01" * 32


def packed(*events: Any, ts: float = 1.5) -> bytes:
    """A message as SGLang and vLLM send it."""
    return msgspec.msgpack.encode([ts, events, 0])


STORED = {
    "type": "BlockStored",
    "block_hashes": [SIGNED, UNSIGNED, BYTES],
    "parent_block_hash": 7,
    "token_ids": list(range(48)),
    "block_size": 16,
    "lora_id": None,
    "medium": "GPU",
    "session_id": "s",
    "extra_keys": [["salt"], None, None],
}
REMOVED = {"type": "BlockRemoved", "block_hashes": [BYTES], "medium": "CPU_PINNED"}


def test_a_batch_is_read_with_keys_of_every_kind() -> None:
    """Signed, unsigned and byte hashes come out as they went in; other fields are passed over."""
    assert read_batch(packed(STORED, REMOVED, {"type": "AllBlocksCleared"})) == [
        Stored([SIGNED, UNSIGNED, BYTES], 7, 16, "GPU", "s"),
        Removed([BYTES], "CPU_PINNED"),
        Cleared(),
    ]


def test_the_blocks_of_an_adapter_name_it() -> None:
    """The base's have None there, or nothing at all."""
    told = packed({**STORED, "lora_id": 4, "lora_name": "sql"}, {**STORED, "lora_name": None})
    assert [event.lora_name for event in read_batch(told) if isinstance(event, Stored)] == [
        "sql", None,
    ]  # fmt: skip


def test_events_and_fields_of_later_versions_are_left_out() -> None:
    """An unknown kind of event costs only itself."""
    new = {"type": "BlockMigrated", "block_hashes": "whatever"}
    later = {**REMOVED, "ownership": "tier-2", "locality": {"host": 3}}
    assert read_batch(packed(new, later, ["BlockMigrated", 1])) == [Removed([BYTES], "CPU_PINNED")]


def test_the_positional_form_of_old_versions_is_read() -> None:
    """Before the maps, each event was an array: its tag, then its fields in order."""
    stored = ["BlockStored", [1, 2], None, list(range(32)), 16, None]
    removed = ["BlockRemoved", [2]]
    assert read_batch(
        packed(stored, [*stored, "GPU", "adapter"], removed, ["AllBlocksCleared"])
    ) == [
        Stored([1, 2], None, 16),
        Stored([1, 2], None, 16, "GPU"),
        Removed([2]),
        Cleared(),
    ]


def test_a_batch_that_is_a_map_is_read() -> None:
    """Some vLLMs name the parts of a batch."""
    body = {"ts": 1.5, "events": [REMOVED, {"type": "New"}], "data_parallel_rank": 0}
    assert read_batch(msgspec.msgpack.encode(body)) == [Removed([BYTES], "CPU_PINNED")]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(3),
        msgspec.msgpack.encode([1.5]),
        packed(7),
        packed([]),
        packed({"no": "type"}),
        packed({**STORED, "block_hashes": ["a string"]}),
        packed(["BlockStored", 3]),
    ],
)
def test_what_cannot_be_read_is_refused(payload: bytes) -> None:
    """What is no batch, or a known event in a form that is not, is not passed over in silence."""
    with pytest.raises(ReplicaRefused, match="its KV events cannot be read"):
        read_batch(payload)


def live(feed: Feed, *numbers: int, start: str = "") -> list[str]:
    """What the feed says to messages as they are published after one start."""
    return [feed.live(seq, f"{start}{seq}".encode()) for seq in numbers]


def replayed(feed: Feed, *numbers: int, start: str = "") -> list[str]:
    """What the feed says to messages of a replay."""
    return [feed.take(seq, f"{start}{seq}".encode()) for seq in numbers]


def test_messages_in_order_are_applied() -> None:
    """From 0, each after the one before."""
    feed = Feed()
    assert live(feed, 0, 1, 2) == ["apply"] * 3
    assert feed.next == 3


def test_a_gap_is_filled_by_a_replay_and_what_it_had_is_not_applied_twice() -> None:
    """A missed message is asked for; those that come live and replayed count once."""
    feed = Feed()
    assert live(feed, 0, 3) == ["apply", "gap"]
    assert feed.next == 1
    assert replayed(feed, 0, 1, 2, 3, 4) == ["duplicate", *["apply"] * 4]
    assert replayed(feed, 3) == ["duplicate"]
    assert live(feed, 4, 5) == ["duplicate", "apply"]


def test_a_gap_that_stays_is_skipped() -> None:
    """What no replay has any more is given up, and the rest goes on from there."""
    feed = Feed()
    assert live(feed, 500) == ["gap"]
    feed.skip_to(500)
    assert replayed(feed, 500) == ["apply"]
    assert live(feed, 501) == ["apply"]


def test_live_numbers_that_do_not_rise_are_a_restart() -> None:
    """The publisher counts from 0 again when its engine starts again."""
    feed = Feed()
    assert live(feed, 0, 1, 2) == ["apply"] * 3
    assert live(feed, 0, 0, 1, start="b") == ["anew", "apply", "apply"]
    assert live(feed, 1, 1, start="c") == ["anew", "gap"]
    assert feed.next == 0


def test_another_message_of_the_same_number_is_a_restart() -> None:
    """A publisher that has overtaken its former self is found out by the last message applied."""
    feed = Feed()
    assert live(feed, 0, 1) == ["apply"] * 2
    assert live(feed, 5, start="b") == ["gap"]
    assert replayed(feed, 1, 0, start="b") == ["anew", "apply"]
