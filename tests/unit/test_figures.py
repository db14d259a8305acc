"""Figures of variants: counted by turn, added up over routers."""

import pytest

from sessile.router.figures import Figures, total
from sessile.sessions.record import Receipt


def receipt(**fields):
    """A turn's, as it ended."""
    return Receipt(turn="t", session="s", model="m", policy="p", **{"outcome": "ok", **fields})


def test_turns_and_errors_are_counted():
    """What a client did to its own turn, or an engine refused it for, is no error."""
    figures = Figures()
    for outcome in ("ok", "client_gone", "steered", "refused", "no_replica", "stream_broken"):
        figures.count(receipt(outcome=outcome))
    assert (figures.turns, figures.errors, figures.refused) == (6, 2, 1)


def test_rates_are_of_what_is_known():
    """A turn whose engine did not say what it found cached changes nothing in the hit rate."""
    figures = Figures()
    assert (figures.hit_rate, figures.tokens_per_s, figures.ttft_s(0.5)) == (None, None, None)
    figures.count(receipt(prompt_tokens=100, cached_tokens=50, completion_tokens=11, tpot_s=0.1))
    figures.count(receipt(prompt_tokens=900, completion_tokens=5))
    assert figures.hit_rate == 0.5
    assert figures.tokens_per_s == pytest.approx(10)
    assert figures.completion_tokens == 16


def test_percentiles_are_within_a_sixteenth():
    """From a millisecond to minutes; a turn that failed has no first token worth counting."""
    figures = Figures()
    times = [0.0001 * 1.01**n for n in range(1500)]
    for seconds in times:
        figures.count(receipt(ttft_s=seconds))
    figures.count(receipt(ttft_s=1e6, outcome="no_replica"))
    for share in (0.5, 0.9, 0.99, 1.0):
        exact = times[round(share * len(times)) - 1]
        assert figures.ttft_s(share) == pytest.approx(exact, rel=0.07)
    assert figures.ttft_s(0.01) == 0.001


def test_routers_add_up():
    """By variant, and nothing of the parts is changed."""
    one, two = Figures(), Figures()
    one.sessions, two.sessions = 2, 3
    one.count(receipt(ttft_s=0.01))
    two.count(receipt(ttft_s=1.0))
    whole = total([{"a": one}, {"a": two, "b": two}])
    assert (whole["a"].sessions, whole["a"].turns, whole["b"].turns) == (5, 2, 1)
    assert whole["a"].ttft_s(0.5) == pytest.approx(0.01, rel=0.07)
    assert whole["a"].ttft_s(0.9) == pytest.approx(1.0, rel=0.07)
    assert (one.turns, two.turns) == (1, 1)
