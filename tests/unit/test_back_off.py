"""How long a process that ended is left down."""

from sessile.engines.back_off import FIRST_S, LONGEST_S, STEADY_S, BackOff


def test_each_pause_is_twice_the_one_before_up_to_the_longest():
    """A process that ends as soon as it is started is not started in a loop."""
    back_off = BackOff()
    pauses = [back_off.pause_s(0.1) for _ in range(9)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert (pauses[0], pauses[-1]) == (FIRST_S, LONGEST_S)


def test_one_that_was_steady_is_back_soon():
    """However often it had ended before; one that was up for just so long is not steady yet."""
    back_off = BackOff()
    for _ in range(9):
        back_off.pause_s(0.1)
    assert back_off.pause_s(STEADY_S) == LONGEST_S
    assert back_off.pause_s(STEADY_S + 0.1) == FIRST_S
    assert back_off.pause_s(0.1) == 2 * FIRST_S
