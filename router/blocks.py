"""Which KV blocks one replica holds, and how far each session's reach: the engine's own word.

A pure index of what `kv_events` reads. Unknown is a state: until all events since the engine's
start were seen, or again once some were lost, the tree is not whole, and a session that it does
not know is unknown, not absent. It decides nothing.
"""

from collections.abc import Iterable, Sequence

import msgspec

from sessile.router.kv_events import BlockKey, Event, Removed, Stored

_DEVICE, _HOST = 1, 2
_MAX_BLOCKS = 1 << 20
_MAX_SESSIONS = 100_000

_RankedKey = BlockKey | tuple[int, BlockKey]


class _Node(msgspec.Struct, gc=False):  # it refers only to its ancestors: no cycles to collect
    """One block. In the tree while it, or a block below it, is on some tier."""

    key: _RankedKey
    parent: "_Node | None"
    size_tokens: int
    depth_tokens: int
    tiers: int = 0
    children: int = 0
    sessions: set[str] | None = None


class BlockTree:
    """The blocks of one incarnation of a replica. Made and fed by `kv_feed`, read by anyone.

    For each session it keeps the tip: the deepest block that was stored under its `session_id`,
    or the nearest ancestor still in the tree once that is gone. A session's tokens are those of
    the unbroken run of present blocks from the root towards its tip. They are a lower bound:
    blocks that others stored and it only used further down are not attributed to it.

    Each data-parallel rank has a cache of its own; all of them share this tree, their keys apart.
    A block that is stored twice and removed once counts as gone (vLLM keeps duplicates for a
    while).
    """

    def __init__(
        self,
        ranks: Iterable[int] = (0,),
        *,
        max_blocks: int = _MAX_BLOCKS,
        max_sessions: int = _MAX_SESSIONS,
    ) -> None:
        self.blocks = 0
        self.tokens = 0
        self._partial = set(ranks)
        self._max_blocks = max_blocks
        self._max_sessions = max_sessions
        self._root = _Node(b"", None, 0, 0)
        self._nodes: dict[_RankedKey, _Node] = {}
        self._tips: dict[str, _Node] = {}  # the session that stored least recently is first
        self._holes = 0  # nodes on no tier: normally none, since engines evict leaves first
        self._group: int | None = None

    @property
    def whole(self) -> bool:
        """Whether the tree knows all that the engine holds."""
        return not self._partial

    @property
    def sessions(self) -> int:
        """How many sessions have a tip."""
        return len(self._tips)

    def held_tokens(self, session: str) -> int | None:
        """How much of the session is on the GPU; 0 is known to be none, None is unknown."""
        tip = self._tips.get(session)
        if tip is None:
            return 0 if self.whole else None
        return self._on_device(self._unbroken(tip)).depth_tokens

    def host_tokens(self, session: str) -> int | None:
        """How much more of it, beyond `held_tokens`, can be loaded from the host's memory."""
        tip = self._tips.get(session)
        if tip is None:
            return 0 if self.whole else None
        reach = self._unbroken(tip)
        return reach.depth_tokens - self._on_device(reach).depth_tokens

    def apply(self, events: Iterable[Event], rank: int = 0) -> None:
        """Take in what a rank told, in order."""
        for event in events:
            if type(event) is Stored:
                self.stored(event, rank)
            elif type(event) is Removed:
                self.removed(event, rank)
            else:
                self.cleared(rank)

    def stored(self, event: Stored, rank: int = 0) -> None:
        """A run of blocks is there now.

        One that hangs on a block not seen is left out: how deep it lies is not known.
        """
        tier = _tier(event.medium)
        if not tier or not self._counts(event):
            return
        node: _Node | None = self._root
        if event.parent_block_hash is not None:
            (key,) = _ranked([event.parent_block_hash], rank)
            node = self._nodes.get(key)
        if node is None:
            self._partial.add(rank)
            return
        nodes, size, depth = self._nodes, event.block_size, node.depth_tokens
        device = tier == _DEVICE
        fresh = 0
        for key in _ranked(event.block_hashes, rank):
            depth += size
            child = nodes.get(key)
            if child is None:
                if len(nodes) >= self._max_blocks:
                    self._partial.add(rank)
                    break
                child = nodes[key] = _Node(key, node, size, depth, tier)
                node.children += 1
                fresh += device
            elif not child.tiers & tier:
                self._holes -= not child.tiers
                child.tiers |= tier
                fresh += device
            node = child
        self.blocks += fresh
        self.tokens += fresh * size
        if event.session_id is not None and node is not self._root:
            self._reach(tip_of(event.session_id, event.lora_name), node)

    def removed(self, event: Removed, rank: int = 0) -> None:
        """Blocks have left a tier."""
        tier = _tier(event.medium)
        if not tier or event.group_idx != self._group:
            return
        gone = []
        for key in _ranked(event.block_hashes, rank):
            node = self._nodes.get(key)
            if node is None or not node.tiers & tier:
                continue
            node.tiers &= ~tier
            if tier == _DEVICE:
                self.blocks -= 1
                self.tokens -= node.size_tokens
            if not node.tiers:
                self._holes += 1
                gone.append(node)
        for node in gone:
            self._prune(node)

    def cleared(self, rank: int = 0) -> None:
        """The rank holds nothing now, and that is known."""
        self._forget(rank)
        self._partial.discard(rank)

    def lost(self, rank: int = 0) -> None:
        """What the rank holds is not known: events of it were missed."""
        self._forget(rank)
        self._partial.add(rank)

    def _reach(self, session: str, node: _Node) -> None:
        tip = self._tips.pop(session, None)
        if tip is not None and tip.depth_tokens >= node.depth_tokens:
            node = tip
        elif tip is not None:
            _leave(session, tip)
        elif len(self._tips) >= self._max_sessions:
            oldest = next(iter(self._tips))
            _leave(oldest, self._tips.pop(oldest))
        self._tips[session] = node
        _rest((session,), node)

    def _prune(self, node: _Node) -> None:
        """Take a node out that has nothing below it, and those above that it alone had kept; the
        sessions that ended there end at the first that stays."""
        sessions: list[str] = []
        while not node.tiers and not node.children and (parent := node.parent) is not None:
            del self._nodes[node.key]
            self._holes -= 1
            if node.sessions:
                sessions += node.sessions
            node.parent = None  # it was taken out
            node = parent
            node.children -= 1
        if node is self._root:
            for session in sessions:
                del self._tips[session]
        elif sessions:
            self._tips.update(dict.fromkeys(sessions, node))
            _rest(sessions, node)

    def _forget(self, rank: int) -> None:
        keep = [n for n in self._nodes.values() if _rank(n.key) != rank]
        self._nodes = {n.key: n for n in keep}
        self._tips = {s: n for s, n in self._tips.items() if _rank(n.key) != rank}
        self._root.children = sum(n.parent is self._root for n in keep)
        self._holes = sum(not n.tiers for n in keep)
        on_device = [n.size_tokens for n in keep if n.tiers & _DEVICE]
        self.blocks, self.tokens = len(on_device), sum(on_device)

    def _unbroken(self, tip: _Node) -> _Node:
        """The last node from the root towards `tip` before one that is on no tier."""
        reach = node = tip
        while self._holes and node.parent is not None:
            if not node.tiers:
                reach = node.parent
            node = node.parent
        return reach

    def _on_device(self, node: _Node) -> _Node:
        while node.parent is not None and not node.tiers & _DEVICE:
            node = node.parent
        return node

    def _counts(self, event: Stored) -> bool:
        """Whether the event speaks for the cache: of a hybrid model's groups, the first seen that
        attends to the full context does."""
        if event.group_idx is None or event.group_idx == self._group:
            return True
        kind = event.kv_cache_spec_kind or ""
        if self._group is None and (not kind or kind.endswith(("full_attention", "mla_attention"))):
            self._group = event.group_idx
            return True
        return False


def tip_of(session: str, adapter: str | None) -> str:
    """The name under which a session's tip is kept: it has one for each adapter it speaks to."""
    return session if adapter is None else f"{adapter}\x1f{session}"


def _rest(sessions: Iterable[str], node: _Node) -> None:
    if node.sessions is None:
        node.sessions = set(sessions)
    else:
        node.sessions.update(sessions)


def _leave(session: str, node: _Node) -> None:
    if node.sessions is not None:
        node.sessions.discard(session)


def _tier(medium: str | None) -> int:
    """GPU and host memory count; disks and remote stores (0) do not."""
    if medium is None or medium == "GPU":
        return _DEVICE
    return _HOST if medium.startswith("CPU") else 0


def _ranked(keys: list[BlockKey], rank: int) -> Sequence[_RankedKey]:
    return [(rank, key) for key in keys] if rank else keys


def _rank(key: _RankedKey) -> int:
    return key[0] if isinstance(key, tuple) else 0
