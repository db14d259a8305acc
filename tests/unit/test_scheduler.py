"""The scheduler: where turns go, what waits, and whose memory is held."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessile.errors import NoReplica, Overloaded
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.scheduler import Limits, Scheduler
from sessile.sessions.record import Binding


def pool(count=3, capacity=10_000):
    """Replicas of 10,000 tokens a second, which have all served something."""
    found = []
    for number in range(count):
        replica = Outlook(f"r{number}", "1")
        replica.resize(capacity)
        for amount in (100.0, 1_000.0, 5_000.0) * 40:
            replica.rates.observe_first_token(amount, 0.01 + 1e-4 * amount)
        found.append(replica)
    return found


def keys(name, count):
    """Chained block keys of a text of that name."""
    return tuple(hash((*map(ord, name), number)) for number in range(count))


_numbers = iter(range(10**9))


def ask(session="s", name=None, blocks=10, own=0, bound=None, output=100, **more):
    """A turn of a prompt of so many blocks of 100 tokens, and then some that are its own."""
    if isinstance(bound, str):
        bound = Binding(bound, "1", 1)
    more.setdefault("turn", f"{session}-{next(_numbers)}")
    return Ask(
        session=session, bound=bound, model="m",
        blocks=keys(name or session, blocks) + keys(f"own {session}", own), block_tokens=100,
        prompt_tokens=100 * (blocks + own) + 20, output_tokens=output, **more,
    )  # fmt: skip


def finish(scheduler, turn, now=1.0, pause="bash"):
    """The turn goes well, and its session pauses."""
    scheduler.first_token(turn.turn, now - 0.88)  # as soon as its price says
    scheduler.end(
        turn.turn, now, prompt_tokens=turn.prompt_tokens, cached_tokens=0, output_tokens=100,
        tpot_s=0.01, pause=pause,
    )  # fmt: skip


def serve(scheduler, replicas, turn, now=0.0, pause="bash"):
    """A whole turn; the replica that took it."""
    decision = scheduler.submit(turn, replicas, now)
    finish(scheduler, turn, now + 1.0, pause)
    return decision.replica


# -- decide, case by case


@pytest.mark.parametrize("failed", [(), ("r0", "r1", "r2")])
def test_nobody_is_left(failed):
    """Case 1: none is there, or all have failed the turn."""
    with pytest.raises(NoReplica):
        Scheduler(Limits()).decide(ask(), pool() if failed else [], 0.0, failed)


def test_a_bound_session_stays():
    """Case 2: it is held there, and nobody can be so much cheaper."""
    scheduler, replicas = Scheduler(Limits()), pool()
    home = serve(scheduler, replicas, ask())
    decision = scheduler.decide(ask(blocks=12, bound=home), replicas, 2.0)
    assert (decision.replica, decision.reason, decision.binding) == (home, "bound", "keep")
    assert decision.predicted_cached_tokens == 1_120  # prompt and reply of the turn before
    assert 0 < decision.predicted_ttft_s < 0.1


def test_a_bound_session_stays_where_others_wait_a_little():
    """Less than its context costs to compute anew is waited for."""
    scheduler, replicas = Scheduler(Limits()), pool()
    home = serve(scheduler, replicas, ask(blocks=40))
    here = next(o for o in replicas if o.id == home)
    here.foreign_work = 1_000.0
    assert scheduler.decide(ask(blocks=40, bound=home), replicas, 2.0).reason == "bound"


def test_a_bound_session_leaves_a_long_queue():
    """Case 3: elsewhere it is done sooner, its context computed anew."""
    scheduler, replicas = Scheduler(Limits()), pool()
    home = serve(scheduler, replicas, ask())
    next(o for o in replicas if o.id == home).foreign_work = 100_000.0
    decision = scheduler.decide(ask(bound=home), replicas, 2.0)
    assert decision.replica != home
    assert (decision.reason, decision.binding) == ("cheaper", "rebind")


def test_a_new_session_goes_where_its_beginning_is():
    """Case 3: a shared prefix draws it, until too much waits there."""
    scheduler, replicas = Scheduler(Limits()), pool()
    home = serve(scheduler, replicas, ask("a", "shared"))
    decision = scheduler.decide(ask("b", "shared"), replicas, 2.0)
    assert (decision.replica, decision.reason, decision.binding) == (home, "prefix", "claim")
    assert decision.predicted_cached_tokens == 1_000
    next(o for o in replicas if o.id == home).foreign_work = 100_000.0
    decision = scheduler.decide(ask("c", "shared"), replicas, 2.0)
    assert decision.replica != home and decision.reason == "new"


def test_a_child_begins_beside_its_parent():
    """Of equal replicas the parent's is taken."""
    decision = Scheduler(Limits()).decide(ask(near="r1"), pool(), 0.0)
    assert (decision.replica, decision.reason) == ("r1", "parent")


@pytest.mark.parametrize(
    ("bound", "reason"),
    [(Binding("r0", "0", 1), "restarted"), (Binding("gone", "1", 1), "replica_gone")],
)
def test_what_was_bound_is_not_there(bound, reason):
    """Case 3: its replica has restarted or left, and it is bound anew."""
    decision = Scheduler(Limits()).decide(ask(bound=bound), pool(), 0.0)
    assert (decision.reason, decision.binding) == (reason, "rebind")


def test_a_session_that_its_home_cannot_hold_moves():
    """Case 3: its memory has gone to others meanwhile."""
    scheduler, replicas = Scheduler(Limits()), pool(2, capacity=2_000)
    serve(scheduler, replicas, ask("s", bound="r0"), pause=None)
    scheduler.submit(ask("other", bound="r0"), replicas, 1.0)
    decision = scheduler.decide(ask("s", bound="r0"), replicas, 2.0)
    assert (decision.replica, decision.reason) == ("r1", "memory")


def test_what_fits_nowhere_waits_unless_its_replica_failed():
    """Case 4: None; but a turn that has begun elsewhere goes on where it is cheapest."""
    scheduler, replicas = Scheduler(Limits()), pool(2, capacity=2_000)
    for name in ("a", "b"):
        assert scheduler.submit(ask(name), replicas, 0.0) is not None
    assert scheduler.decide(ask("c"), replicas, 0.0) is None
    decision = scheduler.decide(ask("c"), replicas, 0.0, failed=("r0",))
    assert (decision.replica, decision.reason) == ("r1", "failover")


def test_equal_replicas_share_sessions_and_routers_agree():
    """Ties go by load, then by the session's rank, which every router computes alike."""
    seen = [Scheduler(Limits()).decide(ask(f"s{n}"), pool(), 0.0).replica for n in range(150)]
    assert all(seen.count(f"r{n}") > 25 for n in range(3))
    again = [Scheduler(Limits()).decide(ask(f"s{n}"), pool(), 0.0).replica for n in range(150)]
    assert seen == again


def test_a_replica_that_has_served_nothing_is_taken_to_be_like_the_others():
    """By a prior ten times too slow, nothing would ever be sent to it."""
    replicas = pool(2)
    strange = Outlook("r9", "1")
    strange.resize(10_000)
    scheduler = Scheduler(Limits())
    seen = {scheduler.submit(ask(f"s{n}"), [*replicas, strange], 0.0).replica for n in range(9)}
    assert "r9" in seen


# -- many at once


def test_a_fan_out_of_16_spreads():
    """Decisions of one moment see each other: the parent's replica does not take them all."""
    scheduler, replicas = Scheduler(Limits()), pool(4, capacity=100_000)
    home = serve(scheduler, replicas, ask("parent", blocks=20))
    taken = []
    for number in range(16):
        child = ask(f"child{number}", "parent", blocks=20, own=20, near=home)
        taken.append(scheduler.submit(child, replicas, 2.0).replica)
    assert len(set(taken)) == 4
    assert max(map(taken.count, taken)) <= 6


def test_parallel_calls_of_one_session_stay_together_and_it_is_live_until_the_last():
    """Its memory is let go of when both are over."""
    scheduler, replicas = Scheduler(Limits()), pool()
    one, two = ask(), ask(bound="r0")
    home = scheduler.submit(one, replicas, 0.0).replica
    two = ask(bound=home)
    assert scheduler.submit(two, replicas, 0.0).replica == home
    here = next(o for o in replicas if o.id == home)
    finish(scheduler, one, pause=None)
    assert here.holdings.is_live("s") and here.in_flight == 1
    finish(scheduler, two, pause=None)
    assert not here.holdings.is_live("s") and here.in_flight == 0


def test_a_turn_that_moves_is_counted_once():
    """Booked elsewhere after a failure, it is gone from where it was."""
    scheduler, replicas = Scheduler(Limits()), pool()
    turn = ask()
    first = scheduler.submit(turn, replicas, 0.0).replica
    second = scheduler.submit(turn, replicas, 0.1, failed=(first,)).replica
    loads = {o.id: (o.in_flight, o.holdings.is_live("s")) for o in replicas}
    assert loads[first] == (0, False) and loads[second] == (1, True)


# -- the queue


def full():
    """Two replicas, each filled by a turn, and a turn that waits."""
    scheduler, replicas = Scheduler(Limits()), pool(2, capacity=2_000)
    running = [ask("a"), ask("b")]
    for turn in running:
        scheduler.submit(turn, replicas, 0.0)
    waiting = ask("c")
    assert scheduler.submit(waiting, replicas, 0.0) is None
    return scheduler, replicas, running, waiting


def test_the_queue_admits_when_memory_is_freed():
    """And not before; the turn is booked when it comes out."""
    scheduler, replicas, running, waiting = full()
    assert scheduler.admit(lambda model: replicas, 0.5) == []
    finish(scheduler, running[0], pause=None)
    [admitted] = scheduler.admit(lambda model: replicas, 1.0)
    assert admitted.ask is waiting and admitted.queued_s == 1.0
    assert admitted.decision.replica == "r0" or admitted.decision.replica == "r1"
    assert sum(o.in_flight for o in replicas) == 2 and not scheduler.queue


def test_a_deadline_ends_the_waiting():
    """It comes out without a decision."""
    scheduler, replicas, _, _ = full()
    scheduler.submit(ask("hasty", deadline=5.0), replicas, 0.0)
    [late] = scheduler.admit(lambda model: replicas, 5.0)
    assert late.ask.session == "hasty" and late.decision is None


def test_a_small_turn_may_pass_a_big_one_but_not_for_long():
    """What fits goes ahead until the first has waited for five seconds."""
    scheduler, replicas, running, _ = full()
    scheduler.queue.remove(next(w.ask.turn for w in scheduler.queue.ordered(0.0)))
    scheduler.end(running[0].turn, 0.5)
    scheduler.submit(ask("third", blocks=5), replicas, 0.5)
    big, small = ask("big", blocks=17), ask("small", blocks=3)
    for turn in (big, small):
        scheduler.queue.push(turn, 1.0, 1.0)
    assert [a.ask.session for a in scheduler.admit(lambda model: replicas, 2.0)] == ["small"]
    scheduler.queue.push(ask("other", blocks=1), 3.0, 1.0)
    assert scheduler.admit(lambda model: replicas, 7.0) == []


def test_a_full_queue_refuses():
    """429, and when to come back."""
    scheduler, replicas = Scheduler(Limits(most_queued=1)), pool(1, capacity=2_000)
    scheduler.submit(ask("a"), replicas, 0.0)
    scheduler.submit(ask("b"), replicas, 0.0)
    with pytest.raises(Overloaded) as caught:
        scheduler.submit(ask("c"), replicas, 0.0)
    assert caught.value.retry_after_s >= 1.0


def test_a_turn_that_leaves_the_queue_holds_nothing():
    """Its client has gone: neither it nor its session's memory stays."""
    scheduler, replicas, _, waiting = full()
    scheduler.end(waiting.turn, 0.5)
    assert not scheduler.queue
    assert not any(o.holdings.is_live("c") for o in replicas)


# -- leases


def test_a_pause_holds_its_memory_until_it_has_lasted_too_long():
    """Nobody else gets it meanwhile, if nobody waits."""
    scheduler, replicas = Scheduler(Limits()), pool(1)
    serve(scheduler, replicas, ask())
    assert replicas[0].holdings.is_live("s") and replicas[0].paused == {"s"}
    scheduler.expire(70.0)
    assert not replicas[0].holdings.is_live("s") and not replicas[0].paused


def test_a_pause_gives_way_to_those_who_wait():
    """Those longest away are let go of when a turn would have to wait."""
    scheduler, replicas = Scheduler(Limits()), pool(1, capacity=2_000)
    serve(scheduler, replicas, ask("away"))
    assert scheduler.submit(ask("b"), replicas, 15.0) is not None
    assert not replicas[0].holdings.is_live("away")


def test_a_lease_stands_against_those_who_wait():
    """Until its time is over, or it is ended by hand."""
    scheduler, replicas = Scheduler(Limits()), pool(1, capacity=2_000)
    serve(scheduler, replicas, ask("away"))
    assert scheduler.lease("away", 1.0, 300.0)
    assert scheduler.submit(ask("b"), replicas, 15.0) is None
    assert scheduler.lease("away", 16.0, 0.0)
    [admitted] = scheduler.admit(lambda model: replicas, 16.0)
    assert admitted.ask.session == "b"
    assert not scheduler.lease("b", 17.0, 10.0)  # it runs


def test_a_closed_session_holds_nothing():
    """Neither its memory nor what is believed of it, even when a turn of it still runs."""
    scheduler, replicas = Scheduler(Limits()), pool(1)
    serve(scheduler, replicas, ask("s"))
    running = ask("t")
    scheduler.submit(running, replicas, 0.0)
    for session in ("s", "t"):
        scheduler.close(session)
    assert replicas[0].holdings.live_tokens == 0
    finish(scheduler, running, pause=None)
    assert replicas[0].holdings.live_tokens == 0 and not replicas[0].paused


def test_a_failed_turn_holds_nothing():
    """Without token counts it taught nothing, and its session is not expected."""
    scheduler, replicas = Scheduler(Limits()), pool(1)
    turn = ask()
    scheduler.submit(turn, replicas, 0.0)
    scheduler.end(turn.turn, 1.0)
    assert replicas[0].holdings.live_tokens == 0 and replicas[0].in_flight == 0


def test_memory_is_not_kept_for_those_who_never_come_back():
    """Where sessions are single requests, more are let in than would fit if all returned."""
    scheduler, replicas = Scheduler(Limits()), pool(1, capacity=20_000)
    for number in range(300):
        scheduler.submit(single := ask(f"s{number}"), replicas, 100.0 * number)
        finish(scheduler, single, 100.0 * number + 1)
        scheduler.expire(100.0 * number + 90)
    taken = [scheduler.submit(ask(f"n{n}"), replicas, 40_000.0) for n in range(30)]
    assert None not in taken


# -- several routers


def tell(one, other, replicas, now):
    """The news of one router reach the other."""
    other.hear(one.news, replicas, now)
    one.news.clear()


def test_routers_know_each_other_s_turns():
    """What runs or pauses by another router is live, drawn to and counted as back."""
    here, there = pool(2), pool(2)
    one, other = Scheduler(Limits(), peers=True), Scheduler(Limits(), peers=True)
    turn = ask("s", "shared")
    home = one.submit(turn, here, 0.0).replica
    tell(one, other, there, 0.2)
    theirs = next(o for o in there if o.id == home)
    assert theirs.holdings.is_live("s") and not theirs.paused
    finish(one, turn, 1.0)
    tell(one, other, there, 1.2)
    assert theirs.holdings.is_live("s") and theirs.paused == {"s"}
    decision = other.submit(again := ask("s", "shared", blocks=12, bound=home), there, 2.0)
    assert decision.replica == home and decision.predicted_cached_tokens == 1_120
    assert other.returns.share == 1.0
    tell(other, one, here, 2.2)
    ours = next(o for o in here if o.id == home)
    assert ours.holdings.is_live("s") and not ours.paused
    finish(other, again, 3.0, pause=None)
    tell(other, one, here, 3.2)
    assert not ours.holdings.is_live("s")


def test_leases_and_closes_are_told():
    """A lease at one router is one at all."""
    here, there = pool(1), pool(1)
    one, other = Scheduler(Limits(), peers=True), Scheduler(Limits(), peers=True)
    serve(one, here, ask("s"))
    one.lease("s", 1.0, 500.0)
    tell(one, other, there, 1.2)
    other.expire(100.0)
    assert there[0].holdings.is_live("s")
    one.close("s")
    tell(one, other, there, 101.0)
    assert not there[0].holdings.is_live("s")


def test_news_of_an_older_start_or_of_strangers_are_let_be():
    """A replica that has restarted meanwhile holds nothing of it."""
    one, other = Scheduler(Limits(), peers=True), Scheduler(Limits(), peers=True)
    serve(one, pool(1), ask("s"))
    there = pool(1)
    there[0].reset("2")
    tell(one, other, there, 1.2)
    assert there[0].holdings.live_tokens == 0


def test_a_router_alone_tells_nothing():
    """And keeps nothing to tell."""
    scheduler = Scheduler(Limits())
    serve(scheduler, pool(), ask())
    assert not scheduler.news


def test_a_replica_that_has_left_is_forgotten():
    """Nothing is held of it."""
    scheduler, replicas = Scheduler(Limits()), pool(1)
    serve(scheduler, replicas, ask())
    scheduler.forget("r0")
    assert not scheduler._homes and not scheduler._index.masks
    scheduler.forget("r0")


# -- whatever happens

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "fail", "end", "drop", "close", "lease", "restart",
                         "forward"]),
        st.integers(0, 5),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_failed_replicas_are_never_chosen_and_nothing_is_left_in_the_end(steps):
    """Any order of turns, failures, closes, leases and restarts: when all is over, nothing is live,
    nothing is counted as running, and every turn has been decided, or waits, or was refused."""
    scheduler, replicas = Scheduler(Limits()), pool(3, capacity=3_000)
    bound: dict[str, Binding] = {}
    running: list[Ask] = []
    now = 0.0

    def note(turn, decision):
        if decision is not None:
            bound[turn.session] = Binding(decision.replica, decision.incarnation, 1)
            running.append(turn)

    for step, number in steps:
        now += 0.5
        session = f"s{number}"
        if step == "submit":
            turn = ask(session, "shared" if number % 2 else None, bound=bound.get(session))
            note(turn, scheduler.submit(turn, replicas, now))
        elif step == "fail" and running:
            turn = running.pop(number % len(running))
            failed = {bound[turn.session].replica, f"r{number % 3}"}
            decision = scheduler.submit(turn, replicas, now, tuple(failed))
            assert decision.replica not in failed
            note(turn, decision)
        elif step == "end" and running:
            finish(scheduler, running.pop(number % len(running)), now)
        elif step == "drop" and running:
            scheduler.end(running.pop(number % len(running)).turn, now)
        elif step == "close":
            scheduler.close(session)
        elif step == "lease":
            scheduler.lease(session, now, 30.0 * (number % 2))
        elif step == "restart":
            replicas[number % 3].reset(f"{now}")
        elif step == "forward":
            now += 20.0
            for admitted in scheduler.admit(lambda model: replicas, now):
                note(admitted.ask, admitted.decision)
        assert sum(o.in_flight for o in replicas) == len(running)
    while running or scheduler.queue:
        if running:
            finish(scheduler, running.pop(), now)
        now += 1.0
        for admitted in scheduler.admit(lambda model: replicas, now):
            note(admitted.ask, admitted.decision)
        assert now < 10_000
    scheduler.expire(now + 1_000.0)
    for replica in replicas:
        assert replica.holdings.live_tokens == 0 and not replica.paused and not replica.runs
        assert replica.pending_work == 0 and replica.running_tokens == 0
    assert not scheduler._homes and len(scheduler._pauses) == 0
