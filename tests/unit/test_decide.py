"""The decision, case by case as its docstring numbers them."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.errors import NoReplica
from sessile.router.decide import decide
from sessile.router.policy import POLICIES, Ask, Candidate, make_policy
from sessile.sessions.record import Binding

A, B = Candidate("a", "1"), Candidate("b", "1")
BOUND = Ask(session="s", bound=Binding("a", "1", 3), context_tokens=500)


def decided(ask, candidates, failed=(), policy="sticky"):
    """One decision under the default gate."""
    return decide(ask, candidates, make_policy(policy, Random(0)), gate_slack=2, failed=failed)


@pytest.mark.parametrize("failed", [(), ("a", "b")])
def test_nobody_is_left(failed):
    """Case 1: none ready, or all tried, is `NoReplica`."""
    with pytest.raises(NoReplica):
        decided(BOUND, [A, B] if failed else [], failed)


def test_a_policy_that_binds_nothing_decides_alone():
    """Case 2: a binding does not hold under round robin, and the hit is unknown."""
    choice = decided(BOUND, [B, A], policy="round_robin")
    assert (choice.replica, choice.reason, choice.binding) == ("b", "round_robin", "keep")
    assert choice.predicted_cached_tokens is None


def test_a_bound_session_stays():
    """Case 3: whatever the others carry, and what it holds there is the prediction."""
    choice = decided(BOUND, [A._replace(in_flight=4), B])
    assert (choice.replica, choice.reason, choice.binding) == ("a", "bound", "keep")
    assert choice.predicted_cached_tokens == 500


@pytest.mark.parametrize(
    ("candidates", "failed", "replica", "reason"),
    [
        ([B], (), "b", "replica_gone"),
        ([A, B], ("a",), "b", "failover"),
        ([A._replace(in_flight=6, queued=2), B], (), "b", "overloaded"),
        ([A._replace(incarnation="2", in_flight=1), B], (), "b", "restarted"),
        ([A._replace(incarnation="2"), B._replace(in_flight=1)], (), "a", "restarted"),
    ],
)
def test_a_session_moves_for_a_reason(candidates, failed, replica, reason):
    """Case 4: gone, failed, overloaded or restarted: it is re-bound, and nothing is held there."""
    choice = decided(BOUND, candidates, failed)
    assert (choice.replica, choice.reason, choice.binding) == (replica, reason, "rebind")
    assert choice.predicted_cached_tokens == 0


def test_overload_everywhere_moves_nobody():
    """Moving from one queue to another would only lose the cache."""
    full = [A._replace(in_flight=9, queued=5), B._replace(in_flight=5, queued=1)]
    assert decided(BOUND, full).reason == "bound"


def test_an_unbound_session_is_claimed():
    """Case 5: the policy places it, and the binding is to be made."""
    choice = decided(Ask(session="s"), [A._replace(in_flight=1), B])
    assert (choice.replica, choice.reason, choice.binding) == ("b", "new", "claim")


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.sampled_from("abcd"),
        st.sampled_from("12"),
        st.integers(0, 9),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda c: c.id,
)


@given(
    CANDIDATES,
    st.none() | st.builds(Binding, st.sampled_from("abcd"), st.sampled_from("12"), st.just(1)),
    st.sets(st.sampled_from("abcd"), max_size=3),
    st.sampled_from(POLICIES),
)
def test_a_decision_never_names_a_replica_that_failed_or_left(candidates, bound, failed, policy):
    """For any pool, binding and failures: a candidate that was not tried, or `NoReplica`."""
    try:
        choice = decided(Ask(session="s", bound=bound), candidates, tuple(failed), policy)
    except NoReplica:
        assert all(c.id in failed for c in candidates)
    else:
        chosen = next(c for c in candidates if c.id == choice.replica)
        assert chosen.id not in failed and chosen.incarnation == choice.incarnation
