"""Whole runs in virtual time: what must hold of any."""

from typing import Any

import pytest

from sessile.lab.sim_engine import Hardware
from sessile.lab.sim_load import Shape, agent_load
from sessile.lab.sim_routers import ORACLE, SIMULATED
from sessile.lab.sim_score import Outcome, medians
from sessile.lab.sim_world import Fault, World

SHAPE = Shape(sessions=40, rate=0.5, fan_out=0.1)


def run(policy: str, shape: Shape = SHAPE, kv_tokens: int = 120_000, **more: Any) -> Outcome:
    """One run over four replicas."""
    load = agent_load(shape, more.get("seed", 1))
    return World(policy, load, Hardware(kv_tokens=kv_tokens), 4, **more).run()


@pytest.mark.parametrize("policy", SIMULATED)
def test_every_policy_ends_every_turn_and_the_same_seed_gives_the_same_numbers(policy: str) -> None:
    """Twice the same run, to the last digit."""
    first = run(policy, kv_tokens=50_000)
    assert first == run(policy, kv_tokens=50_000)
    expected = sum(session.count() for session in agent_load(SHAPE, 1).sessions())
    assert (first.turns, first.failed) == (expected, 0)
    assert 0 < first.hit_rate < 1 and first.max_over_mean >= 1


def test_sessions_beat_turns_about() -> None:
    """Where sessions stay, they find their prefix."""
    session, about = run("session"), run("round_robin")
    assert session.hit_rate > about.hit_rate + 0.2
    assert session.ttft_p50_s < about.ttft_p50_s
    assert session.computed_tokens < about.computed_tokens / 2
    assert session.prediction_error_p50 is not None and session.prediction_error_p50 < 0.2
    assert about.prediction_error_p50 is None


def test_in_a_roomy_pool_nobody_hits_more_than_the_oracle() -> None:
    """It knows every cache; a point is left for luck."""
    outcomes = {policy: run(policy, kv_tokens=1_000_000) for policy in SIMULATED}
    best = max(outcome.hit_rate for outcome in outcomes.values())
    assert outcomes[ORACLE].hit_rate >= best - 0.01
    assert outcomes["session"].hit_rate >= best - 0.01


@pytest.mark.parametrize("kv_tokens", [120_000, 50_000])
def test_routers_agree(kv_tokens: int) -> None:
    """Three that share the load do about as well as one that sees it all."""
    shape = Shape(sessions=80, rate=0.4)
    one = run("session", shape, kv_tokens)
    three = run("session", shape, kv_tokens, routers=3)
    assert three.failed == 0
    assert three.hit_rate > one.hit_rate - 0.06


def test_a_closed_loop_starts_a_session_when_another_ends() -> None:
    """So many run at once, whenever the load would have them start: one alone takes as long as all
    of them together, and three take less."""
    late = Shape(sessions=12, rate=0.001, fan_out=0.0)
    alone = run("session", late, at_once=1)
    assert alone.failed == 0
    assert alone.makespan_s == pytest.approx(12 * alone.session_time_mean_s, rel=0.01)
    three = run("session", late, at_once=3)
    assert alone.makespan_s / 3 < three.makespan_s < alone.makespan_s / 2


FAULTS = {
    "replica": [Fault("replica", at=20.0, number=1)],
    "every replica": [Fault("replica", at=20.0, number=n, for_s=5.0) for n in range(4)],
    "router": [Fault("router", at=20.0)],
    "redis": [Fault("redis", at=20.0, for_s=30.0)],
    "all": [Fault("replica", 15.0, 0), Fault("router", 18.0, 0, 20.0), Fault("redis", 20.0, 0, 9.0),
            Fault("replica", 40.0, 0), Fault("replica", 22.0, 1, 60.0)],
}  # fmt: skip


@pytest.mark.parametrize("routers", [1, 3])
@pytest.mark.parametrize("policy", ["session", "sticky", "prefix", ORACLE])
@pytest.mark.parametrize("what", FAULTS)
def test_no_fault_loses_a_turn(what: str, policy: str, routers: int) -> None:
    """Whatever dies and comes back: every turn ends, once."""
    busy = Shape(sessions=40, rate=2.0, fan_out=0.1)
    calm = run(policy, busy, 60_000, routers=routers)
    broken = run(policy, busy, 60_000, routers=routers, faults=FAULTS[what])
    assert broken.failed == 0 and broken.turns == calm.turns
    assert broken.sent_again > 0 or what == "redis"
    assert broken != calm or policy not in ("session", "sticky")


def test_a_store_that_is_away_costs_little() -> None:
    """Routers go by what they remember, and by rank."""
    calm = run("session", routers=3)
    away = run("session", routers=3, faults=[Fault("redis", at=20.0, for_s=40.0)])
    assert away.hit_rate > calm.hit_rate - 0.1


def test_progress_is_told_for_each_session() -> None:
    """Of the load's own, not of those that they spawn."""
    told: list[int] = []
    run("sticky", progress=told.append)
    assert sum(told) == 40


def test_a_turn_s_time_counts_from_when_its_agent_first_asked() -> None:
    """An outage of the only router is in the figures of those who had to wait for it."""
    out = run("session", faults=[Fault("router", at=20.0, for_s=25.0)])
    assert out.ttft_p99_s > 10.0


def test_medians_are_by_figure() -> None:
    """And whole numbers stay whole."""
    outcomes = [run("sticky", seed=seed) for seed in (1, 2, 3)]
    found = medians(outcomes)
    assert found.hit_rate == sorted(o.hit_rate for o in outcomes)[1]
    assert isinstance(found.computed_tokens, int) and found.prediction_error_p50 is None
