"""Speculation by load of texts that are said again, in virtual time: the benchmark's `--again`,
with the steps that were measured on an H200 for SmolLM2 and trees of n-grams."""

from collections import Counter
from random import Random

import pytest

from pace_world import BATCHES, TOKENS, World, line

TURNS = 3

# By kind of text: seconds a step without and with speculation for 1, 4 and 16 turns, tokens a step
# once it was said before, and the share of these that the first time takes.
TEXTS = {
    "edits": ((1.85e-3, 1.92e-3, 2.17e-3), (5.0e-3, 5.6e-3, 9.4e-3), (9.1, 8.9, 7.1), 0.5),
    "json": ((1.54e-3, 1.78e-3, 1.90e-3), (4.0e-3, 4.5e-3, 8.3e-3), (11.0, 8.8, 6.5), 0.8),
    "code": ((1.55e-3, 2.16e-3, 1.76e-3), (3.3e-3, 5.7e-3, 9.6e-3), (10.4, 8.5, 6.6), 0.4),
    "prose": ((1.69e-3, 2.33e-3, 2.40e-3), (3.6e-3, 5.0e-3, 11.2e-3), (9.4, 8.5, 6.0), 0.3),
}
ORDERS = {"as measured": 1, "backwards": -1}
BEFORE = {"one": (1,), "a few": (4,), "a few, twice": (4, 4), "one, then many": (1, 16)}


def world(compiles_s=0.0):
    return World(
        shared=1.35, device="0", latency_s=0.02, base_s=0.003, slope_s=4e-6, tells_last=True,
        compiles_s=compiles_s, alike=False,
    )  # fmt: skip


def hold(auto, kind, batch, draw, number, only=None, times=1.0):
    """The pass of that number, of the same conversations as those before it; an engine is fed by
    all passes, the router's own and those it is compared with. Each step takes so many `times`.
    Returns tokens a second."""
    plain, verify, accepts, first = TEXTS[kind]
    auto.plain, auto.verify = (line([times * each for each in steps]) for steps in (plain, verify))
    auto.kind = 100 * (len(TEXTS) * BATCHES.index(batch) + list(TEXTS).index(kind))
    random = Random(f"{draw} {kind} {batch}")
    said = min(1.0, 0.85 + 0.03 * number) if number else first
    mean = said * accepts[BATCHES.index(batch)]
    lengths = [
        tuple(max(1.0, mean * each * random.uniform(0.75, 1.3)) for _ in range(TURNS))
        for each in (random.uniform(0.8, 1.2) for _ in range(batch))
    ]
    before_s = auto.decode_s
    auto.run(lengths, TURNS, 1, only)
    auto.now += 4.0
    return batch * batch * TURNS * TOKENS / (auto.decode_s - before_s)


def points(order, draw, learn=8, rounds=6, before=(), compiles_s=0.0):
    """By point: tokens a second of auto in parts of the better, and on in parts of off. `before`
    are sessions of one turn that came at once, of which hardly a draft was accepted."""
    auto = world(compiles_s)
    for batch in before:
        auto.plain, auto.verify = line(TEXTS["code"][0]), line(TEXTS["code"][1])
        auto.kind = 100_000
        auto.run([1.3] * batch, 1, 1)
        auto.now += 2.0
    found = {}
    for kind in list(TEXTS)[::order]:
        for batch in BATCHES:
            for number in range(learn):
                hold(auto, kind, batch, draw, number)
            speeds = Counter()
            for number in range(learn, learn + rounds):
                speeds["auto"] += hold(auto, kind, batch, draw, number)
                for place, name in enumerate(("off", "on")):
                    alone = world()
                    speeds[name] += hold(alone, kind, batch, draw, number, alone.pool[place])
            ratio = speeds["auto"] / max(speeds["off"], speeds["on"])
            found[kind, batch] = (ratio, speeds["on"] / speeds["off"])
    return found


@pytest.mark.parametrize("draw", "abcdef")
@pytest.mark.parametrize("order", ORDERS)
def test_auto_is_as_fast_as_the_better_at_every_point(order, draw):
    """Within three per cent, also where sixteen at once were slower the first time they came."""
    missed = {at: told for at, told in points(ORDERS[order], draw).items() if told[0] < 0.97}
    assert not missed


@pytest.mark.parametrize("compiles_s", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("before", BEFORE)
def test_engines_that_compile_at_first_are_not_judged_by_that(before, compiles_s):
    """A turn that waits for a compiler is as slow as twenty steps for each of its own. Whoever came
    first, all points are as fast as the better of both afterwards."""
    missed = {
        at: told
        for at, told in points(1, "a", before=BEFORE[before], compiles_s=compiles_s).items()
        if told[0] < 0.97
    }
    assert not missed


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", TEXTS)
def test_what_slowed_all_down_for_a_while_is_not_held_against_a_kind(kind, batch):
    """Something else has the device for four passes, in which a step takes ten times as long. Who
    is believed to be slow is not looked at for long, unless it is doubted: no step of drafts is so
    many times dearer than one without."""
    auto = world()
    for number in range(50):
        auto.where.clear()
        hold(auto, kind, batch, "a", number, times=10.0 if 10 <= number < 14 else 1.0)
        if number >= 40:
            found = sum(n for (_, replica), n in auto.where.items() if replica == "on")
            assert found > 0.6 * sum(auto.where.values())


def test_a_crowd_is_tried_whole():
    """Sixteen who said something once, and were slower then: one of them who tries by himself tells
    of himself only, and slows all others down meanwhile."""
    auto = world()
    for number in range(4):
        hold(auto, "edits", 4, "a", number)
    found = []
    for number in range(20):
        auto.where.clear()
        auto.reasons.clear()
        hold(auto, "code", 16, "a", number)
        speculated = sum(n for (_, replica), n in auto.where.items() if replica == "on")
        found.append((speculated, auto.reasons["trial"]))
    everybody = 16 * TURNS
    assert (everybody, 16) in found
    begun = found.index((everybody, 16))
    assert all(speculated == 0 for speculated, _ in found[1:begun])
    assert found[begun + 1 :] == [(everybody, 0)] * (19 - begun)
