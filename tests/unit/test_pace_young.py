"""Speculation of texts that are accepted better each time they are said again, as drafts of n-grams
are, in virtual time: with the steps that were measured on an H200 for SmolLM2."""

import pytest

from pace_world import BATCHES, World, line

STEPS_S = line((1.75e-3, 1.8e-3, 2.5e-3)), line((3.5e-3, 4.6e-3, 9.3e-3))
LONGER_S = (0.0, 1e-6)  # a token of context
KNOWN = ((2.2, 3.5, 4.5), (5.0, 5.6, 6.0), (6.7, 7.0, 7.0))  # of a session's turns, each time
SHORT = (1.43,)
LONG = {1: (1.6, 2.6, 4.0), 4: (1.6, 2.6, 4.0), 16: (2.0, 2.2, 2.6)}
AGAIN = ((4.8, 6.4, 6.4), (7.0, 9.0, 8.0))
NEVER = (1.5, 1.5, 1.5)


def world():
    return World(
        shared=1.6, device="0", latency_s=0.045, base_s=0.004, slope_s=2e-6, steps_s=STEPS_S,
        longer_s=LONGER_S, tells_last=True, alike=False, first_tokens=150,
    )  # fmt: skip


def hold(auto, kind, accepts, batch):
    """A pass of the benchmark; returns how many of its turns ran where drafts are made."""
    auto.kind = kind
    auto.where.clear()
    auto.run([accepts] * batch, len(accepts), 1)
    auto.now += 0.25
    return sum(turns for (_, at), turns in auto.where.items() if at == "on")


def learned():
    """A world in which one text was said again, by one, four and sixteen."""
    auto = world()
    for batch in BATCHES:
        for told in (*KNOWN, *[KNOWN[-1]] * 5):
            hold(auto, 1000 * batch, told, batch)
    return auto


@pytest.mark.parametrize("batch", BATCHES)
def test_a_kind_is_not_judged_by_its_first_answers(batch):
    """They were short, and of the longer ones that came next most was new: drafts are better once
    these have been said too, and a kind is heard as often before it is left."""
    auto = learned()
    for accepts in (SHORT, LONG[batch], *AGAIN):
        hold(auto, 50_000, accepts, batch)
    rounds = 5
    assert sum(hold(auto, 50_000, AGAIN[-1], batch) for _ in range(rounds)) == rounds * batch * 3


@pytest.mark.parametrize("batch", BATCHES)
def test_a_kind_that_stays_slow_is_left(batch):
    """After its first sessions and two more."""
    auto = learned()
    for _ in range(4):
        hold(auto, 50_000, NEVER, batch)
    rounds = 5
    assert sum(hold(auto, 50_000, NEVER, batch) for _ in range(rounds)) <= batch
