"""Prices: rates that are learned from first tokens, and what they make of a turn."""

from math import isfinite
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from sessile.router.price import LONG_TOKENS, Price, Rates, Traffic, work


def test_work_counts_tokens_for_more_the_longer_the_attention_before_them():
    """A token behind `LONG_TOKENS` others costs twice the first; in one go or two, the same."""
    assert work(0, 1) == approx(1.0, rel=1e-3)
    assert work(LONG_TOKENS, 1) == approx(2.0, rel=1e-3)
    assert work(0, 3000) == approx(work(0, 1000) + work(1000, 2000))


def test_the_prior_is_sane():
    """About 2,000 tokens a second, or the rate that is known."""
    assert 0.5 < Rates.prior().prefill_s(work(0, 2000)) < 2.0
    assert Rates.prior(10_000.0).prefill_s(work(0, 2000)) == approx(0.2, rel=0.2)


def test_a_line_is_learned_from_noisy_turns():
    """Base and slope come out within a few per cent of what the turns were made from."""
    rng, rates = Random(1), Rates.prior()
    for _ in range(500):
        amount = rng.uniform(20, 8000)
        rates.observe_first_token(amount, (0.03 + amount / 20_000) * rng.uniform(0.9, 1.1))
    for amount in (100, 1000, 6000):
        assert rates.prefill_s(amount) == approx(0.03 + amount / 20_000, rel=0.1)
    assert rates.turns == 500


def test_one_stall_does_not_undo_what_was_learned():
    """A turn that took a minute for no reason of its own counts little."""
    rates = Rates.prior()
    for n in range(100):
        amount = 100.0 + 50 * n
        rates.observe_first_token(amount, 0.03 + amount / 20_000)
    before = rates.prefill_s(1000)
    rates.observe_first_token(1000, 60.0)
    assert rates.prefill_s(1000) < 2 * before


@given(
    st.lists(st.tuples(st.floats(0, 1e7), st.floats(0, 1e5)), max_size=40),
    st.lists(st.floats(0, 100), max_size=5),
)
def test_rates_stay_finite_and_are_never_negative(turns, paces):
    """Whatever is observed, a price is a price."""
    rates, model = Rates.prior(), Rates.prior()
    for amount, seconds in turns:
        rates.observe_first_token(amount, seconds)
        model.observe_first_token(amount, seconds)
        rates.lean_on(model)
        assert isfinite(rates.base_s) and isfinite(rates.slope_s)
        assert rates.base_s >= 0.0 and rates.slope_s >= 0.0
    for pace in paces:
        rates.observe_decode(pace)
    assert isfinite(rates.tpot_s) and rates.tpot_s >= 0.0


def learned(rate, turns=200):
    """Rates after so many turns at so many tokens a second."""
    rates = Rates.prior()
    for n in range(turns):
        amount = 100.0 + 37 * (n % 100)
        rates.observe_first_token(amount, 0.02 + amount / rate)
    return rates


def test_a_stranger_is_like_the_others():
    """A replica that has served nothing is believed to be as all are, its pace of tokens too."""
    model, rates = learned(20_000), Rates.prior()
    for _ in range(200):
        model.observe_decode(0.005)
    rates.lean_on(model)
    assert rates.prefill_s(3000) == approx(model.prefill_s(3000))
    assert rates.tpot_s == model.tpot_s and not rates.turns


def test_leaning_goes_by_what_is_seen_now():
    """What the others have come to is believed without a turn of one's own meanwhile."""
    rates = learned(20_000, 10)
    rates.lean_on(learned(2_000))
    slow_s = rates.prefill_s(3000)
    rates.lean_on(learned(20_000))
    assert rates.prefill_s(3000) < 0.2 * slow_s


def test_work_is_never_free():
    """Turns of little work that were late by chance do not make all work look free."""
    rates = Rates.prior()
    for n in range(100):
        rates.observe_first_token(200.0 + 37 * (n % 20), 0.4 if n % 20 < 10 else 0.1)
    assert rates.slope_s * 3000 > 0.1 * rates.base_s


def test_what_is_cached_tells_nothing_of_a_prefill():
    """However many turns have next to nothing to compute, what is known of the rest stays; and one
    of much work is learned of as before."""
    rng, rates = Random(2), learned(20_000)
    before = rates.slope_s
    for _ in range(500):
        rates.observe_first_token(rng.uniform(1, 20), rng.uniform(0.02, 0.06))
    assert rates.slope_s == approx(before, rel=0.3)
    assert rates.base_s == approx(0.035, rel=0.4)
    for n in range(200):
        amount = 100.0 + 37 * (n % 100)
        rates.observe_first_token(amount, 0.02 + amount / 5_000)
    assert rates.slope_s == approx(1 / 5_000, rel=0.3)


def test_a_replica_leans_on_the_others_until_it_was_seen_often():
    """Few turns of its own count little against everybody's, many count for most."""
    model = learned(20_000)
    few, many = learned(10_000, 10), learned(10_000, 2_000)
    few.lean_on(model)
    many.lean_on(model)
    near, far = model.prefill_s(3000), 0.32
    assert abs(few.prefill_s(3000) - near) < 0.2 * (far - near)
    assert abs(many.prefill_s(3000) - far) < 0.3 * (far - near)


def test_a_price_adds_up():
    """The first token is waited for and computed; what that costs the others is the rest."""
    price = Price(1.0, 2.0, 4.0, 100)
    assert (price.ttft_s, price.total_s) == (3.0, 7.0)


def test_those_who_come_while_a_turn_is_done_count():
    """A few in any case; more the longer it takes and the busier it is; after a while none more."""
    traffic = Traffic()
    idle = traffic.coming(0.0, 1e-3, 10.0)
    for second in range(300):
        traffic.add(float(second), 500.0)  # half of what 1,000 tokens a second can do
    busy = traffic.coming(300.0, 1e-3, 10.0)
    assert busy - idle == approx(10.0 / (1 - 0.5), rel=0.1)
    assert traffic.coming(300.0, 1e-3, 20.0) - idle == approx(2 * (busy - idle))
    assert traffic.coming(300.0, 1.9e-3, 10.0) > 2 * busy
    assert traffic.coming(6_000.0, 1e-3, 10.0) < idle + 0.2
    assert traffic.coming(300.0, 1.0, 10.0) < 1_000  # overloaded: many, but not endlessly so
