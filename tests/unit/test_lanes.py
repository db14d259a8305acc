"""Lanes and branches of one WebSocket, without one."""

import pytest

from sessile.api.lanes import MOST_WAITING, Branches, Job, Lanes
from sessile.errors import Overloaded


def job(name: str, size: int = 1) -> Job:
    return Job({"input": name}, size)


def test_a_lane_is_first_come_first_served():
    """The first job may begin; those behind it come out in their order, and then it is closed."""
    lanes = Lanes(2, 100)
    assert lanes.put("a", job("1"))
    assert not lanes.put("a", job("2")) and not lanes.put("a", job("3"))
    assert [lanes.next("a").frame["input"] for _ in "ab"] == ["2", "3"]
    assert lanes.next("a") is None and len(lanes) == 0
    assert lanes.put("a", job("4"))


def test_lanes_know_nothing_of_each_other():
    """A full lane keeps nobody from another; the lane without a name is one like others."""
    lanes = Lanes(3, 1_000)
    assert lanes.put(None, job("1")) and lanes.put("a", job("1")) and lanes.put("", job("1"))
    for _ in range(MOST_WAITING):
        lanes.put("a", job("x"))
    with pytest.raises(Overloaded, match="16 requests wait in this lane"):
        lanes.put("a", job("one too many"))
    assert not lanes.put(None, job("2"))


def test_lanes_are_bounded():
    """One lane too many is refused until another has closed."""
    lanes = Lanes(1, 100)
    lanes.put("a", job("1"))
    with pytest.raises(Overloaded) as caught:
        lanes.put("b", job("1"))
    assert caught.value.param == "stream_id" and caught.value.retry_after_s
    assert lanes.next("a") is None
    assert lanes.put("b", job("1"))


def test_what_waits_is_bounded_in_bytes():
    """All lanes together; a single job may be as large as a frame may be, and room comes back."""
    lanes = Lanes(2, 10)
    lanes.put("a", job("1"))
    lanes.put("b", job("1"))
    assert not lanes.put("a", job("2", 10))
    with pytest.raises(Overloaded):
        lanes.put("b", job("2", 1))
    lanes.next("a")
    assert not lanes.put("b", job("2", 1))


def test_what_waits_can_be_dropped():
    """Each with its lane; what runs goes on, and its lane closes when it asks for more."""
    lanes = Lanes(2, 10)
    for name in ("1", "2"):
        lanes.put("a", job(name))
    assert [(lane, dropped.frame["input"]) for lane, dropped in lanes.drop()] == [("a", "2")]
    assert lanes.next("a") is None and lanes.drop() == []


def test_two_lanes_of_one_response_are_a_session_and_a_fork():
    """Whoever follows a response of a session that runs now is a session of its own."""
    branches = Branches()
    first = branches.begin(None)
    branches.opened(first, "r1", "s")
    branches.end(first)
    one, other = branches.begin("r1"), branches.begin("r1")
    assert (one.forks, other.forks) == (False, True)
    branches.opened(one, "r2", "s")
    branches.opened(other, "r3", "s2")
    branches.end(one)
    branches.end(other)
    # Each lane goes on with its own, side by side.
    assert not branches.begin("r2").forks and not branches.begin("r3").forks


def test_a_response_of_another_connection_is_told_apart_too():
    """Its session is not known before its turn has begun, and two lanes may follow it at once."""
    branches = Branches()
    one = branches.begin("old")
    assert branches.begin("old").forks
    branches.opened(one, "r1", "s")
    assert branches.begin("old").forks and branches.begin("r1").forks
    branches.end(one)
    assert not branches.begin("old").forks


def test_a_turn_that_locks_nothing_is_in_nobodys_way():
    """Prewarming beside a turn is no fork, and makes none of the turn that comes meanwhile."""
    branches = Branches()
    warm = branches.begin("r1", locks=False)
    branches.opened(warm, "r2", "s")
    turn = branches.begin("r2")
    assert not turn.forks
    assert not branches.begin("r2", locks=False).forks
