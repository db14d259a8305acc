"""The tree of one replica's blocks, against a naive one that walks and remembers everything."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sessile.router.blocks import BlockTree, tip_of
from sessile.router.kv_events import BlockKey, Cleared, Event, Removed, Stored

SIZE = 16


def store(
    keys: Sequence[BlockKey], parent: BlockKey | None = None, session: str | None = None, **of: Any
) -> Stored:
    """A run of blocks of 16 tokens."""
    return Stored(list(keys), parent, SIZE, session_id=session, **of)


def whole_tree(*events: Event, **limits: int) -> BlockTree:
    """A tree that saw its engine start."""
    tree = BlockTree(**limits)
    tree.apply([Cleared(), *events])
    return tree


def test_a_session_holds_down_to_its_deepest_block() -> None:
    """What others stored above counts: the blocks of a session hang on a shared prefix."""
    tree = whole_tree(store([1, 2]), store([3, 4], 2, "a"), store([5], 2, "b"), store([6], 4, "a"))
    assert (tree.held_tokens("a"), tree.held_tokens("b")) == (5 * SIZE, 3 * SIZE)
    assert (tree.blocks, tree.tokens, tree.sessions) == (6, 6 * SIZE, 2)


def test_a_session_retreats_as_its_blocks_are_evicted() -> None:
    """Leaves go first; what is left of the session is its nearest ancestor that stays."""
    tree = whole_tree(store([1, 2]), store([3, 4], 2, "a"))
    tree.apply([Removed([4])])
    assert tree.held_tokens("a") == 3 * SIZE
    tree.apply([Removed([3]), store([7], 2)])
    assert tree.held_tokens("a") == 2 * SIZE
    tree.apply([Removed([7, 1, 2])])
    assert (tree.held_tokens("a"), tree.sessions, tree.blocks) == (0, 0, 0)


def test_a_parent_that_goes_before_its_child_cuts_the_session_short() -> None:
    """A block that hangs on nothing cannot be matched, until what it hangs on is back."""
    tree = whole_tree(store([1, 2, 3, 4], session="a"))
    tree.apply([Removed([2])])
    assert (tree.held_tokens("a"), tree.blocks) == (SIZE, 3)
    tree.apply([store([2], 1)])
    assert tree.held_tokens("a") == 4 * SIZE
    tree.apply([Removed([1, 2, 3])])
    assert (tree.held_tokens("a"), tree.blocks) == (0, 1)
    tree.apply([Removed([4])])
    assert tree.sessions == 0


def test_a_session_holds_apart_what_each_adapter_computed() -> None:
    """One session id that speaks to a model and its adapter has a tip for each."""
    adapted = store([11], session="a", lora_name="sql")
    tree = whole_tree(store([1, 2, 3], session="a"), adapted)
    assert tree.held_tokens("a") == 3 * SIZE
    assert tree.held_tokens(tip_of("a", "sql")) == SIZE
    assert tree.held_tokens(tip_of("a", "other")) == 0
    tree.apply([Removed([1, 2, 3])])
    assert (tree.held_tokens("a"), tree.held_tokens(tip_of("a", "sql"))) == (0, SIZE)


def test_unknown_is_not_zero() -> None:
    """Before the tree is whole, and after events were lost, an unseen session is unknown."""
    tree = BlockTree()
    assert (tree.whole, tree.held_tokens("a"), tree.host_tokens("a")) == (False, None, None)
    tree.apply([store([1], session="a")])
    assert (tree.held_tokens("a"), tree.held_tokens("b")) == (SIZE, None)
    tree.apply([Cleared()])
    assert (tree.whole, tree.held_tokens("a"), tree.host_tokens("b")) == (True, 0, 0)
    tree.apply([store([1], session="a")])
    tree.lost()
    assert (tree.whole, tree.held_tokens("a"), tree.blocks) == (False, None, 0)


def test_blocks_that_hang_on_an_unseen_one_are_left_out() -> None:
    """Their depth is not known, so neither is what their session holds; nor is the tree whole."""
    tree = whole_tree(store([9], 8, "a"))
    assert (tree.whole, tree.held_tokens("a"), tree.blocks) == (False, None, 0)


def test_blocks_on_the_host_are_told_apart() -> None:
    """Evicted from the GPU but kept in the host's memory: to be loaded, not to be computed."""
    tree = whole_tree(
        store([1, 2, 3], session="a"),
        store([2, 3], 1, medium="CPU_PINNED"),
        Removed([3, 2], "GPU"),
        store([4], 3, medium="DISK"),
    )
    assert (tree.held_tokens("a"), tree.host_tokens("a")) == (SIZE, 2 * SIZE)
    assert (tree.blocks, tree.tokens) == (1, SIZE)
    tree.apply([store([2], 1, medium="GPU"), Removed([3], "CPU_PINNED"), Removed([4], "DISK")])
    assert (tree.held_tokens("a"), tree.host_tokens("a")) == (2 * SIZE, 0)


def test_ranks_of_one_replica_hold_blocks_of_their_own() -> None:
    """The same content has the same key on each rank; one may evict or lose it alone."""
    tree = BlockTree((0, 1))
    tree.cleared(0)
    assert not tree.whole
    tree.cleared(1)
    for rank, session in ((0, "a"), (1, "b")):
        tree.apply([store([1, 2], session=session)], rank)
    assert (tree.whole, tree.blocks) == (True, 4)
    tree.apply([Removed([2])], 1)
    assert (tree.held_tokens("a"), tree.held_tokens("b")) == (2 * SIZE, SIZE)
    tree.lost(1)
    assert (tree.held_tokens("a"), tree.held_tokens("b"), tree.blocks) == (2 * SIZE, None, 2)


def test_one_group_speaks_for_a_hybrid_model() -> None:
    """Its sliding windows drop early blocks; the layers that see all of the context keep them."""
    window = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window"}
    full = {"group_idx": 2, "kv_cache_spec_kind": "full_attention"}
    tree = whole_tree(store([1, 2], None, "a", **window), store([1, 2], None, "a", **full))
    tree.apply([Removed([1], "GPU", 1)])
    assert tree.held_tokens("a") == 2 * SIZE
    tree.apply([Removed([2], "GPU", 2)])
    assert tree.held_tokens("a") == SIZE


def test_memory_is_bounded() -> None:
    """Blocks beyond the limit are not entered, and the tree says so; of sessions the one that
    stored least recently goes."""
    tree = whole_tree(store([1, 2, 3], session="a"), max_blocks=2)
    assert (tree.blocks, tree.whole, tree.held_tokens("a")) == (2, False, 2 * SIZE)
    tree = whole_tree(*(store([n], session=f"s{n}") for n in (1, 2, 1, 3)), max_sessions=2)
    assert (tree.sessions, tree.held_tokens("s1"), tree.held_tokens("s2")) == (2, SIZE, 0)


class NaiveTree:
    """Sets and walks: where each key is, what each hangs on, and each session's tip."""

    def __init__(self) -> None:
        self.on: dict[str, set[int]] = {"GPU": set(), "CPU": set()}
        self.parents: dict[int, int | None] = {}
        self.tips: dict[str, int] = {}

    def path(self, key: int | None) -> list[int]:
        """The keys from the root to this one."""
        return [] if key is None else [*self.path(self.parents[key]), key]

    def kept(self) -> set[int]:
        """What is somewhere, or has something below it that is."""
        return {key for there in self.on.values() for leaf in there for key in self.path(leaf)}

    def apply(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, Cleared):
            self.__init__()  # type: ignore[misc]
            return
        keys: Any = event.block_hashes
        where = self.on[event.medium or "GPU"]
        if isinstance(event, Removed):
            where.difference_update(keys)
        else:
            where.update(keys)
            before: Any = event.parent_block_hash
            for key in keys:
                self.parents[key] = before
                before = key
            tip = self.tips.get(event.session_id or "")
            if event.session_id and len(self.path(before)) > len(self.path(tip)):
                self.tips[event.session_id] = before
        kept = self.kept()
        for session in list(self.tips):
            staying = [key for key in self.path(self.tips[session]) if key in kept]
            if staying:
                self.tips[session] = staying[-1]
            else:
                del self.tips[session]

    def held(self, session: str) -> tuple[int, int]:
        """What of the session is on the GPU, and what more of it on the host."""
        reach = 0
        held = 0
        for depth, key in enumerate(self.path(self.tips.get(session)), start=1):
            if key not in self.on["GPU"] | self.on["CPU"]:
                break
            reach = depth
            held = depth if key in self.on["GPU"] else held
        return held * SIZE, (reach - held) * SIZE


SESSIONS = ("a", "b", "c")
PARENTS = {key: (key - 1) // 2 if key > 2 else None for key in range(1, 25)}  # a binary forest
mediums = st.sampled_from(["GPU", "GPU", "GPU", "CPU", None])


def _run(leaf: int, length: int) -> tuple[list[int], int | None]:
    """The last so many keys of the path to a leaf, and what they hang on."""
    path: list[int] = []
    key: int | None = leaf
    while key is not None:
        path.insert(0, key)
        key = PARENTS[key]
    run = path[-length:]
    return run, PARENTS[run[0]]


stores = st.builds(
    lambda run, session, medium: store(run[0], run[1], session, medium=medium),
    st.builds(_run, st.sampled_from(sorted(PARENTS)), st.integers(1, 5)),
    st.sampled_from([*SESSIONS, None]),
    mediums,
)
removals = st.builds(Removed, st.lists(st.sampled_from(sorted(PARENTS)), max_size=6), mediums)
events = st.one_of(stores, stores, removals, st.just(Cleared()))


@given(st.lists(events, max_size=60))
def test_it_agrees_with_the_naive_tree(told: list[Event]) -> None:
    """Whatever engines may tell, in whatever order they evict."""
    tree, naive = whole_tree(), NaiveTree()
    for event in told:
        parent = event.parent_block_hash if isinstance(event, Stored) else None
        if parent is not None and parent not in naive.kept():
            continue  # left out, which is another test's subject
        tree.apply([event])
        naive.apply(event)
        for session in SESSIONS:
            found = (tree.held_tokens(session), tree.host_tokens(session))
            assert found == naive.held(session)
        assert tree.blocks == len(naive.on["GPU"])
        assert tree.tokens == tree.blocks * SIZE
        assert tree.sessions == len(naive.tips)
    assert tree.whole
