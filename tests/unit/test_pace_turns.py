"""Speculation of sessions whose turns are accepted otherwise one by one, in virtual time, with the
steps that were measured on an H200 for a draft model."""

import pytest

from pace_world import BATCHES, TOKENS, World, line

STEPS_S = line((4.0e-3, 4.15e-3, 4.6e-3)), line((10.2e-3, 13.0e-3, 20.5e-3))
LONGER_S = (0.6e-6, 6.5e-6)  # a token of context
CODE = (4.0, 4.0, 4.4)
TEXTS = {
    "the third best": (3.0, 3.05, 4.25),
    "better from the second on": (3.0, 4.25, 4.45),
    "better each time": (2.6, 3.6, 4.4),
    "worse each time": (4.2, 3.3, 3.0),
    "all alike": (3.0, 3.0, 3.0),
}


def world():
    return World(
        shared=1.7, device="0", latency_s=0.05, base_s=0.02, slope_s=4e-6, steps_s=STEPS_S,
        longer_s=LONGER_S, tells_last=True, alike=False, first_tokens=60,
    )  # fmt: skip


def hold(auto, kind, accepts, batch, only=None):
    """A pass of the benchmark; returns tokens a second of decoding."""
    auto.kind = kind
    before_s = auto.decode_s
    auto.run([accepts] * batch, len(accepts), 1, only)
    auto.now += 3.0
    return batch * batch * len(accepts) * TOKENS / (auto.decode_s - before_s)


@pytest.mark.parametrize("batch", BATCHES[:2])
@pytest.mark.parametrize("text", TEXTS)
def test_a_session_is_not_judged_by_its_first_turn(text, batch):
    """One whose first turn is slower with drafts stays for another, since nobody hears of it where
    nothing is drafted; and the next of its kind are expected to go on as it did."""
    auto = world()
    for before in BATCHES:
        for _ in range(8):
            hold(auto, 100 * before, CODE, before)
    for _ in range(6):
        hold(auto, 5000, TEXTS[text], batch)
    rounds = 10
    found = sum(hold(auto, 5000, TEXTS[text], batch) for _ in range(rounds))
    alone = [world() for _ in range(2)]
    off, on = (hold(each, 0, TEXTS[text], batch, each.pool[n]) for n, each in enumerate(alone))
    assert found >= 0.97 * rounds * max(off, on)


def test_a_session_that_is_slower_with_drafts_leaves():
    """By a quarter at once, by less after some turns; the next ones do not come."""
    auto = world()
    for _ in range(8):
        hold(auto, 100, CODE, 1)
    slow = (2.2,) * 8
    for _ in range(4):
        hold(auto, 5000, slow, 1)
    auto.where.clear()
    for _ in range(10):
        hold(auto, 5000, slow, 1)
    assert auto.where[slow, "on"] <= 4
