"""The queue before the replicas: who is next, who is refused, and that nobody starves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.errors import Overloaded
from sessile.router.admission import Queue
from sessile.router.policy import Ask


def ask(turn, **fields):
    """A turn; its program is its own unless told."""
    return Ask(session=turn, turn=turn, program=fields.pop("program", turn), **fields)


def order(queue, now=0.0):
    """The turns, the next one first."""
    return [waiting.ask.turn for waiting in queue.ordered(now)]


def test_priority_classes_come_first():
    """Zero before one before two, however much the tenant was served."""
    queue = Queue(9)
    for turn, priority in (("flex", 2), ("usual", 1), ("urgent", 0)):
        queue.push(ask(turn, priority=priority, tenant=turn), 0.0, 1.0)
    queue.serve("urgent", "urgent", 1000.0)
    assert order(queue, 1000.0) == ["urgent", "usual", "flex"]


def test_the_tenant_served_least_by_its_weight_is_next():
    """Ten seconds at weight four are less than five at one."""
    queue = Queue(9, {"big": 4.0})
    queue.push(ask("small's", tenant="small"), 0.0, 1.0)
    queue.push(ask("big's", tenant="big"), 0.0, 1.0)
    queue.serve("small", "p", 5.0)
    queue.serve("big", "q", 10.0)
    assert order(queue) == ["big's", "small's"]
    queue.serve("big", "q", 30.0)
    assert order(queue) == ["small's", "big's"]


def test_within_a_tenant_the_program_served_least_is_next():
    """A long task stands behind one that has just begun."""
    queue = Queue(9)
    queue.push(ask("old's", program="old"), 0.0, 1.0)
    queue.push(ask("new's", program="new"), 0.0, 1.0)
    queue.serve("default", "old", 5.0)
    assert order(queue) == ["new's", "old's"]


def test_a_tenant_that_was_idle_starts_level():
    """Not having asked earns nothing over those who wait."""
    queue = Queue(9)
    queue.serve("busy", "p", 100.0)
    queue.push(ask("busy's", tenant="busy", program="p"), 0.0, 1.0)
    queue.push(ask("idle's", tenant="idle"), 0.0, 1.0)
    queue.serve("idle", "q", 1.0)
    assert order(queue) == ["busy's", "idle's"]


def test_within_a_tenant_whoever_has_waited_longer_is_next():
    """What programs were served decides only between turns that came in the same moment."""
    queue = Queue(9)
    queue.push(ask("old's", program="old"), 0.0, 1.0)
    queue.push(ask("fresh", program="fresh"), 1.0, 1.0)
    queue.serve("default", "old", 60.0)
    assert order(queue, 1.0) == ["old's", "fresh"]


@given(st.floats(0.0, 500.0))
def test_nobody_starves(served_s):
    """Against a stream of new turns from a tenant that is never charged, the heavy one is next
    once it has waited for half of what it was served."""
    queue = Queue(9)
    queue.push(ask("light's", tenant="light"), 0.0, 1.0)
    queue.push(ask("heavy's", tenant="heavy"), 0.0, 1.0)
    queue.serve("heavy", "heavy's", served_s)
    now = served_s / 2 + 1.0
    queue.remove("light's")
    queue.push(ask("newer", tenant="light"), now, 1.0)
    assert order(queue, now)[0] == "heavy's"


def test_a_full_queue_refuses_and_says_when_to_come_back():
    """Bounded: the turn beyond is not taken."""
    queue = Queue(1)
    queue.push(ask("one"), 0.0, 1.0)
    with pytest.raises(Overloaded) as caught:
        queue.push(ask("two"), 0.0, 7.0)
    assert caught.value.retry_after_s == 7.0
    assert order(queue) == ["one"]


def test_deadlines_pass():
    """Overdue are those whose deadline is here; a turn that left has left."""
    queue = Queue(9)
    queue.push(ask("soon", deadline=5.0), 0.0, 1.0)
    queue.push(ask("whenever"), 1.0, 1.0)
    assert order(queue, 1.0) == ["soon", "whenever"]
    assert not list(queue.overdue(4.9))
    assert [waiting.ask.turn for waiting in queue.overdue(5.0)] == ["soon"]
    assert queue.remove("soon").at == 0.0
    assert queue.remove("soon") is None
    assert order(queue, 5.0) == ["whenever"]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.sampled_from("pqr"),
                  st.floats(0.0, 100.0), st.floats(0.0, 9.0)),
        max_size=12,
    )
)  # fmt: skip
def test_the_order_holds_everyone_once_and_classes_in_order(turns):
    """Whatever was served meanwhile."""
    queue = Queue(99)
    for n, (priority, tenant, program, served_s, at) in enumerate(turns):
        queue.push(ask(f"t{n}", priority=priority, tenant=tenant, program=program), at, 1.0)
        queue.serve(tenant, program, served_s)
    waiting = queue.ordered(10.0)
    assert sorted(w.ask.turn for w in waiting) == sorted(f"t{n}" for n in range(len(turns)))
    classes = [w.ask.priority for w in waiting]
    assert classes == sorted(classes)
