"""What is expected of a session where the replica speculates."""

import pytest

from sessile.router.yields import Yields


def come_again(yields, first, again):
    """Of many kinds a first session takes so many steps in its turns, and a second in its one."""
    for kind in range(1, 40):
        for steps in first:
            yields.learn(f"first {kind}", kind, steps)
        yields.begin(f"again {kind}", kind)
        yields.learn(f"again {kind}", kind, again)


def test_a_session_is_expected_to_go_on_as_it_did():
    """Newer turns weigh as much as all before them."""
    yields = Yields()
    yields.learn("s", 1, 0.5)
    yields.learn("s", 1, 0.3)
    assert yields.expect("s", 1) == (0.4,)


def test_an_unknown_session_may_be_like_any_that_began_alike():
    """Once enough of those are known; else like any of the last."""
    yields = Yields()
    for number in range(4):
        for kind, steps in enumerate((0.2, 0.9), 1):
            yields.begin(f"{kind} {number}", kind)
            yields.learn(f"{kind} {number}", kind, steps)
    assert yields.expect("new", 1) == (0.2, 0.2, 0.2)
    assert set(yields.expect("new", 3)) == {0.2, 0.9}
    assert yields.typical() is not None


def test_a_few_that_began_alike_tell_more_than_others():
    """One other is heard beside one of its own kind, the newest; and of the first of a kind more is
    expected than was seen, until those are heard who say it again."""
    yields = Yields()
    yields.learn("edits", 1, 0.1)
    for number in range(6):
        yields.learn(f"prose {number}", 2, 0.5 + number / 100)
    assert yields.expect("new", 1) == pytest.approx((0.07, 0.385))
    for number in range(3):
        yields.begin(f"edits {number}", 1)
    yields.learn("edits 0", 1, 0.07)
    assert yields.expect("new", 1) == pytest.approx((0.07, 0.07))
    yields.learn("edits 1", 1, 0.07)
    yields.learn("edits 2", 1, 0.07)
    assert yields.expect("new", 1) == (0.07, 0.07, 0.07)


def test_how_much_more_is_accepted_again_is_learned_of_all_kinds():
    """So one that was heard once is not judged by that."""
    yields = Yields()
    come_again(yields, (0.5,), 0.15)
    yields.learn("first", 50, 0.8)
    assert yields.expect("new", 50)[0] == pytest.approx(0.8 * 0.3, rel=0.01)
    for number in range(40):  # a kind that is known by now hardly tells of others
        yields.begin(f"more {number}", 1)
        yields.learn(f"more {number}", 1, 0.5)
    assert yields.expect("new", 50)[0] < 0.8 * 0.5


def test_what_is_said_again_is_compared_turn_by_turn():
    """The first session of a kind may be accepted better from turn to turn, too."""
    yields = Yields()
    come_again(yields, (0.6, 0.3, 0.2), 0.3)
    yields.learn("first", 50, 0.8)
    assert yields.expect("new", 50)[0] == pytest.approx(0.8 * 0.5, rel=0.01)


def test_the_first_of_a_kind_may_be_forgotten_and_begin_anew(monkeypatch):
    """Twenty thousand sessions later: it has told nothing then, and others of its kind go on."""
    monkeypatch.setattr("sessile.router.yields._MOST_SESSIONS", 3)
    yields = Yields()
    yields.learn("first", 1, 0.5)
    for number in range(3):
        yields.begin(f"other {number}", 2)
    yields.begin("first", 1)
    yields.begin("second", 1)
    yields.learn("second", 1, 0.2)
    assert yields.expect("new", 1) == pytest.approx((0.2, 0.5 * 0.7))


def test_a_kind_is_young_until_two_came_after_its_first_if_others_did_better_then():
    yields = Yields()
    assert not yields.young(1)
    yields.learn("first", 1, 0.5)
    assert yields.young(1)
    for number in range(2):
        assert yields.young(1)
        yields.begin(f"again {number}", 1)
        yields.learn(f"again {number}", 1, 0.2)
    assert not yields.young(1)
    come_again(yields, (0.5,), 0.5)
    assert not yields.young(39)


def test_who_is_under_way_with_the_first_says_nothing_again():
    """What they take tells of no later one, and is expected to be fewer all the same."""
    yields = Yields()
    for number in range(16):
        yields.begin(f"s{number}", 1)
    for number in range(16):
        yields.learn(f"s{number}", 1, 0.5)
        yields.begin(f"s{number}", 1)
        yields.learn(f"s{number}", 1, 0.5)
    assert yields.expect("new", 1) == pytest.approx(6 * (0.35,))
    yields.begin("slower", 1)
    yields.learn("slower", 1, 0.9)
    assert yields.expect("new", 1) == pytest.approx((0.9, *(6 * (0.5 * 0.7**0.8 * 1.8**0.2,))))


def test_no_more_steps_are_expected_of_what_comes_again_than_of_the_first():
    """Where nothing is better the second time, as with a draft model, the first tells as well."""
    yields = Yields()
    come_again(yields, (0.3,), 0.4)
    yields.learn("first", 50, 0.3)
    assert yields.expect("new", 50)[0] == pytest.approx(0.3)


def test_the_last_sessions_stand_for_those_to_come():
    """What the agents do now counts, not what they did long ago."""
    yields = Yields()
    assert yields.typical() is None and len(yields.expect("s", 0)) == 1
    for number in range(50):
        yields.begin(f"s{number}", 1)
        yields.learn(f"s{number}", 1, 0.9 if number < 25 else 0.1)
    assert set(yields.expect("new", 1)) == set(yields.expect("new", 0)) == {0.1}


def test_a_session_goes_on_as_those_before_it_that_began_alike():
    """From as many turns on as it has had, and the surer the more of them have told."""
    yields = Yields()
    found = []
    for number in range(3):
        session = f"s{number}"
        yields.begin(session, 1)
        yields.learn(session, 1, 0.4)
        found += yields.expect(session, 1)
        yields.learn(session, 1, 0.2)
    assert found == pytest.approx([0.4, 0.4 * 2.75 / 3, 0.4 * 3.5 / 4])  # .75 of it in the end
    assert yields.expect("s2", 1) == pytest.approx((0.3,))  # nobody went on for longer


def test_a_session_of_few_turns_is_doubted_until_its_kind_tells_how_it_goes_on():
    yields = Yields()
    doubts = []
    for _ in range(3):
        yields.learn("first", 1, 0.4)
        doubts.append(yields.doubt("first"))
    assert doubts == pytest.approx([0.25, 0.25 / 2, 0.25 / 3])
    yields.learn("second", 1, 0.4)
    assert yields.doubt("second") == pytest.approx(0.25 / 2)
    yields.learn("of no kind", 0, 0.4)
    assert yields.doubt("of no kind") == yields.doubt("nobody") == 0.0


def test_of_a_long_session_the_newest_turns_are_remembered():
    yields = Yields()
    for _ in range(50):
        yields.learn("long", 1, 0.9)
    for _ in range(10):
        yields.learn("long", 1, 0.1)
    assert yields.expect("long", 1) == pytest.approx((0.1,), rel=0.02)


def test_a_session_stays_of_the_kind_that_it_began_as():
    """A short first prompt is the whole of how it begins, and a longer one has another opening."""
    yields = Yields()
    for session in ("one", "other"):
        for opening in (1, 2):
            yields.begin(session, opening)
            yields.learn(session, opening, 0.4)
    yields.begin("else", 3)
    yields.learn("else", 3, 0.9)
    yields.begin("new", 1)
    assert 0.9 in yields.expect("nobody", 2)  # no session began so
    assert yields.expect("new", 2) == yields.expect("nobody", 1)
    assert 0.9 not in yields.expect("new", 2)
