"""How a pass is summed up."""

import pytest

from sessile.lab.bench import Sample, quantile, report


def sample(session: str, prompt: str, at: float, **met: object) -> Sample:
    """One turn."""
    return Sample(session, not at, at, prompt, **met)  # type: ignore[arg-type]


def test_hit_rate_is_of_prompt_tokens() -> None:
    """Long prompts count for more, errors are left out, and the ceiling stands beside it."""
    summed = report(
        "session",
        [
            sample("a", "ab", 0, replica="r1", ttft_s=1.0, prompt_tokens=100, ended=0.5),
            sample("a", "abcd", 1, replica="r1", ttft_s=0.2, prompt_tokens=300, cached_tokens=100,
                   completion_tokens=6, ended=2),
            sample("b", "x", 2, replica="r2", error="503", ended=3),
        ],
        wall_s=3.0,
    )  # fmt: skip
    assert summed.hit_rate == 0.25
    assert summed.ceiling == pytest.approx(2 / 7)
    assert summed.hit_of_ceiling == pytest.approx(0.25 * 7 / 2)
    assert (summed.turns, summed.errors, summed.first_error) == (3, 1, "503")
    assert summed.per_replica == {"r1": 2, "r2": 1}
    assert (summed.ttft_p50, summed.later_ttft_p50) == (1.0, 0.2)
    assert (summed.session_s, summed.output_tokens_per_s) == (1.5, 2.0)


def test_unreported_hits_are_unknown_and_not_zero() -> None:
    """An engine that does not tell cached tokens has no hit rate."""
    summed = report("x", [sample("a", "ab", 0, prompt_tokens=10)], wall_s=1.0)
    assert summed.hit_rate is None and summed.hit_of_ceiling is None


def test_quantile_is_the_nearest_rank() -> None:
    """It is one of the values, and nothing of nothing."""
    values = [float(n) for n in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99)) == (51.0, 100.0)
    assert quantile([], 0.5) is None
