"""What is expected of a session where the replica speculates."""

import pytest

from sessile.router.yields import Yields


def test_a_session_is_expected_to_go_on_as_it_did():
    """Newer turns weigh as much as all before them."""
    yields = Yields()
    yields.learn("s", 1, 0.5)
    yields.learn("s", 1, 0.3)
    assert yields.expect("s", 1) == (0.4,)


def test_an_unknown_session_may_be_like_any_that_began_alike():
    """Once enough of those are known; else like any of the last."""
    yields = Yields()
    for number in range(3):
        yields.learn(f"json {number}", 1, 0.2)
        yields.learn(f"prose {number}", 2, 0.9)
    assert yields.expect("new", 1) == (0.2, 0.2, 0.2)
    assert set(yields.expect("new", 3)) == {0.2, 0.9}
    assert yields.typical() is not None


def test_a_few_that_began_alike_tell_more_than_others():
    """Others are heard only in place of those that are missing, the newest first; and of the first
    of a kind more is expected than was seen."""
    yields = Yields()
    yields.learn("edits", 1, 0.1)
    for number in range(6):
        yields.learn(f"prose {number}", 2, 0.5 + number / 100)
    assert yields.expect("new", 1) == pytest.approx((0.07, 0.385, 0.378))
    yields.learn("edits again", 1, 0.2)
    assert yields.expect("new", 1) == pytest.approx((0.07, 0.14, 0.385))
    yields.learn("edits once more", 1, 0.3)
    assert yields.expect("new", 1) == (0.1, 0.2, 0.3)


def test_the_last_sessions_stand_for_those_to_come():
    """What the agents do now counts, not what they did long ago."""
    yields = Yields()
    assert yields.typical() is None and len(yields.expect("s", 0)) == 1
    for number in range(50):
        yields.learn(f"s{number}", 1, 0.9 if number < 25 else 0.1)
    assert set(yields.expect("new", 1)) == set(yields.expect("new", 0)) == {0.1}
