"""The modelled engine: its memory, its queue, its times."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sessile.lab.sim_engine import Hardware, Request, SimEngine

SIZE = 100
SLOW = Hardware(kv_tokens=5_000, prefill_rate=10_000.0, decode_s=0.01, base_s=0.0)


class Bench:
    """An engine, and when its requests got their first token and their end."""

    def __init__(self, hardware: Hardware = SLOW) -> None:
        self.now = 0.0
        self.firsts: dict[str, float] = {}
        self.ends: dict[str, float] = {}
        self.engine = SimEngine(
            hardware, SIZE, lambda r, now: self.firsts.update({r.id: now}),
            lambda r, now: self.ends.update({r.id: now}),
        )  # fmt: skip

    def send(self, id: str, text: str, extra: int = 50, output: int = 10) -> Request:
        """A prompt of a block for each letter and a bit, at this moment."""
        blocks = tuple(hash(tuple(map(ord, text[: n + 1]))) for n in range(len(text)))
        request = Request(id, blocks, blocks, SIZE * len(text) + extra, output)
        self.engine.send(request, self.now)
        return request

    def until(self, now: float = float("inf")) -> None:
        """Let everything happen that is due by then."""
        while (at := self.engine.next_at()) is not None and at <= now:
            self.now = at
            self.engine.advance(at)
            assert self.engine.held_tokens <= self.engine.hardware.kv_tokens
        if now < float("inf"):
            self.now = now


def test_first_come_first_served_one_prefill_at_a_time() -> None:
    """Each first token waits for the prefills before it, and decoding stands still meanwhile."""
    bench = Bench()
    for id in ("a", "b", "c"):
        bench.send(id, id * 10)
    bench.until()
    assert list(bench.firsts) == ["a", "b", "c"]
    gaps = [bench.firsts["b"] - bench.firsts["a"], bench.firsts["c"] - bench.firsts["b"]]
    assert all(abs(gap - bench.firsts["a"]) < 1e-9 for gap in gaps)
    assert bench.ends["a"] > bench.firsts["c"]  # it had ten tokens to make, and they waited
    assert bench.engine.served == 3 and bench.engine.running == bench.engine.waiting == 0


def test_a_hit_costs_less() -> None:
    """What is cached is not computed, but for the last token."""
    bench = Bench()
    bench.send("a", "x" * 20)
    bench.until()
    cold = bench.firsts["a"]
    began = bench.now
    again = bench.send("b", "x" * 20)
    bench.until()
    assert bench.firsts["b"] - began < cold / 10
    assert again.cached_tokens == 2_000
    assert bench.engine.computed_tokens == 2_050 + 50


def test_a_request_waits_for_memory() -> None:
    """One that does not fit beside those that run begins when one of them ends."""
    bench = Bench(Hardware(kv_tokens=3_000, prefill_rate=10_000.0, decode_s=0.01))
    bench.send("a", "a" * 20, output=100)
    bench.send("b", "b" * 20)
    bench.until(0.5)
    assert bench.engine.running == 1 and bench.engine.waiting == 1
    bench.until()
    assert bench.firsts["b"] > bench.ends["a"]


def test_slots_bound_what_runs() -> None:
    """However much memory there is."""
    bench = Bench(Hardware(kv_tokens=50_000, slots=2, decode_s=0.01))
    for number in range(3):
        bench.send(f"r{number}", "x", output=1_000)
    bench.until(2.0)
    assert bench.engine.running == 2 and bench.engine.waiting == 1


def test_the_oldest_leave_first_and_the_deepest_of_them() -> None:
    """A prefix that others share outlives what follows it."""
    bench = Bench(Hardware(kv_tokens=1_600))
    for id, text in (("a", "sssaaaa"), ("b", "sssbbbb"), ("c", "cccccc")):
        bench.send(id, text)
        bench.until()
    keys = {text: Bench().send("x", text).blocks for text in ("sssaaaa", "sssbbbb", "cccccc")}
    found = {text: bench.engine.match(blocks)[0] for text, blocks in keys.items()}
    assert found["cccccc"] == 6 and found["sssbbbb"] == 7
    assert 3 <= found["sssaaaa"] < 7


def test_a_host_cache_brings_back_what_has_left() -> None:
    """At the price of a transfer."""
    roomy = Hardware(kv_tokens=2_500, host_tokens=10_000, transfer_rate=50_000.0)
    bench = Bench(roomy)
    for id, text in (("a", "a" * 20), ("b", "b" * 20)):
        bench.send(id, text)
        bench.until()
    began = bench.now
    again = bench.send("c", "a" * 20)
    assert bench.engine.match(again.blocks)[0] == 20
    bench.until()
    assert again.cached_tokens == 2_000 and bench.firsts["c"] - began > 0.02


def test_an_aborted_request_frees_its_memory() -> None:
    """Waiting, in its prefill or decoding; the next one takes its place."""
    bench = Bench(Hardware(kv_tokens=3_000, prefill_rate=10_000.0, decode_s=0.01))
    waiting = [bench.send(id, id * 20, output=200) for id in ("a", "b", "c")]
    bench.engine.cancel(waiting[1], 0.0)  # it waits
    bench.engine.cancel(waiting[0], 0.05)  # it is computed
    bench.until(1.0)
    assert list(bench.firsts) == ["c"] and bench.engine.running == 1
    bench.engine.cancel(waiting[2], 1.0)  # it decodes
    assert bench.engine.running == 0 and bench.engine.next_at() is None
    bench.send("d", "d" * 28)
    bench.until()
    assert "d" in bench.ends and not set("abc") & set(bench.ends)


def test_a_dead_engine_tells_what_it_was_doing_and_forgets_everything() -> None:
    """How many tokens each had made, so that they need not be made again."""
    bench = Bench(Hardware(kv_tokens=10_000, decode_s=0.01, base_s=0.0))
    bench.send("a", "aa", output=100)
    bench.until(0.2)
    bench.send("b", "b" * 50)
    lost = {request.id: request.generated for request in bench.engine.fail(0.5)}
    assert lost["b"] == 0 and 0 < lost["a"] < 50
    assert bench.engine.held_tokens == 0 and bench.engine.next_at() is None
    bench.send("c", "aa")
    bench.until()
    assert "c" in bench.ends


SENDS = st.lists(
    st.tuples(
        st.floats(0.0, 0.3), st.text("ab", max_size=12), st.integers(1, 90), st.integers(1, 200),
        st.booleans(),
    ),
    max_size=20,
)  # fmt: skip


@settings(deadline=None)
@given(SENDS, st.sampled_from([0, 1_000]))
def test_memory_is_never_over_its_capacity(sends: list, host: int) -> None:
    """Whatever comes and is aborted, every other request ends, and only cached blocks are left."""
    bench = Bench(Hardware(kv_tokens=2_000, host_tokens=host, slots=4))
    kept = set()
    for number, (gap, text, extra, output, aborted) in enumerate(sends):
        request = bench.send(f"r{number}", text, extra, output)
        bench.until(bench.now + gap)
        if aborted and request.id not in bench.ends:
            bench.engine.cancel(request, bench.now)
        else:
            kept.add(request.id)
    bench.until()
    assert set(bench.ends) == kept
    assert bench.engine.held_tokens % SIZE == 0 and not bench.engine.requests()
