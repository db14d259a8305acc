"""One replica as the scheduler sees it."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.router.holdings import Index
from sessile.router.outlook import Outlook, totals
from sessile.router.price import work


def outlook(capacity=10_000, slots=None, host=0, id="r1"):
    """A replica of 10,000 tokens a second after 0 s."""
    found = Outlook(id, "1")
    found.resize(capacity, host)
    found.slots = slots
    found.rates.base_s, found.rates.slope_s = 0.0, 1e-4
    return found


def start(at, turn, session="s", blocks=(), tokens=1_000, output=100, now=0.0, cached=0):
    """A turn is sent there."""
    at.start(turn, session, blocks, 100, tokens, output, cached, now)


def test_a_turn_waits_for_the_prefills_before_it():
    """As long as they have given no token, less the time since the first began."""
    replica = outlook()
    assert replica.wait_s(0.0) == 0
    start(replica, "t1", "s1", now=0.0)
    start(replica, "t2", "s2", now=0.0)
    both = 1e-4 * 2 * work(0, 1_000)
    assert replica.wait_s(0.0) == pytest.approx(both)
    assert replica.wait_s(0.05) == pytest.approx(both - 0.05)
    replica.first_token("t1", 0.1)
    assert replica.wait_s(0.1) == pytest.approx(both / 2)
    replica.end("t2", 0.2)
    assert replica.wait_s(0.2) == 0 and replica.in_flight == 1


def test_a_turn_waits_for_a_slot():
    """When all are taken, until the one that has least to go is done."""
    replica = outlook(slots=1)
    replica.rates.tpot_s = 0.01
    start(replica, "t1", output=100)
    replica.first_token("t1", 0.0)
    assert replica.wait_s(0.0) == pytest.approx(1.0)
    assert replica.wait_s(0.4) == pytest.approx(0.6)
    assert replica.queued == 0
    start(replica, "t2", "s2")
    assert replica.queued == 1


def test_work_of_other_routers_counts():
    """What they have told of is waited for, and suffers."""
    replica = outlook()
    alone = replica.price("s", (), 1_000, 0.0)
    replica.foreign_work, replica.foreign_running = 1_000.0, 3
    price = replica.price("s", (), 1_000, 0.0)
    assert price.wait_s == pytest.approx(0.1)
    assert price.harm_s == pytest.approx(alone.harm_s + 3 * price.prefill_s)


def test_what_is_cached_is_cheaper():
    """And never all of a prompt: its last token is computed."""
    replica = outlook()
    start(replica, "t1", blocks=tuple(range(10)))
    price = replica.price("other", tuple(range(10)), 1_000, 0.0)
    assert price.cached_tokens == 999
    assert price.prefill_s < replica.price("other", (77,), 1_000, 0.0).prefill_s / 100


def test_memory_fits_what_shares_it():
    """Live blocks count once; alone, anything fits; where nothing is known, anything fits."""
    replica = outlook(1_000)
    assert replica.fits("s", (), 5_000, 0.9)
    start(replica, "t1", "s1", (1, 2, 3), 400, 100)
    assert replica.fits("s2", (1, 2, 3, 4), 600, 0.9)
    assert not replica.fits("s2", (9, 8, 7, 6), 600, 0.9)
    replica.foreign_tokens = 200
    assert not replica.fits("s2", (1, 2, 3, 4), 600, 0.9)
    assert outlook(None).fits("s", (), 10**9, 0.9)


def test_a_host_cache_holds_pauses_but_not_runs():
    """What runs has to fit the device's memory by itself."""
    replica = outlook(1_000, host=9_000)
    start(replica, "t1", "s1", (), 500, 100)
    assert replica.fits("s2", (), 300, 0.9)
    assert not replica.fits("s2", (), 500, 0.9)
    replica.end("t1", 1.0)
    assert replica.fits("s2", (), 500, 0.9)


def test_a_restart_empties_its_memory_and_keeps_its_rates():
    """The hardware is the same."""
    replica = outlook()
    start(replica, "t1", blocks=(1, 2, 3))
    replica.paused.add("other")
    rates = replica.rates
    replica.reset("2")
    assert replica.holdings.tokens == 0 and not replica.paused and replica.rates is rates
    assert replica.holdings.capacity_tokens == 10_000 and replica.incarnation == "2"


def test_rates_are_learned_from_turns_that_waited_for_nothing():
    """A first token that others were ahead of says nothing of the rate."""
    replica = outlook()
    start(replica, "t1", "s1")
    start(replica, "t2", "s2")
    for turn in ("t1", "t2"):
        replica.first_token(turn, 5.0)
        run = replica.end(turn, 6.0)
        replica.learn(run, 1_000, 0, 100, None)
    assert replica.rates.turns == 1


OUTLOOKS = st.lists(
    st.tuples(
        st.none() | st.integers(100, 3_000),  # capacity
        st.sampled_from([0, 2_000]),  # host tokens
        st.none() | st.integers(1, 3),  # slots
        st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=4),  # runs
        st.integers(0, 3),  # pauses
        st.integers(0, 2),  # turns of other routers
    ),
    min_size=1,
    max_size=5,
)


@given(OUTLOOKS, st.integers(0, 6), st.integers(1, 900), st.sampled_from([0.5, 0.95, inf]))
def test_totals_are_what_prices_and_fits_say(made, depth, tokens, fill):
    """The loop over all replicas comes to the same as asking each."""
    found = []
    for number, (capacity, host, slots, runs, pauses, foreign) in enumerate(made):
        replica = outlook(capacity, slots, host, f"r{number}")
        for turn, (size, answered) in enumerate(runs):
            start(replica, f"t{turn}", f"s{turn}", tuple(range(size)), 100 * size + 30)
            if answered:
                replica.first_token(f"t{turn}", 0.01)
        replica.paused.update(f"p{n}" for n in range(pauses))
        replica.foreign_running, replica.foreign_work = foreign, 500.0 * foreign
        found.append(replica)
    blocks = tuple(range(depth))
    prompt = 100 * depth + tokens
    prices_s = totals(Index(), found, blocks, 100, prompt, prompt + 50, 0.02, fill)
    for replica, price_s in zip(found, prices_s, strict=True):
        if fill < inf and not replica.fits("new", blocks, prompt + 50, fill):
            assert price_s == inf
        else:
            assert price_s == pytest.approx(replica.price("new", blocks, prompt, 0.02).total_s)
