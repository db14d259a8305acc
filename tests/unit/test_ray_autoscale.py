"""How many replicas there are to be, from the load that routers tell."""

from hypothesis import given
from hypothesis import strategies as st

from sessile.ray.autoscale import Goals, Trend, decide
from sessile.ray.roll import Signals

GOALS = Goals(least=1, most=8, up_after_s=5.0, down_after_s=60.0, zero_after_s=300.0)
QUIET = Signals(replicas=4, in_flight=1, busy=0.1)
BUSY = Signals(replicas=2, in_flight=8, busy=2.0)


def run(signals, target, goals=GOALS, seconds=1000):
    """The first target that differs, and when; None where it holds."""
    trend = Trend()
    for now in range(seconds):
        found, trend = decide(signals, target, goals, trend, float(now))
        if found != target:
            return found, now
    return None


def test_replicas_are_added_once_the_load_has_lasted():
    """Twice the goal of slots taken asks for as many as it takes, at most double, after 5 s."""
    assert run(BUSY, 2) == (4, 5)


def test_a_load_that_stops_in_between_starts_the_wait_anew():
    """A second of quiet forgets the load before it."""
    trend = Trend()
    for now in range(4):
        target, trend = decide(BUSY, 2, GOALS, trend, float(now))
    target, trend = decide(Signals(replicas=2, busy=0.7, in_flight=3), 2, GOALS, trend, 4.0)
    target, trend = decide(BUSY, 2, GOALS, trend, 6.0)
    assert target == 2


def test_full_memory_waiting_turns_and_late_first_tokens_each_add_a_replica():
    """Every one of the signals is enough."""
    for signals in (
        Signals(replicas=2, in_flight=1, kv_fill=1.0),
        Signals(replicas=2, in_flight=1, wait_s=3.0),
        Signals(replicas=2, in_flight=1, late_share=0.5),
    ):
        assert run(signals, 2) == (3, 5)


def test_nothing_more_is_asked_for_while_replicas_come_up():
    """Turns wait until those that were asked for are there; more would not come sooner."""
    assert run(Signals(replicas=2, in_flight=9, busy=2.0, wait_s=9.0), 4) is None


def test_those_that_the_cluster_has_no_room_for_are_given_up_when_the_load_has_gone():
    """Four are aimed at and two are up, whom the load needs no more."""
    assert run(Signals(replicas=2, in_flight=1, busy=0.2), 4) == (3, 60)


def test_the_load_must_last_anew_once_they_are_up():
    """What it was before they came says nothing of what it is with them."""
    trend = Trend()
    for now in range(20):
        target, trend = decide(BUSY, 3, GOALS, trend, float(now))
    up = Signals(replicas=3, in_flight=9, busy=1.5)
    assert decide(up, 3, GOALS, trend, 20.0)[0] == 3


def test_one_goes_at_a_time_and_late():
    """Four that idle lose one after a minute."""
    assert run(QUIET, 4) == (3, 60)


def test_none_goes_where_the_others_would_be_nearly_full():
    """At 65 % of two, one would be over its goal, and come back at once."""
    assert run(Signals(replicas=2, in_flight=2, busy=0.65), 2) is None


def test_the_last_one_stays_unless_none_is_allowed():
    """Without load: `least` is 1, so it stays; where it is 0 it goes after five minutes."""
    idle = Signals(replicas=1)
    assert run(idle, 1) is None
    assert run(idle, 1, Goals(least=0, most=2, zero_after_s=300.0)) == (0, 300)


def test_the_last_one_stays_while_a_turn_runs():
    """However little one turn is."""
    goals = Goals(least=0, most=2, zero_after_s=3.0)
    assert run(Signals(replicas=1, in_flight=1, busy=0.1), 1, goals) is None


def test_from_none_the_first_comes_at_once():
    """A turn that found nobody brings one, without any wait."""
    goals = Goals(least=0, most=4)
    assert run(Signals(missed=3), 0, goals) == (1, 0)
    assert run(Signals(), 0, goals) is None


def test_bounds_that_changed_hold_at_once():
    """A target outside of them is moved to the next bound."""
    assert run(QUIET, 12) == (8, 0)
    assert run(QUIET, 0) == (1, 0)


@given(
    replicas=st.integers(0, 20),
    target=st.integers(0, 20),
    busy=st.none() | st.floats(0, 50),
    fill=st.none() | st.floats(0, 2),
    wait=st.floats(0, 100),
    queued=st.integers(0, 100),
    least=st.integers(0, 3),
)
def test_the_target_never_leaves_its_bounds(replicas, target, busy, fill, wait, queued, least):
    """Whatever is told, and from wherever it starts."""
    goals = Goals(least=least, most=8, up_after_s=1.0, down_after_s=1.0, zero_after_s=1.0)
    signals = Signals(replicas=replicas, busy=busy, kv_fill=fill, wait_s=wait, queued=queued)
    trend = Trend()
    for now in range(10):
        target, trend = decide(signals, target, goals, trend, float(now))
        assert goals.least <= target <= goals.most
