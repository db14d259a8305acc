"""Speculation by load in the points that were measured on an H100, in virtual time: the benchmark's
passes in its order, of which the router sees its own only."""

from collections import Counter
from random import Random

import pytest

from pace_world import BATCHES, TOKENS, World, line

TURNS = 3

# By kind of text: seconds a step without and with speculation for 1, 4 and 16 turns, tokens a step.
SMOL = {
    "edits": ((1.50e-3, 1.50e-3, 1.80e-3), (4.4e-3, 5.9e-3, 10.0e-3), (5.4, 5.4, 5.6)),
    "json": ((1.47e-3, 1.46e-3, 1.74e-3), (3.6e-3, 5.1e-3, 9.1e-3), (7.2, 7.5, 5.5)),
    "code": ((1.42e-3, 1.46e-3, 1.63e-3), (2.9e-3, 4.0e-3, 7.9e-3), (3.2, 3.9, 4.2)),
    "prose": ((1.39e-3, 1.45e-3, 1.72e-3), (2.8e-3, 3.8e-3, 7.8e-3), (4.5, 3.9, 3.7)),
}  # SmolLM2-135M, trees of n-grams
STANDALONE = {
    "edits": ((4.92e-3, 5.02e-3, 5.53e-3), (20.5e-3, 23.0e-3, 27.5e-3), (4.58, 4.66, 4.73)),
    "json": ((4.59e-3, 4.70e-3, 5.01e-3), (16.4e-3, 19.9e-3, 24.1e-3), (4.70, 4.68, 4.71)),
    "code": ((4.26e-3, 4.40e-3, 4.80e-3), (12.9e-3, 16.5e-3, 21.5e-3), (4.17, 4.17, 4.17)),
    "prose": ((4.26e-3, 4.40e-3, 4.80e-3), (12.9e-3, 16.5e-3, 21.5e-3), (3.0, 3.0, 3.0)),
}  # 120 layers, of which 30 do something, drafted by a smaller model
SHAPE = {
    "edits": ((6.4e-3, 6.5e-3, 7.2e-3), (10.1e-3, 11.2e-3, 22.0e-3), (11.9, 11.9, 11.9)),
    "json": ((6.3e-3, 6.3e-3, 6.9e-3), (9.4e-3, 10.0e-3, 18.5e-3), (11.9, 11.9, 11.9)),
}  # 8B, lines of n-grams
ENGINES = {
    "smol": (SMOL, {"shared": 1.35, "latency_s": 0.02, "base_s": 0.003, "slope_s": 4e-6}),
    "standalone": (STANDALONE, {"shared": 1.7, "latency_s": 0.05, "base_s": 0.02, "slope_s": 4e-5}),
    "shape": (SHAPE, {"shared": 1.8, "latency_s": 0.02, "base_s": 0.01, "slope_s": 4e-5}),
}
ORDERS = {"as measured": 1, "backwards": -1}


def world_of(engine):
    return World(device="0", **ENGINES[engine][1])


def hold(world, engine, kind, batch, drawn, only=None):
    """A pass of the benchmark; each conversation, and each turn of it, is accepted as it comes.
    Returns tokens a second of decoding, as the benchmark tells them."""
    plain, verify, accepts = ENGINES[engine][0][kind]
    world.plain, world.verify = line(plain), line(verify)
    random = Random(f"{engine} {kind} {batch} {drawn}")
    mean = accepts[BATCHES.index(batch)]
    lengths = [
        tuple(max(1.0, mean * each * random.uniform(0.85, 1.15)) for _ in range(TURNS))
        for each in (random.uniform(0.85, 1.15) for _ in range(batch))
    ]
    before_s = world.decode_s
    world.run(lengths, TURNS, 1, only)
    world.now += 1.0
    return batch * batch * TURNS * TOKENS / (world.decode_s - before_s)


def points(engine, order, draw="", rounds=2, learn=1):
    """By point: tokens a second of auto in parts of the better, on in parts of off, where auto's
    turns were, and why."""
    auto = world_of(engine)
    found = {}
    for kind in list(ENGINES[engine][0])[::order]:
        for batch in BATCHES:
            for number in range(learn):
                hold(auto, engine, kind, batch, f"{draw}learn {number}")
            auto.where.clear()
            auto.reasons.clear()
            speeds = Counter()
            for number in range(rounds):
                speeds["auto"] += hold(auto, engine, kind, batch, f"{draw}{number}") / rounds
                for place, name in enumerate(("off", "on")):
                    alone = world_of(engine)
                    only = alone.pool[place]
                    drawn = f"{draw}{number}"
                    speeds[name] += hold(alone, engine, kind, batch, drawn, only) / rounds
            ratio = speeds["auto"] / max(speeds["off"], speeds["on"])
            at = Counter()
            for (_, replica), turns in auto.where.items():
                at[replica] += turns
            found[kind, batch] = (ratio, speeds["on"] / speeds["off"], at, Counter(auto.reasons))
    return found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_auto_is_as_fast_as_the_better_at_every_point_that_was_measured(engine, order):
    """Within three per cent, but where one session, or those of one moment, tried the other kind:
    of so few turns that is more than the hundredth of all decoding that it is; and but for one,
    where what was heard last was of a smaller crowd."""
    found = points(engine, ORDERS[order], learn=2)
    missed = {point: told for point, told in found.items() if told[0] < 0.97}
    untried = [told for told in missed.values() if not told[3]["trial"]]
    assert len(untried) <= 1 and len(missed) <= 3
    assert min(told[0] for told in found.values()) > 0.8


def test_it_mostly_is_whatever_is_drawn():
    """Near ties and texts of which nothing was heard are missed now and then."""
    ratios = [
        told[0]
        for engine in ENGINES
        for order in ORDERS.values()
        for draw in ("one ", "two ", "three ")
        for told in points(engine, order, draw).values()
    ]
    assert sum(ratio >= 0.97 for ratio in ratios) > 0.85 * len(ratios)
    assert sum(ratios) / len(ratios) > 0.97


@pytest.mark.parametrize("batch", [4, 16])
def test_a_text_that_is_said_again_is_not_judged_by_the_first_time(batch):
    """N-grams are of what was said before: at first speculating was a little slower."""
    world = world_of("smol")
    world.alike = False
    world.plain, world.verify = line((2.0e-3,) * 3), line((4.0e-3, 5.1e-3, 9.3e-3))
    again = 1.4 * world.verify(batch) / world.plain(batch)
    for accepts in (0.62 * again, again, again):
        world.run([accepts] * batch, TURNS, 1)
        world.now += 1.0
    world.where.clear()
    world.run([again] * batch, TURNS, 1)
    assert world.where == {(again, "on"): TURNS * batch}


@pytest.mark.parametrize("doubted", [False, True])
def test_those_of_one_moment_do_not_each_try_the_other_kind(doubted):
    """While a store is asked, each is decided without the others being bound yet. A trial of what
    cannot be is not paid for, and one all the same."""
    world = World(shared=False)
    world.run([1.2], 3, 3)
    pace = world.brain._chooser.paces["m"]
    pace._looks._spare_s = 0.0 if doubted else 1e9
    if doubted:
        for _ in range(20):
            pace._steps.add(True, 1.0, 0.0, 0.5)
    world.now += 1000.0
    world.reasons.clear()
    world.run([1.2] * 8, 1, 1)
    assert world.reasons["trial"] == 1
