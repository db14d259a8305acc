"""What a request says of how it wants to be scheduled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.errors import InvalidRequest
from sessile.sessions.hints import Hints, read_hints


def test_without_hints_a_request_is_usual():
    """Class one, no deadline, nothing known."""
    assert read_hints([], {}) == Hints(priority=1)


@pytest.mark.parametrize(
    ("tier", "priority"),
    [
        ("priority", 0),
        ("fast", 0),
        ("auto", 1),
        ("default", 1),
        ("standard", 1),
        ("flex", 2),
        ("scale", 1),
        (7, 1),
        (None, 1),
    ],
)
def test_service_tiers_are_classes(tier, priority):
    """Those that OpenAI names; another is the usual one."""
    assert read_hints([], {"service_tier": tier}).priority == priority


def test_the_header_comes_before_the_body():
    """What the caller says of this very request is what holds."""
    body = {"service_tier": "flex", "nvext": {"agent_hints": {"priority": 5}}}
    assert read_hints([(b"x-priority", b"0")], body).priority == 0
    assert read_hints([], body).priority == 5


@pytest.mark.parametrize("value", [b"", b"high", b"-1", b"10", b"1.5"])
def test_a_header_that_is_no_class_is_refused(value):
    """By its name, with what would be right."""
    with pytest.raises(InvalidRequest, match="X-Priority must be a whole number from 0") as caught:
        read_hints([(b"x-priority", value)], {})
    assert caught.value.param == "x-priority"


def test_agents_tell_deadline_length_hold_and_program():
    """vLLM's `agentic_context`, and the length that NVIDIA's hints give."""
    context = {
        "priority": 2, "deadline_seconds": 30, "expected_output_length": 64,
        "kv_retention_ttl_seconds": 5, "program_id": "p",
    }  # fmt: skip
    hints = read_hints([], {"vllm_xargs": {"agentic_context": context}})
    assert hints == Hints(
        priority=2, deadline_s=30.0, output_tokens=64, hold_s=5.0, program="p"
    )  # fmt: skip
    assert read_hints([], {"nvext": {"agent_hints": {"osl": 12}}}).output_tokens == 12


def test_the_most_that_may_be_generated_is_a_length():
    """Either name of it, unless something better is told."""
    assert read_hints([], {"max_tokens": 9}).output_tokens == 9
    assert read_hints([], {"max_completion_tokens": 8, "max_tokens": 9}).output_tokens == 8
    told = {"max_tokens": 9, "nvext": {"agent_hints": {"osl": 3}}}
    assert read_hints([], told).output_tokens == 3


@pytest.mark.parametrize(("value", "final"), [(b"true", True), (b" 1 ", True), (b"no", False)])
def test_a_last_turn_says_so(value, final):
    """Nothing is held after it."""
    assert read_hints([(b"x-dynamo-session-final", value)], {}).final is final


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
CONTEXT = JSON | st.dictionaries(
    st.sampled_from(["priority", "deadline_seconds", "expected_output_length", "osl",
                     "kv_retention_ttl_seconds", "program_id"]),
    JSON,
)  # fmt: skip


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "service_tier": JSON,
            "max_tokens": JSON,
            "nvext": JSON | st.fixed_dictionaries({"agent_hints": CONTEXT}),
            "vllm_xargs": JSON | st.fixed_dictionaries({"agentic_context": CONTEXT}),
        },
    )
)
def test_whatever_a_body_holds_is_no_error(body):
    """It is the engine's business; what is read is within bounds."""
    hints = read_hints([], body)
    assert 0 <= hints.priority <= 9
    assert hints.deadline_s is None or hints.deadline_s > 0
    assert hints.output_tokens is None or hints.output_tokens >= 0


def test_what_is_to_become_of_a_turn_at_a_busy_session_is_declared():
    """One of three words; without it the protocol decides."""
    for value in ("queue", "fork", "refuse"):
        assert read_hints([(b"x-sessile-when-busy", value.encode())], {}).when_busy == value
    assert read_hints([(b"x-priority", b"1")], {}).when_busy is None
    with pytest.raises(InvalidRequest, match="must be queue, fork or refuse") as caught:
        read_hints([(b"x-sessile-when-busy", b"wait")], {})
    assert caught.value.param == "x-sessile-when-busy"


def test_a_turn_out_of_the_way_keeps_its_other_hints():
    """Only what it would have waited for is gone."""
    hints = Hints(priority=3, when_busy="queue")
    assert hints.out_of_the_way() == Hints(priority=3)
    assert Hints(priority=3).out_of_the_way() == Hints(priority=3)
