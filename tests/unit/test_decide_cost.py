"""The instrument that measures decisions."""

from sessile.lab.decide_cost import measure


def test_all_figures_are_there() -> None:
    """In small."""
    cost = measure(replicas=4, sessions=50, turns=20)
    assert (cost.replicas, cost.sessions) == (4, 50)
    assert 0 < cost.bound_p50_us <= cost.bound_p99_us and cost.new_p50_us > 0
    assert cost.away_p50_us > 0 and cost.whole_turn_us > 0 and cost.memory_mb >= 0
