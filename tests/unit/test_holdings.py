"""What a replica is believed to hold, against a walk over plain lists."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from sessile.router.holdings import Holdings, Index

SIZE = 10


def keys(path: str) -> tuple[int, ...]:
    """Chained keys of a prompt that is named by its blocks: equal beginnings, equal keys."""
    return tuple(hash(tuple(map(ord, path[: end + 1]))) for end in range(len(path)))


@dataclass
class Naive:
    """The same by walking over everything, each time."""

    capacity: int
    order: list[int | str] = field(default_factory=list)
    sizes: dict[int | str, int] = field(default_factory=dict)
    chains: dict[str, tuple[tuple[int | str, ...], int]] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)

    def use(self, session: str, path: str, tokens: int) -> None:
        chain = (*keys(path), session)
        self.sizes.update(dict.fromkeys(keys(path), SIZE))
        self.sizes[session] = max(0, tokens - SIZE * len(path))
        for key in reversed(chain):
            if key in self.order:
                self.order.remove(key)
            self.order.append(key)
        self.chains[session] = (chain, tokens)
        self.live.add(session)
        while self.tokens() > self.capacity and len(self.order) > 1:
            self.evict(self.order[0])

    def evict(self, key: int | str) -> None:
        self.order.remove(key)
        if key in self.chains and key not in self.live:
            del self.chains[str(key)]

    def release(self, session: str) -> None:
        self.live.discard(session)
        if session not in self.order:
            self.chains.pop(session, None)

    def forget(self, session: str) -> None:
        self.release(session)
        self.chains.pop(session, None)
        if session in self.order:
            self.order.remove(session)

    def tokens(self) -> int:
        return sum(self.sizes[key] for key in self.order)

    def live_tokens(self) -> int:
        standing = {key for session in self.live for key in self.chains[session][0]}
        return sum(self.sizes[key] for key in standing)

    def match(self, path: str) -> int:
        found = 0
        for key in keys(path):
            if key not in self.order:
                break
            found += SIZE
        return found

    def held(self, session: str, path: str) -> int:
        chain, tokens = self.chains.get(session, ((), 0))
        goes_on = chain and chain[:-1] == keys(path)[: len(chain) - 1]
        return tokens if goes_on and session in self.order else self.match(path)


PATHS = st.text("ab", max_size=5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.sampled_from("xyz"), PATHS, st.integers(0, 25)),
        st.tuples(st.sampled_from(["release", "forget"]), st.sampled_from("xyz")),
    ),
    max_size=25,
)


@settings(max_examples=300)
@given(st.integers(0, 150), STEPS, PATHS)
def test_it_is_what_a_walk_over_lists_finds(capacity, steps, path):
    """After any uses, releases and closes: the same tokens, live tokens, matches and needs."""
    holdings, naive = Holdings(capacity), Naive(capacity)
    index = Index()
    index.join(holdings)
    for step in steps:
        if step[0] == "use":
            _, session, at, more = step
            tokens = SIZE * len(at) + more
            holdings.use(session, keys(at), SIZE, tokens)
            naive.use(session, at, tokens)
        else:
            getattr(holdings, step[0])(step[1])
            getattr(naive, step[0])(step[1])
        assert holdings.tokens == naive.tokens()
        assert holdings.live_tokens == naive.live_tokens()
        assert holdings.match(keys(path)) == naive.match(path)
        assert [s for s in "xyz" if holdings.is_live(s)] == sorted(naive.live)
        for session in "xyz":
            assert holdings.held(session, keys(path)) == naive.held(session, path)
        depth = naive.match(path) // SIZE
        assert index.leading(keys(path), 1) == ([(1, depth)] if depth else [])
        assert set(index.masks) == {key for key in naive.order if not isinstance(key, str)}


@given(STEPS, PATHS, st.integers(0, 25))
def test_need_is_how_much_more_would_be_live(steps, path, more):
    """What `need` says of a session is what `live_tokens` grows by when it runs, if it grows."""
    holdings = Holdings(None)
    for step in steps:
        if step[0] == "use":
            holdings.use(step[1], keys(step[2]), SIZE, SIZE * len(step[2]) + step[3])
        else:
            getattr(holdings, step[0])(step[1])
    tokens = SIZE * len(path) + more
    need, before = holdings.need("new", keys(path), tokens), holdings.live_tokens
    holdings.use("new", keys(path), SIZE, tokens)
    assert holdings.live_tokens - before == need


def test_nothing_is_evicted_where_the_capacity_is_unknown_until_a_count_contradicts():
    """Then it is believed to reach less far than the session that was missed."""
    holdings = Holdings(None)
    for number in range(100):
        holdings.use(f"s{number}", keys("ab" + chr(1000 + number) * 20), SIZE, 220)
    believed = holdings.held("s0", keys("ab" + chr(1000) * 20))
    assert believed == 220
    holdings.correct(believed, 0, holdings.age("s0"))
    holdings.use("new", keys("c" * 50), SIZE, 500)
    assert holdings.held("s0", keys("ab" + chr(1000) * 20)) < believed
    assert holdings.tokens <= holdings.reach_tokens < 21_000


def test_hits_where_misses_were_believed_widen_the_reach_again():
    """A count as high as was believed, near the reach, moves it out by a little."""
    holdings = Holdings(None)
    holdings.use("old", keys("a" * 300), SIZE, 3_000)
    holdings.correct(3_000, 0, 5_000)
    reach = holdings.reach_tokens
    holdings.correct(3_000, 3_000, 5_000)
    assert reach < holdings.reach_tokens < 1.1 * reach


def test_a_session_resumes_where_it_stood():
    """Its blocks are kept, its tail grows to what the turn came to."""
    holdings = Holdings(1000)
    holdings.use("s", keys("abc"), SIZE, 35)
    holdings.resume("s", 48)
    assert holdings.held("s", keys("abc")) == 48 and holdings.live_tokens == 48
    holdings.resume("stranger", 10)
    assert holdings.live_tokens == 48


def test_an_index_tells_who_holds_how_much():
    """Several replicas in one look-up; those that leave it are told of no more."""
    index, (one, other, third) = Index(), (Holdings(None) for _ in range(3))
    one.use("s", keys("abc"), SIZE, 30)  # before it joins
    for holdings in (one, other, third):
        index.join(holdings)
    other.use("t", keys("ax"), SIZE, 20)
    everyone = one.bit | other.bit | third.bit
    assert index.leading(keys("abcd"), everyone) == [(other.bit, 1), (one.bit, 3)]
    assert index.leading(keys("abcd"), third.bit) == []
    bit = one.bit
    one.leave()
    assert index.leading(keys("abcd"), everyone) == [(other.bit, 1)]
    newcomer = Holdings(None)
    index.join(newcomer)
    assert newcomer.bit == bit  # bits are used again
    other.leave()
    assert not index.masks
