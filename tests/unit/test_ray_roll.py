"""The roll of a Ray Serve application: who is up, who may end, what the load is."""

from sessile.ray.roll import Beat, Held, Report, Roll

ONE = Beat("one", "llamacpp", "http://a:1", "small")
TWO = Beat("two", "llamacpp", "http://b:1", "small")


def roll_of(*beats, routers=("r",)):
    roll = Roll("small", 5.0, 0.0)
    for beat in beats:
        roll.beat(beat, 10.0)
    for router in routers:
        roll.report(Report(router=router), 10.0)
    return roll


def test_routers_are_told_who_lives():
    """A replica that has been silent for five seconds is listed no more."""
    roll = roll_of(ONE, TWO)
    roll.beat(ONE, 14.0)
    names = [e.replica.id for e in roll.report(Report(router="r"), 15.5).replicas]
    assert names == ["one"]


def test_a_young_roll_says_that_it_may_lack_some():
    """Routers keep what they have until every replica has had time to tell."""
    roll = Roll("small", 5.0, 100.0)
    assert not roll.answer(101.0).settled
    assert roll.answer(103.0).settled


def test_a_leaving_replica_waits_for_every_router_to_have_heard_and_finished():
    """One that was told before the leave may still send a turn there."""
    roll = roll_of(ONE, TWO, routers=("r", "s"))
    roll.leave(ONE, 10.5)
    assert [e.leaving for e in roll.answer(10.5).replicas] == [True, False]
    roll.report(Report(router="r"), 11.0)
    roll.report(Report(router="s"), 11.0)
    assert not roll.is_drained("one", 11.0)  # those were sent before they could know
    roll.report(Report(router="r", holds={"one": Held(0, drains=True)}), 12.0)
    roll.report(Report(router="s", holds={"one": Held(1, drains=True)}), 12.0)
    assert not roll.is_drained("one", 12.0)
    roll.report(Report(router="s", holds={"one": Held(0, drains=True, left=2)}), 13.0)
    assert not roll.is_drained("one", 13.0)
    roll.report(Report(router="s", holds={"one": Held(0, drains=True)}), 14.0)
    assert roll.is_drained("one", 14.0)


def test_a_router_that_does_not_drain_it_yet_holds_it():
    """It has nothing there at this moment, and may the next."""
    roll = roll_of(ONE)
    roll.leave(ONE, 10.5)
    roll.report(Report(router="r"), 11.0)
    roll.report(Report(router="r", holds={"one": Held(0)}), 12.0)
    assert not roll.is_drained("one", 12.0)


def test_a_dead_router_holds_nobody():
    """After five seconds of silence what it had there is nobody's."""
    roll = roll_of(ONE)
    roll.report(Report(router="r", holds={"one": Held(3)}), 11.0)
    roll.leave(ONE, 11.5)
    assert not roll.is_drained("one", 12.0)
    roll.leave(ONE, 16.5)
    assert roll.is_drained("one", 16.5)


def test_without_routers_a_replica_goes_at_once():
    """There is nobody to wait for."""
    roll = roll_of(ONE, routers=())
    roll.leave(ONE, 10.5)
    assert roll.is_drained("one", 10.5)


def test_the_load_is_that_of_all_routers():
    """Turns are added up, waits are the longest, late ones the share of all."""
    roll = roll_of(ONE, TWO, routers=())
    roll.report(
        Report(router="r", holds={"one": Held(2, slots=2, kv_fill=0.5), "two": Held(0, slots=2)},
               queued=1, wait_s=0.5, turns=9, late=0), 10.0,
    )  # fmt: skip
    roll.report(
        Report(router="s", holds={"one": Held(2, slots=2, kv_fill=0.7)}, wait_s=2.0, turns=1,
               late=1, missed=3), 10.0,
    )  # fmt: skip
    load = roll.signals(10.0)
    assert (load.replicas, load.in_flight, load.queued, load.missed) == (2, 4, 1, 3)
    assert (load.wait_s, load.late_share, load.busy, load.kv_fill) == (2.0, 0.1, 1.0, 0.7)


def test_what_nobody_tells_is_unknown():
    """Neither slots nor memory: None, not zero."""
    roll = roll_of(ONE)
    assert roll.signals(10.0).busy is None
    assert roll.signals(10.0).kv_fill is None


def test_a_leaving_replica_is_no_room():
    """It counts neither as up nor as free."""
    roll = roll_of(ONE, TWO)
    roll.leave(TWO, 10.0)
    roll.report(Report(router="r", holds={"one": Held(2, slots=2), "two": Held(0, slots=2)}), 10.5)
    assert roll.signals(10.5).replicas == 1
    assert roll.signals(10.5).busy == 1.0
