"""Sessions that move while they pause."""

import msgspec

from scheduling import ask, end, replica, scheduler
from sessile.router.scheduler import Limits, Scheduler


def move(brain, pool, now):
    """Moves the pausing session "s" to whichever replica of the pool takes it."""
    asked = msgspec.structs.replace(ask(at="a"), turn="warm")
    decision = brain.decide(asked, pool, now)
    brain.move(asked, decision, pool, now)
    return decision


def test_a_session_that_moves_pauses_on_where_it_goes():
    """Booked there as work at first, then as a pause, as old as it is; the old home is released."""
    brain, (a, b) = scheduler(), (replica("a"), replica("b"))
    brain.submit(ask(at="a"), [a, b], 0.0)
    end(brain, "s", 1.0, pause="bash")
    assert a.paused == {"s"} and brain.live.return_rate("s", 1.5) == brain.returns.rate("bash", 0.5)
    decision = move(brain, [b], 2.0)
    assert (decision.replica, decision.binding) == ("b", "rebind")
    assert not a.paused and list(brain.live.released) == [("s", "a")]
    assert b.pending_work > 0 and b.in_flight == 1
    brain.moved("warm", 3.0, prompt_tokens=1000, cached_tokens=0)
    assert b.paused == {"s"} and not b.in_flight and not b.pending_work
    assert brain.live.return_rate("s", 4.0) == brain.returns.rate("bash", 3.0)
    assert b.holdings.held("s", ()) == 1100
    assert brain.live.is_home("s", "b") and not brain.live.is_home("s", "a")


def test_the_other_routers_are_told_of_a_move():
    """First that the session runs where it goes, then that it pauses there."""
    brain, (a, b) = Scheduler(Limits(), peers=True), (replica("a"), replica("b"))
    brain.submit(ask(at="a"), [a, b], 0.0)
    end(brain, "s", 1.0, pause="bash")
    brain.live.news.clear()
    move(brain, [b], 2.0)
    brain.moved("warm", 3.0, prompt_tokens=1000, cached_tokens=0)
    told = [(news.state, news.replica, news.kind) for news in brain.live.news]
    assert told == [("runs", "b", ""), ("pauses", "b", "bash")]


def test_a_session_that_is_back_while_it_is_moved_runs_where_it_went():
    """The end of the move changes nothing of its turn, nor of its next pause."""
    brain, (a, b) = scheduler(), (replica("a"), replica("b"))
    brain.submit(ask(at="a"), [a, b], 0.0)
    end(brain, "s", 1.0, pause="bash")
    move(brain, [b], 2.0)
    brain.submit(ask(at="b"), [b], 2.5)
    brain.moved("warm", 3.0)
    assert list(b.runs) == ["turn of s"] and not b.paused
    end(brain, "s", 4.0, pause="")
    assert b.paused == {"s"} and brain.live.return_rate("s", 4.0) is not None


def test_a_session_that_nobody_holds_is_let_go_of_when_it_has_moved():
    """Its time had passed: it is prewarmed, but burdens nobody."""
    brain, (a, b) = scheduler(), (replica("a"), replica("b"))
    brain.submit(ask(at="a"), [a, b], 0.0)
    end(brain, "s", 1.0, pause="")
    brain.live.lease("s", 1.0, 0.0)
    brain.live.expire(1.0)
    move(brain, [b], 2.0)
    brain.moved("warm", 3.0, prompt_tokens=1000, cached_tokens=0)
    assert not b.paused and not b.holdings.live_tokens
    assert b.holdings.held("s", ()) == 1100
