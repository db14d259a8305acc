"""Rates that are learned from first tokens, and the prices made of them."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.router.price import Price, Rates, work


def taught(base_s, slope_s, noise, turns=200, seed=1, prior=None):
    """Rates that have seen so many turns of a replica with this line."""
    rng, rates = Random(seed), prior or Rates.prior()
    for _ in range(turns):
        amount = rng.choice([50, 300, 1500, 6000, 20000]) * rng.uniform(0.5, 1.5)
        rates.observe_first_token(amount, (base_s + slope_s * amount) * rng.uniform(*noise))
    return rates


@pytest.mark.parametrize("tokens_per_s", [500, 20_000, 200_000])
def test_a_known_line_is_learned(tokens_per_s):
    """From a prior of 2,000 tokens a second to whatever the replica does."""
    rates = taught(0.02, 1 / tokens_per_s, (1.0, 1.0))
    for amount in (100, 1_000, 10_000):
        assert rates.prefill_s(amount) == pytest.approx(0.02 + amount / tokens_per_s, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_noise_leaves_the_line_where_it_is(seed):
    """Times that scatter by half, and now and then one that waited for something else."""
    rates = taught(0.02, 1 / 20_000, (0.7, 1.4), seed=seed)
    for _ in range(3):
        rates.observe_first_token(500, 30.0)
    assert rates.prefill_s(5_000) == pytest.approx(0.27, rel=0.6)


def test_a_replica_that_becomes_slow_is_noticed():
    """Newer turns weigh more than older ones."""
    rates = taught(0.02, 1 / 20_000, (1.0, 1.0))
    rates = taught(0.02, 1 / 5_000, (1.0, 1.0), prior=rates)
    assert rates.prefill_s(5_000) == pytest.approx(1.02, rel=0.1)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e4)), max_size=30))
def test_rates_stay_sane_whatever_is_seen(seen):
    """Never a negative or an endless price, and more work never costs less."""
    rates = Rates.prior()
    for amount, seconds in seen:
        rates.observe_first_token(amount, seconds)
    assert rates.base_s >= 0 and rates.slope_s >= 0
    assert 0 <= rates.prefill_s(10) <= rates.prefill_s(10_000) < float("inf")


def test_a_known_rate_takes_the_prior_s_place():
    """It is right before the first turn."""
    rates = Rates.prior(prefill_tokens_per_s=10_000)
    assert rates.prefill_s(work(0, 1000)) == pytest.approx(0.11, rel=0.15)


def test_borrowed_rates_are_the_other_s_and_give_way_to_its_own():
    """A replica that nobody has used looks like its siblings, and soon like itself."""
    rates = Rates.prior()
    rates.borrow(taught(0.02, 1 / 20_000, (1.0, 1.0)))
    assert rates.prefill_s(4_000) == pytest.approx(0.22, rel=0.05) and not rates.turns
    slow = taught(0.02, 1 / 7_000, (1.0, 1.0), turns=40, prior=rates)
    assert slow.prefill_s(7_000) == pytest.approx(1.02, rel=0.1)


def test_work_grows_with_what_stands_before():
    """The same tokens behind a long prefix are more work, and a hit saves most of it."""
    assert work(0, 100) < work(12_000, 100) == pytest.approx(2 * 100, rel=0.01)
    assert work(9_000, 1_000) < 0.3 * work(0, 10_000)


def test_decoding_is_averaged():
    """A pace is believed slowly."""
    rates = Rates.prior()
    rates.observe_decode(1.0)
    assert 0.03 < rates.tpot_s < 0.1
    for _ in range(100):
        rates.observe_decode(1.0)
    assert rates.tpot_s == pytest.approx(1.0, rel=0.01)


def test_a_price_in_sum():
    """TTFT is waiting and prefill; the total counts the others too."""
    price = Price(1.0, 0.5, 2.0, 100)
    assert (price.ttft_s, price.total_s) == (1.5, 3.5)
