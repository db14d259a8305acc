"""Runs in virtual time: the same numbers again, no turn lost, policies that do as they should."""

import pytest

from sessile.errors import SettingsError
from sessile.lab.sim_world import Fault
from sessile.lab.simulate import (
    Setup,
    check,
    first_to_meet,
    load_of,
    parse_fault,
    parse_policies,
    parse_sweep,
    points,
    run_all,
    run_one,
)

SMALL = Setup(sessions=30, replicas=3, rate=1.0, context_tokens=12_000)


def turns(setup, seed=1):
    """How many turns the load has."""
    return sum(session.count() for session in load_of(setup, seed).sessions())


def with_(**fields):
    """The small site, but for these."""
    return Setup(**{name: getattr(SMALL, name) for name in Setup.__struct_fields__} | fields)


@pytest.mark.parametrize("policy", ["session", "sticky", "power_of_two"])
def test_the_same_seed_gives_the_same_numbers(policy):
    """Down to the last digit; another seed gives others."""
    assert run_one(SMALL, policy, 1) == run_one(SMALL, policy, 1)
    assert run_one(SMALL, policy, 1) != run_one(SMALL, policy, 2)


@pytest.mark.parametrize("policy", ["session", "round_robin", "oracle"])
@pytest.mark.parametrize("kv_tokens", [15_000, 120_000])
def test_every_turn_is_answered_once_whatever_breaks(policy, kv_tokens):
    """A replica, a router and the store fail meanwhile: none is lost, none is counted twice."""
    faults = (
        Fault("replica", 10.0, 1), Fault("router", 14.0, 0, 5.0), Fault("redis", 18.0, 0, 5.0),
    )  # fmt: skip
    outcome = run_one(with_(routers=2, kv_tokens=kv_tokens, faults=faults), policy, 1)
    assert (outcome.turns, outcome.failed) == (turns(SMALL), 0)


def test_three_routers_are_about_as_good_as_one():
    """Within two points of the hit rate."""
    one, three = (run_one(with_(routers=n), "session", 1).hit_rate for n in (1, 3))
    assert abs(one - three) < 0.02


def test_with_room_for_all_the_default_is_near_the_oracle():
    """And far from what binds nothing."""
    found = {
        name: run_one(SMALL, name, 1).hit_rate for name in ("session", "oracle", "round_robin")
    }
    assert found["session"] > found["oracle"] - 0.02
    assert found["session"] > found["round_robin"] + 0.05


def test_rows_are_medians_and_progress_is_told():
    """A row for each point and policy, and the count ends where it should."""
    told = []
    at = points(SMALL, parse_sweep("replicas=2..3"))
    rows = run_all(at, ["sticky"], [1, 2], 1, lambda done, total: told.append((done, total)))
    assert [(row.value, row.policy) for row in rows] == [(2, "sticky"), (3, "sticky")]
    assert told[-1] == (120, 120)


def test_an_objective_is_met_from_some_value_on():
    """Of what helps the smallest, None where even the most is too little."""
    sweep = parse_sweep("replicas=1..3")
    rows = run_all(points(SMALL, sweep), ["session"], [1], 1, lambda done, total: None)
    assert first_to_meet(rows, sweep, 1e9) == {"session": 1}
    assert first_to_meet(rows, sweep, 0.0) == {"session": None}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("replicas=2..4", (2, 3, 4)),
        ("kv-share=0.1..0.7:0.3", (0.1, 0.4, 0.7)),
        ("rate=0.5,1,2", (0.5, 1.0, 2.0)),
        ("kv_tokens=1000..3000", (1000, 2000, 3000)),
    ],
)
def test_sweeps_are_read(text, values):
    """A range, with a step or not, or a list."""
    assert parse_sweep(text).values == values


@pytest.mark.parametrize(
    "text", ["speed", "colour=1", "replicas=4..2", "replicas=1.5,2", "rate=0,1", "rate=1..999:0.1"]
)
def test_a_bad_sweep_is_a_sentence(text):
    """It quotes what was given."""
    with pytest.raises(SettingsError, match="--sweep"):
        parse_sweep(text)


def test_faults_are_read_and_must_be_of_something_there():
    """What, at which second, for how many."""
    assert parse_fault("replica:1@60") == Fault("replica", 60.0, 1)
    assert parse_fault(" redis@2.5+3 ") == Fault("redis", 2.5, 0, 3.0)
    for text in ("replica@1", "redis:1@2", "disk@1", "replica:1"):
        with pytest.raises(SettingsError, match="--fault"):
            parse_fault(text)
    with pytest.raises(SettingsError, match="there are 3, counted from 0"):
        check(with_(faults=(parse_fault("replica:3@1"),)))


def test_the_oracle_stands_beside_the_policies():
    """Once, last; an unknown name is told the known ones."""
    assert parse_policies("sticky, oracle,sticky") == ["sticky", "oracle"]
    assert "session" in parse_policies("all")
    with pytest.raises(SettingsError, match="there is no policy 'best'"):
        parse_policies("best")
