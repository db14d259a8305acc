"""Speculation by load and by session: what is learned of paces, and what the scheduler makes of it
in a small world in virtual time."""

import pytest

from pace_world import World
from sessile.router.scheduler import Limits, Scheduler


def best(shared, accepts, turns, sessions, tells=True):
    """Tokens a second with speculation for all, and for nobody, on one replica."""
    found = []
    for name in (0, 1):
        world = World(shared=shared, tells=tells)
        found.append(world.run(accepts, turns, sessions, only=world.pool[name]))
    return max(found)


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("length", [1.2, 1.6, 2.2, 4.0])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_auto_is_as_fast_as_the_better_of_on_and_off(batch, length, shared, tells):
    """Within three per cent, once it has been learned, whatever the batch and the text."""
    world = World(shared=shared, tells=tells, device="0" if shared else None)
    world.run([length], 6, 3)
    world.run([length] * batch, 6, 3)
    found = world.run([length] * batch, 6, 6)
    wanted = best(shared, [length] * batch, 6, 6, tells)
    assert found >= 0.97 * wanted, (
        found / wanted,
        world.reasons,
        world.brain._chooser.paces["m"].describe(),
    )


def test_sessions_that_accept_well_speculate_and_the_others_do_not():
    """Each has a replica of its own device: both kinds of text end where they are faster, though
    they come together and begin alike."""
    world = World(shared=False)
    world.run([4.0, 1.2] * 2, 6, 8)
    world.where.clear()
    world.run([4.0, 1.2] * 2, 6, 8)
    assert world.where[4.0, "on"] > 0.9 * sum(n for (a, _), n in world.where.items() if a == 4.0)
    assert world.where[1.2, "off"] > 0.7 * sum(n for (a, _), n in world.where.items() if a == 1.2)
    assert world.reasons["speculation"]


@pytest.mark.parametrize("device", [None, "0"])
def test_a_change_of_the_text_is_found_by_trials(device):
    """Nobody speculates any more where it does not pay; when it would again, a trial tells. On one
    device too: a session that is alone holds up nobody."""
    world = World(shared=device is not None, device=device)
    world.run([1.1], 1, 200)
    assert world.reasons["trial"]
    world.where.clear()
    world.run([1.1], 1, 300)
    assert world.where[1.1, "off"] > 280
    world.run([8.0], 1, 60)
    world.where.clear()
    world.run([8.0], 1, 50)
    assert world.where[8.0, "on"] == 50


def test_where_all_are_alike_nothing_is_weighed():
    """Neither pace nor trial exists: every decision is as it would be without."""
    world = World(shared=False)
    world.pool[0].speculates = True
    world.run([4.0] * 4, 3, 5)
    assert not world.brain._chooser.paces
    assert not {"speculation", "trial"} & set(world.reasons)


def test_another_router_learns_from_the_news():
    """What one has measured, the other knows before it has sent a turn."""
    world = World(shared=False)
    world.brain.live.peers = True
    world.run([1.2] * 2, 3, 10)
    other = Scheduler(Limits())
    other.hear(world.brain.live.news, world.pool, world.now, "router one")
    assert other._chooser.paces["m"].known
    assert other._chooser.paces["m"].yields.typical() == pytest.approx(1.2)


def test_an_engine_that_tells_nothing_is_not_tried_for_ever():
    """Once some have begun there, new sessions go where they would have gone."""
    world = World(shared=False, counts=False)
    world.run([1.0], 1, 8)
    assert world.where == {(1.0, "on"): 8}
    world.run([1.0], 1, 40)
    assert world.where[1.0, "off"] > 10
    assert set(world.reasons) == {"new"}


@pytest.mark.parametrize(("batch", "shared"), [(1, True), (4, True), (1, False)])
def test_a_router_that_knows_nothing_begins_where_agents_are_mostly_faster(batch, shared):
    """And where so much is accepted that nothing else can be, the other kind is not tried."""
    world = World(shared=shared, device="0" if shared else None)
    world.run([11.9] * batch, 3, 1)
    assert world.where == {(11.9, "on"): 3 * batch}


def test_nobody_moves_on_a_guess():
    """A session is moved once both kinds were seen, and new ones try the other before."""
    world = World(shared=False)
    world.run([1.0], 6, 1)
    assert world.where == {(1.0, "on"): 6}
    world.run([1.0], 6, 2)
    assert world.where[1.0, "off"] >= 11


@pytest.mark.parametrize("length", [1.85, 4.0])
def test_sessions_that_begin_in_one_moment_do_not_each_count_from_nothing(length):
    """How many ran when any did is kept while none does, so that the first of sixteen go where all
    of them are faster."""
    world = World(shared=True, device="0")
    world.run([length] * 16, 3, 8)
    world.where.clear()
    world.now += 30.0
    world.run([length] * 16, 3, 1)
    assert len(world.where) == 1 and (length, "on" if length > 2 else "off") in world.where


def test_sessions_that_pause_beside_a_new_one_are_held_up_by_it_wherever_it_runs():
    """On one device there is nothing to spread."""
    world = World(shared=True, device="0")
    world.run([4.0] * 4, 3, 3)
    world.where.clear()
    world.pool[1].paused |= {f"paused {number}" for number in range(100)}
    world.run([4.0], 3, 1)
    assert world.where == {(4.0, "on"): 3}
