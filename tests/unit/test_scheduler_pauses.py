"""How long the scheduler holds the KV memory of who pauses, and what it lets go of."""

import pytest

from scheduling import admitted, ask, end, full, replica, scheduler


def waiting_for_a_pause(capacity=100_000, tokens=60_000):
    """One session pauses from 0 on, another waits for its memory."""
    brain, a = full(capacity, tokens)
    end(brain, "first", 0.0, tokens, pause="ls")
    assert brain.submit(ask("second", tokens), [a], 0.1) is None
    return brain, a


def test_a_pause_holds_its_memory_as_long_as_it_is_worth():
    """Ten seconds, by the prior; then whoever waits gets it."""
    brain, a = waiting_for_a_pause()
    assert admitted(brain, a, 9.0) == []
    assert admitted(brain, a, 10.5) == ["second"]


def test_a_pause_gives_way_under_pressure():
    """Where memory is refilled fast, a pause that does not end soon is not worth it."""
    brain, a = waiting_for_a_pause(10_000, 6_000)
    assert admitted(brain, a, 0.5) == []
    assert admitted(brain, a, 1.5) == ["second"]


def test_a_lease_holds_memory_for_as_long_as_was_told():
    """Neither the prior nor those who wait end it; its time does."""
    brain, a = waiting_for_a_pause(10_000, 6_000)
    assert brain.live.lease("first", 0.2, 60.0)
    assert admitted(brain, a, 59.0) == []
    assert admitted(brain, a, 60.5) == ["second"]


@pytest.mark.parametrize("seconds", [1.0, 5000.0])
def test_a_pause_that_nobody_looked_at_for_long_holds_nothing(seconds):
    """Whether its time passed long ago or its lease was longer than sessions are expected back."""
    brain, a = full()
    end(brain, "first", 0.0, 60_000, pause="ls")
    brain.live.lease("first", 0.0, seconds)
    brain.live.expire(5001.0)
    assert not a.holdings.live_tokens and not a.paused


def test_a_lease_of_nothing_lets_go_and_a_stranger_has_none():
    """Zero seconds free the memory; who does not pause holds nothing."""
    brain, a = waiting_for_a_pause()
    assert not brain.live.lease("nobody", 0.2, 60.0)
    assert brain.live.lease("first", 0.2, 0.0)
    assert admitted(brain, a, 0.3) == ["second"]


def test_closing_a_session_ends_its_lease():
    """Nothing is held for it any more."""
    brain, a = waiting_for_a_pause()
    brain.live.lease("first", 0.2, 60.0)
    brain.close("first")
    assert admitted(brain, a, 0.3) == ["second"] and a.holdings.age("first") is None


def test_a_session_that_has_grown_displaces_the_pause_least_likely_to_end():
    """Of two that pause, the one that has lasted longer loses its memory."""
    brain, a = scheduler(), replica("a", 100_000)
    for session, ended_at in (("long", 0.0), ("short", 5.0), ("mine", 5.5)):
        assert brain.submit(ask(session, 30_000), [a], 0.0)
        end(brain, session, ended_at, 30_000, pause="ls")
    assert brain.submit(ask("mine", 45_000, at="a"), [a], 6.0).reason == "bound"
    assert not a.holdings.is_live("long") and a.holdings.is_live("short")


def test_what_ends_for_good_is_released():
    """A turn without a pause, a lease of nothing, a closed session; not one that pauses."""
    brain, pool = scheduler(), [replica()]
    for session, pause in (("once", None), ("leased", ""), ("closed", ""), ("kept", "")):
        brain.submit(ask(session), pool, 0.0)
        end(brain, session, 1.0, pause=pause)
    brain.live.lease("leased", 1.0, 0.0)
    brain.close("closed")
    assert list(brain.live.released) == [("once", "a"), ("leased", "a"), ("closed", "a")]
