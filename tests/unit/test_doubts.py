"""What raises doubt about a replica that says it is healthy, and what lays it."""

import pytest

from sessile.router.doubts import Doubts, Waiting


def waiting(sent_at: float, foreseen_s: float = 0.0) -> Waiting:
    """A turn that was sent then."""
    return Waiting("/v1/chat/completions", "m", sent_at, foreseen_s)


def sent(doubts: Doubts, turn: str, at: float) -> None:
    doubts.sent(turn, waiting(at))


def test_turns_in_a_row_that_come_to_nothing_raise_doubt():
    """One is not enough, and the turn that failed is what a trial resembles."""
    doubts = Doubts()
    for at in (1.0, 2.0):
        assert not doubts.doubted(at, 30)
        sent(doubts, "t", at)
        doubts.failed("t", at)
    assert doubts.doubted(2.0, 30) and doubts.last == waiting(2.0)


@pytest.mark.parametrize(
    ("status", "doubted"), [(500, True), (503, True), (401, True), (400, False), (200, False)]
)
def test_an_answer_that_is_the_engine_s_own_failure_counts_as_none(status, doubted):
    """A refusal of what was asked shows that turns are read."""
    doubts = Doubts()
    for at in (1.0, 2.0):
        sent(doubts, "t", at)
        doubts.answered("t", status, at)
    assert doubts.doubted(2.0, 30) is doubted


def test_an_answer_that_goes_on_or_ends_well_lays_the_doubt():
    """A replica that is busy refuses some turns and serves others; that an answer begins says
    nothing, for it may begin with an error."""
    doubts = Doubts()
    for at in (1.0, 2.0):
        sent(doubts, "t", at)
        doubts.answered("t", 200, at)
        doubts.failed("t", at)
    assert doubts.doubted(3.0, 30)
    doubts.well_at = 3.0
    assert not doubts.doubted(3.0, 30)


def test_silence_while_a_turn_waits_raises_doubt():
    """Counted from the last word of any answer, and from when the turn was sent; half of the time
    is left to the trial."""
    doubts = Doubts()
    doubts.well_at = 50.0
    sent(doubts, "a", 40.0)
    assert not doubts.doubted(65.0, 30)
    assert doubts.doubted(65.5, 30)
    doubts.well_at = 65.5
    assert not doubts.doubted(80.0, 30)
    doubts.left("a")
    assert not doubts.doubted(900.0, 30)


def test_a_turn_that_was_foreseen_to_take_long_is_waited_for():
    """Three times as long as was foreseen."""
    doubts = Doubts()
    doubts.sent("a", waiting(0.0, foreseen_s=40.0))
    assert not doubts.doubted(59.0, 30)
    assert doubts.doubted(61.0, 30)


def test_an_answer_in_one_piece_has_twice_the_time():
    """It is silent while it is made."""
    doubts = Doubts()
    doubts.sent("a", Waiting("/v1/chat/completions", "m", 0.0, 0.0, whole=True))
    assert not doubts.doubted(29.0, 30)
    assert doubts.doubted(31.0, 30)


def test_a_replica_that_computes_is_waited_for():
    """However long that takes; when it stops, the doubt comes as after any other silence."""
    doubts = Doubts()
    sent(doubts, "a", 0.0)
    doubts.worked_at = 300.0
    assert not doubts.doubted(315.0, 30)
    assert doubts.doubted(315.5, 30)


def test_what_it_computes_speaks_for_it_only_where_a_trial_met_silence():
    """An error is an answer, and a word of some turn speaks against that too."""
    doubts = Doubts()
    doubts.worked_at = 5.0
    assert doubts.alive(4.0, silent=True) and not doubts.alive(4.0, silent=False)
    assert not doubts.alive(5.0, silent=True)
    doubts.well_at = 6.0
    assert doubts.alive(5.0, silent=True) and doubts.alive(5.0, silent=False)


def test_a_new_start_and_a_trial_that_was_answered_are_a_clean_sheet():
    """Whatever was said before."""
    doubts = Doubts()
    for clear in (doubts.reset, lambda: doubts.settled(3.0)):
        for at in (1.0, 2.0):
            doubts.failed("t", at)
        doubts.refused = "why"
        clear()
        assert doubts.refused is None and not doubts.doubted(3.0, 30)
