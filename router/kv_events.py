"""What engines tell of their KV blocks: read off the wire, and put in order by sequence number.

SGLang and vLLM publish the same form: a msgpack array `[time, events, rank]`, its events maps
tagged by `type`. Older ones publish the events as arrays, some vLLMs the batch as a map. Fields
that are not used here (the token ids, above all) are skipped without being decoded. What becomes
of the events is decided in `blocks`.
"""

from typing import Any, Literal

import msgspec

from sessile.errors import ReplicaRefused

BlockKey = int | bytes
"""An engine's own hash of a block, chained with its parent's: equal keys mean equal content."""


class Stored(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="BlockStored"):
    """A run of blocks is there now: the first hangs on the parent, each other on the one before.

    `medium` is the GPU where it is None. `session_id` is that of the request that caused it; the
    blocks may serve others too. `lora_name` is the adapter that they were computed with: the same
    tokens have other blocks without it. `group_idx` and `kv_cache_spec_kind` are vLLM's: a hybrid
    model stores its blocks once for each group of layers.
    """

    block_hashes: list[BlockKey]
    parent_block_hash: BlockKey | None
    block_size: int
    medium: str | None = None
    session_id: str | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    lora_name: str | None = None


class Removed(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="BlockRemoved"):
    """These blocks have left that medium."""

    block_hashes: list[BlockKey]
    medium: str | None = None
    group_idx: int | None = None


class Cleared(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="AllBlocksCleared"):
    """The whole cache was emptied."""


Event = Stored | Removed | Cleared


class _ArrayBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[Event]


class _MapBatch(msgspec.Struct):
    events: list[Event]


class _RawArrayBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]


class _RawMapBatch(msgspec.Struct):
    events: list[msgspec.Raw]


class _OldStored(msgspec.Struct, array_like=True, tag="BlockStored"):
    block_hashes: list[BlockKey]
    parent_block_hash: BlockKey | None
    token_ids: msgspec.Raw
    block_size: int
    lora_id: Any = None
    medium: str | None = None

    def event(self) -> Stored:
        return Stored(self.block_hashes, self.parent_block_hash, self.block_size, self.medium)


class _OldRemoved(msgspec.Struct, array_like=True, tag="BlockRemoved"):
    block_hashes: list[BlockKey]
    medium: str | None = None

    def event(self) -> Removed:
        return Removed(self.block_hashes, self.medium)


class _OldCleared(msgspec.Struct, array_like=True, tag="AllBlocksCleared"):
    def event(self) -> Cleared:
        return Cleared()


class _Tagged(msgspec.Struct):
    type: str


class _OldTagged(msgspec.Struct, array_like=True):
    type: str


_ARRAY, _MAP = msgspec.msgpack.Decoder(_ArrayBatch), msgspec.msgpack.Decoder(_MapBatch)
_RAW_ARRAY = msgspec.msgpack.Decoder(_RawArrayBatch)
_RAW_MAP = msgspec.msgpack.Decoder(_RawMapBatch)
_EVENT = msgspec.msgpack.Decoder(Event)
_OLD_EVENT = msgspec.msgpack.Decoder(_OldStored | _OldRemoved | _OldCleared)
_TAGGED, _OLD_TAGGED = msgspec.msgpack.Decoder(_Tagged), msgspec.msgpack.Decoder(_OldTagged)
_MAPS = frozenset(bytes([first]) for first in (*range(0x80, 0x90), 0xDE, 0xDF))
"""How a map begins in msgpack: a short one, or one that tells its length."""
_KNOWN = ("BlockStored", "BlockRemoved", "AllBlocksCleared")


def read_batch(payload: bytes) -> list[Event]:
    """The events of one message, in order, kinds that are not known here left out.

    Raises `ReplicaRefused` for what is no batch, or holds a known kind in an unknown form.
    """
    maps = payload[:1] in _MAPS
    try:
        try:
            return (_MAP if maps else _ARRAY).decode(payload).events
        except msgspec.ValidationError:
            told = (_RAW_MAP if maps else _RAW_ARRAY).decode(payload).events
            events = (_event(raw) for raw in told)
            return [event for event in events if event is not None]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReplicaRefused(f"its KV events cannot be read: {error}") from error


def _event(raw: msgspec.Raw) -> Event | None:
    if memoryview(raw)[:1].tobytes() in _MAPS:
        return _EVENT.decode(raw) if _TAGGED.decode(raw).type in _KNOWN else None
    return _OLD_EVENT.decode(raw).event() if _OLD_TAGGED.decode(raw).type in _KNOWN else None


Take = Literal["apply", "duplicate", "gap", "anew"]


class Feed:
    """The sequence of one publisher, which numbers its messages from 0 at each of its starts.

    Made for one subscription. `next` is the number awaited: all before it were applied, or given
    up by `skip_to`.
    """

    def __init__(self) -> None:
        self.next = 0
        self._last: bytes | None = None  # the message before `next`, if it was applied
        self._live = -1

    @property
    def heard(self) -> bool:
        """Whether a message came as it was published, since the publisher began."""
        return self._live >= 0

    def live(self, seq: int, payload: bytes) -> Take:
        """What to do with a message as it is published.

        1. apply it, as the one awaited;
        2. leave it out: a replay had it;
        3. ask for a replay from before `next`, then `take` it;
        4. begin anew, since the publisher was restarted: it counts from 0 again. Then ask again.
        """
        if seq <= self._live:  # live numbers only rise
            return self._begin()
        self._live = seq
        return self.take(seq, payload)

    def take(self, seq: int, payload: bytes) -> Take:
        """The same for a message of a replay, or one that a replay was asked for."""
        if seq < self.next:
            # Messages carry their time: another one of the same number is another publisher's.
            another = seq == self.next - 1 and self._last not in (None, payload)
            return self._begin() if another else "duplicate"
        if seq > self.next:
            return "gap"
        self.next, self._last = seq + 1, payload
        return "apply"

    def skip_to(self, seq: int) -> None:
        """Await `seq` from now on."""
        self.next, self._last = seq, None

    def _begin(self) -> Take:
        self.skip_to(0)
        self._live = -1
        return "anew"
