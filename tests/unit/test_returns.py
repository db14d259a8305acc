"""When pauses end, as it is learned by class."""

import pytest

from sessile.router.returns import Returns


def test_the_prior_is_that_of_agents_at_large():
    """Most are back within a second; after a minute little is to be expected."""
    returns = Returns()
    rates = [returns.rate("bash", at) for at in (0.5, 5, 30, 120, 1000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 1 and rates[-1] < 0.001
    assert 10 <= returns.worth_s("bash") <= 60


def test_a_class_that_never_comes_back_is_worth_nothing():
    """Its rate falls, that of the other classes does not."""
    returns = Returns()
    for _ in range(200):
        returns.observe("mail", 0, 300, returned=False)
    assert returns.worth_s("mail") == 0
    assert returns.worth_s("bash") > 0


def test_a_class_that_takes_long_but_returns_is_waited_for():
    """Returns late in a stretch raise the rate there."""
    returns = Returns()
    for _ in range(200):
        returns.observe("tests", 0, 20, returned=True)
    assert returns.rate("tests", 15) > 0.05
    assert returns.worth_s("tests") == 60.0


def test_a_stretch_counts_only_what_passed_in_it():
    """A pause seen in two parts is the same as in one."""
    whole, parts = Returns(), Returns()
    whole.observe("t", 0, 30, returned=True)
    parts.observe("t", 0, 4, returned=False)
    parts.observe("t", 4, 30, returned=True)
    for at in (0.5, 5, 30, 100):
        assert whole.rate("t", at) == pytest.approx(parts.rate("t", at))


def test_classes_are_bounded():
    """Beyond a thousand, new names share one."""
    returns = Returns()
    for number in range(3000):
        returns.observe(f"tool{number}", 0, 1, returned=True)
    assert len(returns._seen) <= 1001
    assert returns.rate("tool2999", 0.5) > 0


def test_the_share_that_comes_back_follows_what_is_seen():
    """Single requests bring it to nearly nothing, agents back up."""
    returns = Returns()
    for _ in range(300):
        returns.count(returned=False)
    assert returns.share < 0.05
    for _ in range(300):
        returns.count(returned=True)
    assert returns.share > 0.95
