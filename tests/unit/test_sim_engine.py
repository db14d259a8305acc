"""The modelled replica: its memory, its order, what a hit saves."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from sessile.lab.sim_engine import Hardware, Request, SimEngine

BLOCK = 100


class Site:
    """One engine and what it has told."""

    def __init__(self, **hardware):
        self.first, self.ended, self.now = [], [], 0.0
        self.engine = SimEngine(
            Hardware(**{"kv_tokens": 2_000, **hardware}), BLOCK,
            lambda request, now: self.first.append(request.id),
            lambda request, now: self.ended.append(request.id),
        )  # fmt: skip

    def send(self, id, keys=(), tokens=None, output=50, after=None):
        """A request for that prompt."""
        tokens = tokens or BLOCK * len(keys) + 50
        request = Request(id, tuple(keys), tuple(after or keys), tokens, output)
        self.engine.send(request, self.now)
        return request

    def step(self):
        """On to what is next; False at the end."""
        at = self.engine.next_at()
        if at is None:
            return False
        assert at >= self.now - 1e-9
        self.now = max(self.now, at)
        self.engine.advance(self.now)
        return True

    def run(self):
        """Until nothing is left."""
        while self.step():
            pass


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 15), st.integers(1, 300)), max_size=20),
       st.integers(0, 99))  # fmt: skip
def test_memory_is_never_over_and_all_are_served_in_order(requests, seed):
    """First come, first served, each once, whatever is shared and whoever goes meanwhile."""
    site, random = Site(), Random(seed)
    sent = []
    for n, (family, blocks, output) in enumerate(requests):
        keys = [1000 * (family + 1) + k for k in range(blocks)]
        sent.append(site.send(f"r{n}", keys, output=output))
        assert site.engine.held_tokens <= 2_000
        for _ in range(random.randrange(4)):
            site.step()
            assert site.engine.held_tokens <= 2_000
    while site.step():
        assert site.engine.held_tokens <= 2_000
    assert site.first == [request.id for request in sent]
    assert sorted(site.ended) == sorted(site.first)
    assert not site.engine.running and not site.engine.waiting


def test_a_hit_costs_less():
    """What is cached is not computed again; one token always is."""
    site = Site()
    first = site.send("one", range(10))
    site.run()
    again = site.send("two", range(10))
    took = site.engine.next_at() - site.now
    site.run()
    assert first.cached_tokens == 0 and again.cached_tokens == 1000
    assert took < first.first_at - first.sent_at
    whole = site.send("three", range(10), tokens=1000)
    assert whole.cached_tokens == 999
    assert site.engine.computed_tokens == 1050 + 50 + 1


def test_replies_are_cached_too():
    """The next turn of a session finds the blocks of prompt and reply."""
    site = Site()
    site.send("one", range(3), output=250, after=range(6))
    site.run()
    assert site.engine.match(range(8)) == (6, 0)


def test_what_does_not_fit_beside_the_running_waits():
    """It begins when memory is free; alone it is taken, however large."""
    site = Site()
    site.send("one", range(12))
    site.send("two", range(100, 112))
    site.step()
    assert (site.engine.running, site.engine.waiting) == (1, 1)
    site.run()
    assert site.ended == ["one", "two"]
    site.send("huge", range(200, 240))
    site.run()
    assert site.ended[-1] == "huge"


def test_a_host_cache_gives_back_what_left_the_device():
    """At the cost of a transfer, less than a prefill; without one it is gone."""
    for host in (0, 2_000):
        site = Site(host_tokens=host)
        site.send("one", range(10))
        site.run()
        site.send("two", range(100, 119))
        site.run()
        found, back = site.engine.match(range(10))
        assert found + back <= 10 and bool(back) is bool(host)
        one = site.send("again", range(10))
        assert (one.cached_tokens > 0) is bool(host)


def test_a_failure_loses_memory_and_names_what_was_lost():
    """All that ran or waited, with what it had generated; then it stands there empty."""
    site = Site()
    site.send("one", range(3), output=500)
    site.send("two", range(100, 103))
    site.step()
    lost = site.engine.fail(site.now + 1.0)
    assert {request.id for request in lost} == {"one", "two"}
    assert not site.engine.held_tokens and site.engine.match(range(3)) == (0, 0)


def test_a_cancelled_request_frees_its_memory():
    """Waiting, in prefill or decoding: the others go on."""
    site = Site()
    requests = [site.send(f"r{n}", range(100 * n, 100 * n + 8)) for n in range(3)]
    site.step()
    for request in (requests[2], requests[0], requests[1]):
        site.engine.cancel(request, site.now)
    site.run()
    assert not site.engine.running and not site.engine.waiting
    assert site.engine.held_tokens <= 2_000 and not site.ended
