"""Speculation by load where a step of a batch is nearly as many times longer, in virtual time: two
replicas on processors, with steps about as those of SmolLM2-135M by llama.cpp on a thread."""

import pytest

from pace_world import World

# By kind of text: what an n-gram replica's step costs, by how many run, and tokens a step.
TEXTS = {
    "edits": (lambda running: 0.022 + 0.030 * running, 2.2),
    "json": (lambda running: 0.004 + 0.030 * running, 1.1),
    "code": (lambda running: 0.012 + 0.022 * running, 1.15),
    "prose": (lambda running: 0.010 + 0.021 * running, 1.0),
}


def plain(running):
    """Nothing waits for memory: each turn is to be computed."""
    return 0.0125 + 0.0167 * running


def world_of(text, shared=False):
    world = World(shared=shared, latency_s=0.05, base_s=0.05, slope_s=1 / 600)
    world.plain, world.verify = plain, TEXTS[text][0]
    return world


def speed(world, text, batch, sessions=1, only=None):
    return world.run([TEXTS[text][1]] * batch, 2, sessions, only)


@pytest.mark.parametrize("text", ["edits", "json", "prose"])
def test_what_a_large_batch_costs_is_known_by_smaller_ones(text):
    """Sixteen are not all sent to the replica that is a little faster for four, as they would be
    where a step hardly grows."""
    world = world_of(text)
    speed(world, text, 1, 3)
    speed(world, text, 4)
    world.where.clear()
    speed(world, text, 16)
    turns = {replica: turns for (_, replica), turns in world.where.items()}
    assert 12 <= turns["off"] <= 22


@pytest.mark.parametrize("batch", [4, 16])
@pytest.mark.parametrize("text", TEXTS)
def test_replicas_that_hinder_each_other_a_little_are_both_used(text, batch):
    """Too few processors for both are no device of which one has all while the other has
    nothing."""
    world = world_of(text, shared=1.35)
    for learned in (1, 4, 16):
        speed(world, text, learned, 2)
    found = speed(world, text, batch, 4)
    alone = []
    for place in (0, 1):
        one = world_of(text)
        alone.append(speed(one, text, batch, 4, one.pool[place]))
    assert found > 1.1 * max(alone)


@pytest.mark.parametrize("batch", [4, 16])
@pytest.mark.parametrize("text", TEXTS)
def test_sessions_are_divided_as_well_as_they_can_be(text, batch):
    """Within three per cent of the fastest fixed number of them at each replica, once known."""
    world = world_of(text)
    for learned in (1, 4, 16):
        speed(world, text, learned, 2)
    world.decode_s = 0.0
    speed(world, text, batch)
    fixed = []
    for off in range(batch + 1):
        each = world_of(text)
        speed(each, text, batch, 1, [each.pool[place >= off] for place in range(batch)])
        fixed.append(each.decode_s)
    assert world.decode_s <= min(fixed) / 0.97
