"""When a pausing session is expected back: the prior, what is learned, what holding is worth."""

from math import exp, isfinite

from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from sessile.router.returns import Returns


def back_within(returns, kind, seconds):
    """The share of pauses that end in so many seconds, by adding up the rates."""
    step = 0.01
    return 1 - exp(-sum(returns.rate(kind, n * step) * step for n in range(round(seconds / step))))


def test_the_prior_is_that_of_agents_at_large():
    """86 % are back within a second, 95 % within ten."""
    assert back_within(Returns(), "any", 1.0) == approx(0.86, abs=0.01)
    assert back_within(Returns(), "any", 10.0) == approx(0.95, abs=0.02)


def test_a_slow_tool_is_learned_and_others_are_not_touched():
    """A build that always takes twenty seconds is worth waiting for, a tool that is abandoned
    is not."""
    returns = Returns()
    for _ in range(200):
        returns.observe("build", 0.0, 20.0, True)
        returns.observe("leave", 0.0, 600.0, False)
    assert returns.rate("build", 0.2) < 0.1 < returns.rate("any", 0.2)
    assert returns.rate("build", 15.0) > 0.05 > returns.rate("leave", 15.0)
    assert returns.worth_s("leave") < returns.worth_s("any")


def test_quick_pauses_are_worth_ten_seconds_by_the_prior():
    """After that fewer than one in half a minute comes back."""
    assert Returns().worth_s("any") == 10.0


def test_a_pause_may_be_told_in_stretches():
    """What is observed in two parts counts as the whole."""
    whole, parts = Returns(), Returns()
    whole.observe("x", 0.0, 3.0, True)
    parts.observe("x", 0.0, 0.7, False)
    parts.observe("x", 0.7, 3.0, True)
    for elapsed_s in (0.2, 0.7, 1.5, 3.0, 20.0):
        assert parts.rate("x", elapsed_s) == approx(whole.rate("x", elapsed_s))


def test_classes_are_bounded():
    """Beyond a thousand names of tools, new ones share one class."""
    returns = Returns()
    for n in range(1_500):
        returns.observe(f"tool {n}", 0.0, 0.1, True)
    assert len(returns._seen) <= 1_001


def test_the_share_that_returns_follows_what_happens():
    """From all, towards none while pauses are given up, and back."""
    returns = Returns()
    assert returns.share == 1.0
    for _ in range(200):
        returns.count(False)
    assert returns.share < 0.05
    for _ in range(200):
        returns.count(True)
    assert returns.share > 0.95


@given(
    st.lists(st.tuples(st.floats(0, 700), st.floats(0, 700), st.booleans()), max_size=30),
    st.floats(0, 10_000),
)
def test_rates_are_finite_and_holding_is_bounded(pauses, elapsed_s):
    """Whatever was seen."""
    returns = Returns()
    for since_s, lasts_s, returned in pauses:
        returns.observe("x", since_s, since_s + lasts_s, returned)
    assert isfinite(returns.rate("x", elapsed_s)) and returns.rate("x", elapsed_s) >= 0
    assert 0 <= returns.worth_s("x") <= 600


def test_a_tool_that_always_takes_long_is_waited_for():
    """Nobody returns in its first seconds, and everybody does after twenty."""
    returns = Returns()
    for _ in range(200):
        returns.observe("tests", 0.0, 20.0, True)
    assert returns.rate("tests", 3.0) < 0.03 < returns.rate("tests", 15.0)
    assert returns.worth_s("tests") == 30.0
