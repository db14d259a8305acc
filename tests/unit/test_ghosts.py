"""What a replica runs for no one is told once, and only when it is certain."""

from hypothesis import given
from hypothesis import strategies as st

from sessile.router.ghosts import Ghosts


def test_a_request_that_runs_for_no_one_is_told_after_some_looks_and_once():
    """Then with the requests that were left, which are what it may be."""
    ghosts = Ghosts()
    ghosts.leave("turn_1")
    told = [ghosts.look(3, 2, 0) for _ in range(8)]
    assert told == [(0, ())] * 3 + [(1, ("turn_1",))] + [(0, ())] * 4
    assert ghosts.found == 1


def test_another_one_is_told_when_it_comes():
    """What has gone is forgotten; what comes after it is new."""
    ghosts = Ghosts()
    for reported in (1, 1, 1, 1, 2, 2, 2, 2):
        ghosts.look(reported, 0, 0)
    assert ghosts.found == 2
    ghosts.look(0, 0, 0)
    for _ in range(4):
        ghosts.look(1, 0, 0)
    assert ghosts.found == 3


def test_a_turn_that_has_just_ended_is_no_ghost():
    """The replica may have been asked while it still counted it, every time anew."""
    ghosts = Ghosts()
    for ended in range(20):
        assert ghosts.look(3, 2, ended + 1) == (0, ())


def test_a_restart_forgets():
    """Neither what was too much nor what was left is of the new start."""
    ghosts = Ghosts()
    ghosts.leave("turn_1")
    for _ in range(3):
        ghosts.look(1, 0, 0)
    ghosts.reset()
    assert [ghosts.look(1, 0, 0)[0] for _ in range(4)] == [0, 0, 0, 1]
    assert ghosts.found == 1 and ghosts.look(2, 0, 0) == (0, ())


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_what_is_known_is_never_a_ghost(looks):
    """However loads go up and down: with no more reported than known, none is found."""
    ghosts = Ghosts()
    for reported, more in looks:
        assert ghosts.look(reported, reported + more, 0) == (0, ())
