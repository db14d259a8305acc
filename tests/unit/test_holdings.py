"""What a replica is believed to hold, against a naive LRU that walks lists."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from sessile.router.holdings import Holdings, Index

BLOCK = 10


def chain(path):
    """Chained keys: each stands for all before it."""
    return [hash(tuple(path[: n + 1])) for n in range(len(path))]


class Naive:
    """The same by lists and sums: the oldest first, the live sessions beside it."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.sizes = {}
        self.live = {}

    def use(self, session, keys, tokens):
        """Touch from the tail to the first block, then let the oldest go."""
        for key in [session, *reversed(keys)]:
            self.sizes.pop(key, None)
            self.sizes[key] = BLOCK if key != session else max(0, tokens - BLOCK * len(keys))
        self.live[session] = {key: BLOCK for key in keys} | {session: self.sizes[session]}
        while sum(self.sizes.values()) > self.capacity and len(self.sizes) > 1:
            del self.sizes[next(iter(self.sizes))]

    def match(self, keys):
        """By a linear walk."""
        found = 0
        for key in keys:
            if key not in self.sizes:
                break
            found += BLOCK
        return found

    def live_tokens(self):
        """Each block once."""
        union = {}
        for blocks in self.live.values():
            union |= blocks
        return sum(union.values())


PATHS = st.lists(st.integers(0, 1), max_size=8)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["use", "use", "use", "release", "forget"]),
        st.sampled_from(["s", "t", "u", "v"]),
        PATHS,
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(st.integers(0, 200), STEPS)
def test_it_agrees_with_a_naive_lru(capacity, steps):
    """Tokens, what is present, what is live, and what the index tells: the same after every step,
    within the capacity."""
    holdings, naive, index = Holdings(capacity), Naive(capacity), Index()
    index.join(holdings)
    for what, session, path, tail in steps:
        keys = chain(path)
        if what == "use":
            tokens = BLOCK * len(keys) + tail
            before = holdings.live_tokens
            if session not in naive.live:
                grows = holdings.need(session, keys, tokens)
                holdings.use(session, keys, BLOCK, tokens)
                assert holdings.live_tokens - before == grows
            else:
                holdings.use(session, keys, BLOCK, tokens)
            naive.use(session, keys, tokens)
        elif what == "release":
            holdings.release(session)
            naive.live.pop(session, None)
        else:
            holdings.forget(session)
            naive.live.pop(session, None)
            naive.sizes.pop(session, None)
        assert holdings.tokens == sum(naive.sizes.values())
        assert holdings.tokens <= capacity or len(naive.sizes) == 1
        assert holdings.live_tokens == naive.live_tokens() >= 0
        assert holdings.match(keys) == naive.match(keys)
        depth = naive.match(keys) // BLOCK
        assert index.leading(keys, holdings.bit) == ([(holdings.bit, depth)] if depth else [])
        assert index.masks.keys() == naive.sizes.keys()
        for live in ("s", "t", "u", "v"):
            assert holdings.is_live(live) == (live in naive.live)


def test_an_index_tells_who_holds_how_much():
    """Several replicas in one look-up; of those that leave it nothing is told any more."""
    index, (one, other, third) = Index(), (Holdings(None) for _ in range(3))
    one.use("s", chain([1, 2, 3]), BLOCK, 34)  # before it joins
    for holdings in (one, other, third):
        index.join(holdings)
    other.use("t", chain([1, 9]), BLOCK, 20)
    everyone = one.bit | other.bit | third.bit
    assert index.leading(chain([1, 2, 3, 4]), everyone) == [(other.bit, 1), (one.bit, 3)]
    assert index.leading(chain([1, 2, 3, 4]), third.bit) == []
    assert index.masks["s"] == one.bit and index.masks["t"] == other.bit
    bit = one.bit
    one.leave()
    assert index.leading(chain([1, 2, 3, 4]), everyone) == [(other.bit, 1)]
    newcomer = Holdings(None)
    index.join(newcomer)
    assert newcomer.bit == bit  # bits are used again
    Index().join(other)
    assert not index.masks


def test_shared_blocks_are_live_once():
    """Two sessions on one prefix need it once, and it stays live until both have gone."""
    holdings, keys = Holdings(1000), chain([1, 2, 3])
    holdings.use("s", keys, BLOCK, 34)
    assert holdings.need("t", keys, 35) == 5
    holdings.use("t", keys, BLOCK, 35)
    assert holdings.live_tokens == 30 + 4 + 5
    holdings.release("s")
    assert holdings.live_tokens == 35
    holdings.release("t")
    assert holdings.live_tokens == 0 and holdings.tokens == 39


def test_the_deepest_leaves_first():
    """Of what was touched together the tail is the oldest, and the beginning stays longest."""
    holdings, keys = Holdings(50), chain([1, 2, 3])
    holdings.use("s", keys, BLOCK, 35)
    holdings.release("s")
    for tokens, left in ((16, 30), (26, 20), (36, 10)):
        holdings.use("t", [], BLOCK, tokens)
        assert holdings.match(keys) == left
        assert holdings.age("s") is None


def test_what_one_session_needs_is_never_evicted_whole():
    """More than the capacity in one block stays: a running turn is there all the same."""
    holdings = Holdings(5)
    holdings.use("s", [], BLOCK, 50)
    assert holdings.tokens == 50


def test_a_tail_counts_for_its_own_session_only():
    """A prompt that goes on from all of a session finds its tail too; another finds its blocks."""
    holdings, keys = Holdings(1000), chain([1, 2])
    holdings.use("s", keys, BLOCK, 27)
    assert holdings.held("s", chain([1, 2, 3])) == 27
    assert holdings.held("t", chain([1, 2, 3])) == 20
    assert holdings.held("s", chain([1, 9])) == 10


def test_a_session_resumes_where_it_stood_and_is_forgotten_whole():
    """`resume` keeps its blocks and grows its tail; `forget` leaves only what others may share."""
    holdings, keys = Holdings(1000), chain([1, 2])
    holdings.use("s", keys, BLOCK, 25)
    holdings.release("s")
    assert holdings.age("s") is not None and not holdings.is_live("s")
    holdings.resume("s", 29)
    assert holdings.is_live("s") and holdings.live_tokens == 29
    holdings.forget("s")
    assert holdings.age("s") is None and not holdings.live_tokens
    assert holdings.match(keys) == 20 == holdings.tokens
    holdings.resume("s", 99)
    assert holdings.tokens == 20


def test_the_reach_shrinks_when_the_engine_forgot_sooner_and_grows_again():
    """Half of what was believed, missing, is a smaller memory; finding it again is a larger one."""
    holdings = Holdings(10_000)
    assert holdings.reach_tokens == 10_000
    holdings.correct(1000, 0, None)
    holdings.correct(1000, 0, 0)
    assert holdings.reach_tokens == 10_000
    holdings.correct(1000, 0, 5000)
    shrunk = holdings.reach_tokens
    assert 5000 <= shrunk < 10_000
    holdings.correct(1000, 990, 9500)
    assert shrunk < holdings.reach_tokens <= 10_000


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 50_000))))
def test_the_reach_stays_within_what_the_replica_said(reports):
    """Between half of the capacity and all of it, whatever comes back."""
    holdings = Holdings(10_000)
    for believed, cached, age in reports:
        holdings.correct(believed, cached, age)
        assert 5000 <= holdings.reach_tokens <= 10_000


def test_without_a_capacity_nothing_is_evicted_until_a_count_contradicts():
    """A replica that does not say is taken at its word until it forgets."""
    holdings = Holdings(None)
    for n in range(50):
        holdings.use(f"s{n}", [], BLOCK, 1000)
        holdings.release(f"s{n}")
    assert holdings.tokens == 50_000
    holdings.correct(1000, 0, 4000)
    assert holdings.tokens < 50_000


def test_a_replica_that_tells_no_capacity_is_not_remembered_for_ever():
    """The newest tokens are, up to a bound; the sessions of the older ones are forgotten."""
    holdings = Holdings(None)
    for number in range(50):
        holdings.use(f"s{number}", range(number * 100, number * 100 + 100), 1_000, 100_000)
        holdings.release(f"s{number}")
    assert holdings.tokens <= 4_000_000
    assert holdings.age("s0") is None and holdings.held("s0", range(100)) == 0
    assert holdings.held("s49", range(4900, 5000)) == 100_000


@given(STEPS, st.sampled_from(["s", "t"]), PATHS, st.integers(0, 9))
def test_a_use_that_came_to_nothing_is_taken_back(steps, session, path, tail):
    """Whatever was there before: what is present, and what each session is held to have, is as it
    was; the session itself is live only where it stood on something."""
    holdings, index = Holdings(None), Index()
    index.join(holdings)
    for what, of, over, end in steps:
        if what == "use":
            holdings.use(of, chain(over), BLOCK, BLOCK * len(over) + end)
        else:
            getattr(holdings, what)(of)

    def state():
        prompts = [chain([*over, 0]) for over in product([0, 1], repeat=3)]
        held = [holdings.held(of, keys) for of in ("s", "t", "u", "v") for keys in prompts]
        live = [holdings.is_live(of) for of in ("s", "t", "u", "v") if of != session]
        return holdings.tokens, held, live, sorted(map(str, index.masks.items()))

    before, stood = state(), holdings.age(session) is not None
    was_live, live_tokens = holdings.is_live(session), holdings.live_tokens
    found = holdings.use(session, chain(path), BLOCK, BLOCK * len(path) + tail)
    holdings.take_back(session, chain(path), found)
    assert state() == before and holdings.is_live(session) == stood
    if was_live == stood:
        assert holdings.live_tokens == live_tokens
    for of in ("s", "t", "u", "v"):
        holdings.release(of)
    assert not holdings.live_tokens


def test_what_others_stand_on_is_not_taken_back():
    """Another turn has the same prefix under way: it will be there. A turn of the session that came
    since stands, too."""
    holdings, keys = Holdings(1000), chain([1, 2, 3])
    found = holdings.use("s", keys, BLOCK, 34)
    holdings.use("t", keys[:2], BLOCK, 25)
    holdings.take_back("s", keys, found)
    assert holdings.match(keys) == 20 and holdings.live_tokens == 25 == holdings.tokens
    found = holdings.use("s", keys, BLOCK, 34)
    holdings.use("s", keys[:1], BLOCK, 17)
    holdings.take_back("s", keys, found)
    assert holdings.is_live("s") and holdings.held("s", keys) == 17
