"""What a replica is believed to hold, and how much of its KV memory the live sessions need. Pure.

A model of the engine's own LRU over blocks that are keyed by their content, chained (see
`sessions.prefix`): what a turn computes or touches becomes the newest, and the oldest goes when the
capacity is full. It is corrected by every count of cached tokens that comes back. A block is *live*
while a session that runs, or is expected back, stands on it: live blocks are counted once however
many sessions share them, and whether or not the engine still has them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

BlockKey = int | str

_UNTOLD_TOKENS = 4_000_000  # what is remembered, at most, of a replica that tells no capacity


class _Block:
    __slots__ = ("live", "present", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.live = 0
        self.present = False


class _Chain:
    """What one session last stood on here: its full blocks, then its tail."""

    __slots__ = ("block_tokens", "keys", "live", "tokens", "used_at")

    def __init__(self, keys: list[BlockKey], block_tokens: int, tokens: int, used_at: int) -> None:
        self.keys = keys
        self.block_tokens = block_tokens
        self.tokens = tokens
        self.used_at = used_at
        self.live = False


class Found(NamedTuple):
    """What was there before a session's use: so many of its leading blocks, and what it last stood
    on, if all of that was."""

    blocks: int
    chain: _Chain | None = None


class Index:
    """Which replicas hold a block, or a session's tail: a bit for each, so that one look-up tells
    it of all.

    Made by the scheduler; the holdings that have joined keep it true.
    """

    def __init__(self) -> None:
        self.masks: dict[BlockKey, int] = {}
        self._taken = 0

    def join(self, holdings: "Holdings") -> None:
        """Look at these holdings too, from now on; they leave the index that they were in."""
        holdings.leave()
        bit = ~self._taken & (self._taken + 1)
        self._taken |= bit
        holdings.enter(self, bit)

    def leave(self, bit: int) -> None:
        """The holdings of this bit are not looked at any more; they have cleared it."""
        self._taken &= ~bit

    def leading(self, blocks: Sequence[BlockKey], mask: int) -> list[tuple[int, int]]:
        """Of those in `mask`, which hold how many leading blocks; who holds none is left out."""
        get = self.masks.get
        found = []
        depth = 0
        for key in blocks:
            have = get(key, 0) & mask
            if have != mask:
                if depth:
                    found.append((mask & ~have, depth))
                mask = have
                if not mask:
                    return found
            depth += 1
        if depth and mask:
            found.append((mask, depth))
        return found


class Holdings:
    """The blocks of one incarnation of one replica. Bounded by its capacity and its live sessions.

    `capacity_tokens` None is a replica that does not say: of its newest four million tokens nothing
    is believed evicted until a count of cached tokens contradicts it.
    """

    def __init__(self, capacity_tokens: int | None) -> None:
        self.capacity_tokens = capacity_tokens
        self.tokens = 0
        self.live_tokens = 0
        self._blocks: dict[BlockKey, _Block] = {}
        self._order: OrderedDict[BlockKey, _Block] = OrderedDict()
        self._chains: OrderedDict[str, _Chain] = OrderedDict()
        self._stored = 0
        self._reach_tokens: float | None = None
        self.index: Index | None = None
        self.bit = 0

    def enter(self, index: Index, bit: int) -> None:
        """Keep the index true from now on; only it calls this."""
        self.index, self.bit = index, bit
        for key in self._order:
            index.masks[key] = index.masks.get(key, 0) | bit

    def leave(self) -> None:
        """No index is to look here any more."""
        if self.index is not None:
            for key in self._order:
                self._unindex(key)
            self.index.leave(self.bit)
            self.index, self.bit = None, 0

    def _unindex(self, key: BlockKey) -> None:
        if self.index is not None:
            left = self.index.masks[key] & ~self.bit
            if left:
                self.index.masks[key] = left
            else:
                del self.index.masks[key]

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, blocks: Sequence[BlockKey]) -> int:
        """Tokens of the leading blocks that are present. NOTE: whoever touches a block touches
        those before it too, so they are never the first to leave: the last is found by halving."""
        get = self._blocks.get
        low, high, size = 0, len(blocks), 0
        while low < high:
            middle = (low + high + 1) // 2
            block = get(blocks[middle - 1])
            if block is not None and block.present:
                low, size = middle, block.tokens
            else:
                high = middle - 1
        return low * size

    def held(self, session: str, blocks: Sequence[BlockKey]) -> int:
        """Tokens believed present of a prompt with these leading blocks; the session's own tail
        counts where the prompt goes on from all of it."""
        chain = self._chains.get(session)
        if chain is not None:
            full = len(chain.keys) - 1
            if len(blocks) >= full and (not full or blocks[full - 1] == chain.keys[full - 1]):
                tail = self._blocks.get(chain.keys[full])
                if tail is not None and tail.present:
                    return chain.tokens
        return self.match(blocks)

    def is_live(self, session: str) -> bool:
        """Whether the session's blocks are counted as live."""
        chain = self._chains.get(session)
        return chain is not None and chain.live

    def need(self, session: str, blocks: Sequence[BlockKey], tokens: int) -> int:
        """How much `live_tokens` grows if the session runs here with `tokens` in all."""
        get = self._blocks.get
        low, high = 0, len(blocks)
        size = 0
        while low < high:  # NOTE: as in `match`: the blocks before a live one are live
            middle = (low + high + 1) // 2
            block = get(blocks[middle - 1])
            if block is not None and block.live:
                low, size = middle, block.tokens
            else:
                high = middle - 1
        shared = low * size
        chain = self._chains.get(session)
        if chain is not None and chain.live:
            tail = self._blocks[chain.keys[-1]]
            shared += tail.tokens
        return max(0, tokens - shared)

    def use(
        self, session: str, blocks: Sequence[BlockKey], block_tokens: int, tokens: int
    ) -> Found:
        """The session stands on these blocks, now the newest and live, and on a tail up to
        `tokens`: at the start of a turn its prompt and expected reply, at the end what came of
        it."""
        keys: list[BlockKey] = [*blocks, session]
        tail = max(0, tokens - block_tokens * len(blocks))
        before = self._chains.pop(session, None)
        common = 0
        if before is not None and before.live:
            common = _common(before.keys, keys)
            self._count(before, -1, since=common)
        get, touch = self._blocks.get, self._order.move_to_end
        block = get(session)
        stood = before if block is not None and block.present else None
        if block is None or not block.present:
            self._store(session, block, tail)
        else:
            self._resize(block, tail)
            touch(session)
        new = 0
        for key in reversed(blocks):  # NOTE: the deepest is the oldest and goes first
            block = get(key)
            if block is not None and block.present:
                if block.tokens != block_tokens:
                    self._resize(block, block_tokens)  # it was a guess before the engine counted
                touch(key)
            else:
                self._store(key, block, block_tokens)
                new += 1
        self._chains[session] = chain = _Chain(keys, block_tokens, max(tokens, 0), self._stored)
        chain.live = True
        self._count(chain, 1, since=common)
        self._evict()
        return Found(len(blocks) - new, stood)

    def take_back(self, session: str, blocks: Sequence[BlockKey], found: Found) -> None:
        """The session's last use came to nothing, since its turn was refused: what was not there
        before is not there now, but for blocks that others stand on by now. The session stands
        where it stood before."""
        chain = self._chains.get(session)
        if chain is None or chain.keys[:-1] != list(blocks):
            return  # it has been used again meanwhile
        self.forget(session)
        for key in reversed(blocks[found.blocks :]):
            block = self._blocks.get(key)
            if block is not None and not block.live:
                self._drop(key, block)
        if found.chain is not None:
            keys = found.chain.keys[:-1]
            last = self._blocks.get(keys[-1]) if keys else None
            if not keys or (last is not None and last.present):
                self.use(session, keys, found.chain.block_tokens, found.chain.tokens)

    def _store(self, key: BlockKey, block: _Block | None, tokens: int) -> None:
        """A block becomes present, and the newest."""
        if block is None:
            block = self._blocks[key] = _Block(tokens)
        elif block.tokens != tokens:
            self._resize(block, tokens)
        block.present = True
        self.tokens += tokens
        self._stored += tokens
        self._order[key] = block
        if self.index is not None:
            known = self.index.masks.get(key)
            self.index.masks[key] = self.bit if known is None else known | self.bit

    def resume(self, session: str, tokens: int, block_tokens: int = 0) -> None:
        """The session stands where it last stood, with so many tokens now, and so many a block if
        that is known better."""
        chain = self._chains.get(session)
        if chain is not None:
            self.use(session, chain.keys[:-1], block_tokens or chain.block_tokens, tokens)

    def reach_to(self, session: str, tokens: int) -> None:
        """What the session stands on has so many tokens now, the tail the rest; nothing is
        touched."""
        chain = self._chains.get(session)
        if chain is None:
            return
        tail = self._blocks.get(session)
        if tail is not None and tail.present:
            chain.tokens = tokens
            self._resize(tail, max(0, tokens - chain.block_tokens * (len(chain.keys) - 1)))
            self._evict()

    def release(self, session: str) -> None:
        """The session is not expected back soon: its blocks are live for it no longer."""
        chain = self._chains.get(session)
        if chain is not None and chain.live:
            chain.live = False
            self._count(chain, -1)
            if session not in self._blocks:
                del self._chains[session]

    def forget(self, session: str) -> None:
        """The session is closed or has moved: it stands here no longer."""
        self.release(session)
        self._chains.pop(session, None)
        tail = self._blocks.get(session)
        if tail is not None:
            self._drop(session, tail)

    def age(self, session: str) -> int | None:
        """Tokens stored here since the session's last turn; None if nothing is known of it."""
        chain = self._chains.get(session)
        return None if chain is None else self._stored - chain.used_at

    def correct(self, believed: int, cached: int, age: int | None) -> None:
        """The engine found `cached` tokens where `believed` were expected, of a session that was
        of that age: it evicts sooner than was believed, or not as soon."""
        if not age or not believed:
            return  # nobody else has stored anything since
        reach = float(age + believed)
        if cached < believed / 2:  # NOTE: a little less is a reply that was tokenised anew
            known = self._reach_tokens or float(self.capacity_tokens or max(self.tokens, reach))
            self._reach_tokens = min(known, 0.5 * (known + reach))
            self._evict()
        elif self._reach_tokens is not None and reach > 0.9 * self._reach_tokens:
            self._reach_tokens *= 1.05

    @property
    def reach_tokens(self) -> float:
        """The capacity that the model works with: the replica's own, or less where that was seen
        to be too much."""
        told = float(_UNTOLD_TOKENS if self.capacity_tokens is None else self.capacity_tokens)
        if self._reach_tokens is None:
            return told
        least = 1024.0 if self.capacity_tokens is None else 0.5 * told
        return min(told, max(self._reach_tokens, least))

    def _count(self, chain: _Chain, by: int, since: int = 0) -> None:
        for key in chain.keys[since:]:
            block = self._blocks.get(key)
            if block is None:
                continue
            before = block.live
            block.live = max(0, before + by)
            if not before and block.live:
                self.live_tokens += block.tokens
            elif before and not block.live:
                self.live_tokens -= block.tokens
                if not block.present:
                    del self._blocks[key]

    def _resize(self, block: _Block, tokens: int) -> None:
        grown = tokens - block.tokens
        block.tokens = tokens
        if block.present:
            self.tokens += grown
            self._stored += max(0, grown)
        if block.live:
            self.live_tokens += grown

    def _evict(self) -> None:
        reach = self.reach_tokens
        while self.tokens > reach and len(self._order) > 1:
            key, block = next(iter(self._order.items()))
            self._drop(key, block)

    def _drop(self, key: BlockKey, block: _Block) -> None:
        if block.present:
            del self._order[key]
            self._unindex(key)
            block.present = False
            self.tokens -= block.tokens
        if not block.live:
            self._blocks.pop(key, None)
        if isinstance(key, str):
            chain = self._chains.get(key)
            if chain is not None and not chain.live:
                del self._chains[key]


def _common(one: Sequence[BlockKey], other: Sequence[BlockKey]) -> int:
    """How many leading keys two chains share: keys are chained, so equal keys have equal pasts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
