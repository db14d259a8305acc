"""Who is next in the queue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.errors import Overloaded
from sessile.router.admission import Queue
from sessile.router.policy import Ask


def ask(turn, tenant="a", program="p", priority=1, deadline=None):
    """A turn that waits."""
    return Ask(session=turn, turn=turn, tenant=tenant, program=program, priority=priority,
               deadline=deadline)  # fmt: skip


def order(queue, now=0.0):
    """The turns, the next one first."""
    return [waiting.ask.turn for waiting in queue.ordered(now)]


def test_classes_go_before_anything_else():
    """The lowest number first, however much it was served and however long others wait."""
    queue = Queue(10)
    queue.push(ask("late", priority=2), 0.0, 1.0)
    queue.push(ask("soon", tenant="b", priority=0), 50.0, 1.0)
    queue.serve("b", "p", 1000.0)
    assert order(queue, 60.0) == ["soon", "late"]


def test_the_tenant_that_was_served_less_comes_first_by_its_weight():
    """Four times the weight, four times the service before it is the other's turn."""
    queue = Queue(10, {"big": 4.0})
    for tenant in ("big", "small"):
        queue.push(ask(tenant, tenant=tenant, program=tenant), 0.0, 1.0)
    queue.serve("big", "big", 3.0)
    queue.serve("small", "small", 1.0)
    assert order(queue) == ["big", "small"]
    queue.serve("big", "big", 2.0)
    assert order(queue) == ["small", "big"]


def test_of_one_tenant_the_program_that_was_served_least():
    """A long task does not hold up a short one."""
    queue = Queue(10)
    queue.push(ask("long", program="long"), 0.0, 1.0)
    queue.push(ask("short", program="short"), 0.0, 1.0)
    queue.serve("a", "long", 20.0)
    queue.serve("a", "short", 1.0)
    assert order(queue) == ["short", "long"]


def test_waiting_makes_up_for_service():
    """Who waits long enough goes before who was served less."""
    queue = Queue(10)
    queue.push(ask("long", program="long"), 0.0, 1.0)
    queue.serve("a", "long", 20.0)
    queue.push(ask("short", program="short"), 11.0, 1.0)
    assert order(queue, 11.0) == ["long", "short"]


@given(st.lists(st.sampled_from("bcd"), min_size=60, max_size=60), st.floats(0.0, 100.0))
def test_nobody_starves(rivals, served):
    """However much a turn's tenant was served, and whoever comes after it, it gets its turn."""
    queue = Queue(1000)
    queue.serve("a", "p", served)
    queue.push(ask("mine"), 0.0, 1.0)
    for second, tenant in enumerate(rivals * 2):
        queue.push(ask(f"t{second}", tenant=tenant, program=f"p{second}"), float(second), 1.0)
        first = queue.ordered(float(second))[0].ask
        queue.remove(first.turn)
        queue.serve(first.tenant, first.program, 1.0)
        if first.turn == "mine":
            return
    raise AssertionError("it still waits")


def test_idleness_earns_nothing():
    """A tenant that comes back starts level with those who wait, and is not served alone."""
    queue = Queue(10)
    queue.serve("busy", "p", 500.0)
    queue.push(ask("b", tenant="busy", program="p"), 0.0, 1.0)
    queue.push(ask("i", tenant="idle", program="q"), 0.0, 1.0)
    queue.serve("idle", "q", 1.0)
    assert order(queue) == ["b", "i"]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    """It is bounded; what leaves makes room."""
    queue = Queue(2)
    queue.push(ask("one"), 0.0, 1.0)
    queue.push(ask("two"), 0.0, 1.0)
    with pytest.raises(Overloaded) as caught:
        queue.push(ask("three"), 0.0, 7.0)
    assert caught.value.retry_after_s == 7.0 and "three" not in queue
    assert queue.remove("one") is not None and queue.remove("one") is None
    queue.push(ask("three"), 0.0, 1.0)
    assert len(queue) == 2 and queue.place("three", 0.0) == 2


def test_deadlines_pass():
    """Only of those that have one."""
    queue = Queue(10)
    queue.push(ask("patient"), 0.0, 1.0)
    queue.push(ask("hasty", deadline=5.0), 0.0, 1.0)
    assert [w.ask.turn for w in queue.overdue(4.9)] == []
    assert [w.ask.turn for w in queue.overdue(5.0)] == ["hasty"]


def test_programs_are_remembered_within_bounds():
    """The longest unseen are forgotten first."""
    queue = Queue(10)
    for number in range(100_010):
        queue.serve("a", f"p{number}", 1.0)
    assert queue.attained_s("p0") == 0 and queue.attained_s("p100009") == 1.0
