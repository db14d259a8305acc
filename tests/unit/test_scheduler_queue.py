"""The scheduler's queue: who waits for KV memory, who passes, who is refused or leaves."""

import pytest

from scheduling import admitted, ask, end, full
from sessile.errors import Overloaded
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.scheduler import Limits, Scheduler


def test_a_turn_waits_for_memory_and_goes_when_it_is_free():
    """It comes out of the queue with its decision, booked."""
    brain, a = full()
    assert brain.submit(ask("second", 60_000), [a], 1.0) is None
    assert admitted(brain, a, 2.0) == []
    end(brain, "first", 3.0, 60_000)
    (out,) = brain.admit(lambda model: [a], 4.0)
    assert out.decision.replica == "a"
    assert not brain.queue and "turn of second" in a.runs


def test_a_held_session_passes_those_who_wait_and_a_newcomer_does_not():
    """Who is back finds its memory; who is new stands behind the others, though it would fit."""
    brain, a = full()
    end(brain, "first", 1.0, 60_000, pause="ls")
    assert brain.submit(ask("second", 60_000), [a], 1.1) is None
    assert brain.submit(ask("small", 100), [a], 1.2) is None
    assert brain.submit(ask("first", 60_500, at="a"), [a], 1.3).reason == "bound"


def test_a_full_queue_refuses():
    """The caller is told when to come back."""
    brain, a = full(most_queued=0)
    with pytest.raises(Overloaded) as caught:
        brain.submit(ask("second", 60_000), [a], 1.0)
    assert caught.value.retry_after_s >= 1.0


def test_a_deadline_ends_the_wait():
    """Whose deadline has passed leaves the queue without a decision."""
    brain, a = full()
    brain.submit(ask("second", 60_000, deadline=5.0), [a], 1.0)
    assert brain.admit(lambda model: [a], 4.9) == []
    (out,) = brain.admit(lambda model: [a], 5.0)
    assert out.decision is None and not brain.queue


def test_whose_client_has_gone_leaves_the_queue():
    """Nothing of it is left, and memory that comes free is not given to it."""
    brain, a = full()
    brain.submit(ask("second", 60_000), [a], 1.0)
    brain.end("turn of second", 2.0)
    end(brain, "first", 3.0, 60_000)
    assert admitted(brain, a, 3.0) == [] and not a.holdings.live_tokens


def test_nothing_is_remembered_of_a_session_whose_only_turn_left_the_queue():
    """A client that gives up waiting leaves nothing behind."""
    scheduler = Scheduler(Limits(most_queued=4))
    outlook = Outlook("a", "1")
    outlook.resize(1_000)
    first = Ask(session="first", turn="t1", model="m", prompt_tokens=900, output_tokens=50)
    second = Ask(session="second", turn="t2", model="m", prompt_tokens=900, output_tokens=50)
    assert scheduler.submit(first, [outlook], 0.0) is not None
    assert scheduler.submit(second, [outlook], 0.0) is None
    scheduler.end("t2", 1.0)
    assert not scheduler.queue
    assert "second" not in scheduler.live._born
