"""The routing brain: each case of the decision, the queue, pauses and leases, and the peers."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.errors import NoReplica, Overloaded
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.scheduler import Limits, Scheduler
from sessile.sessions.record import Binding

BLOCK = 256


def replica(id="a", capacity=None, slots=None):
    """A replica with so much KV memory."""
    outlook = Outlook(id, "1")
    outlook.resize(capacity)
    outlook.slots = slots
    return outlook


def ask(session="s", tokens=1000, at=None, **fields):
    """A turn of that session; `at` names the replica that it is bound to."""
    if at is not None:
        fields["bound"] = Binding(at, "1", 1)
    fields = {"turn": f"turn of {session}", "output_tokens": 100, **fields}
    return Ask(session=session, model="m", prompt_tokens=tokens, block_tokens=BLOCK, **fields)


def scheduler(**limits):
    """A fresh one."""
    return Scheduler(Limits(**limits))


def end(brain, session, now, tokens=1000, pause=None):
    """The session's turn ends well."""
    brain.end(f"turn of {session}", now, prompt_tokens=tokens, cached_tokens=0,
              output_tokens=100, pause=pause)  # fmt: skip


# -- deciding


def test_without_a_replica_there_is_no_decision():
    """Nobody is left, or everybody has failed this very turn: the caller is told to come back."""
    for open_to, failed in (([], ()), ([replica()], ("a",))):
        with pytest.raises(NoReplica) as caught:
            scheduler().submit(ask(), open_to, 0.0, failed)
        assert caught.value.retry_after_s


def test_a_new_session_is_placed_and_claimed():
    """Nothing is known of it: the reason is that it is new, and its binding is to be made."""
    decision = scheduler().submit(ask(), [replica()], 0.0)
    assert (decision.replica, decision.incarnation) == ("a", "1")
    assert (decision.reason, decision.binding) == ("new", "claim")
    assert decision.predicted_cached_tokens == 0


def test_a_known_prefix_draws_a_new_session():
    """What another session has computed there is worth more than an idle replica."""
    brain, pool = scheduler(), [replica("a"), replica("b")]
    blocks = tuple(range(40))
    first = brain.submit(ask("one", 40 * BLOCK, blocks=blocks), pool, 0.0)
    end(brain, "one", 1.0, 40 * BLOCK)
    second = brain.submit(ask("two", 40 * BLOCK + 50, blocks=blocks), pool, 2.0)
    assert (second.replica, second.reason) == (first.replica, "prefix")
    assert second.predicted_cached_tokens == 40 * BLOCK


def test_sessions_that_come_at_once_see_each_other_while_the_store_is_asked():
    """None is bound before all have been proposed; each goes where it was, and what was foreseen
    for it still is."""
    brain, pool = scheduler(), [replica(id, 20_000) for id in "abc"]
    asks = [ask(f"s{n}") for n in range(12)]
    proposals = [brain.propose(each, pool, 0.0) for each in asks]
    assert Counter(proposal.replica for proposal in proposals) == dict.fromkeys("abc", 4)
    for each, proposal in zip(asks, proposals, strict=True):
        bound = Binding(proposal.replica, "1", 1)
        claimed = msgspec.structs.replace(each, bound=bound, claimed="new")
        decision = brain.submit(claimed, pool, 0.01)
        assert (decision.replica, decision.binding) == (proposal.replica, "keep")
        assert decision.predicted_ttft_s == proposal.predicted_ttft_s
    assert [len(outlook.runs) for outlook in pool] == [4, 4, 4]


@pytest.mark.parametrize("becomes", ["bound elsewhere", "ended"])
def test_what_was_only_proposed_leaves_nothing_behind(becomes):
    """Another router had bound it, or its client is gone before the store has answered."""
    brain, pool = scheduler(), [replica("a", 20_000), replica("b", 20_000)]
    there = brain.propose(ask(), pool, 0.0).replica
    left, other = sorted(pool, key=lambda outlook: outlook.id != there)
    assert len(left.runs) == 1 and left.holdings.live_tokens
    if becomes == "ended":
        brain.end("turn of s", 0.1)
    else:
        assert brain.submit(ask(at=other.id), pool, 0.1).replica == other.id
        assert len(other.runs) == 1
    assert not left.runs and not left.pending_work and not left.holdings.live_tokens


def test_who_waits_for_memory_is_not_counted_where_it_is_proposed():
    """It is bound to where it would be cheapest now, and stands in the queue."""
    brain, pool = scheduler(), [replica("a", 2_000)]
    brain.submit(ask("one", 1_500), pool, 0.0)
    assert brain.propose(ask("two", 1_500), pool, 0.0).replica == "a"
    assert len(pool[0].runs) == 1
    claimed = ask("two", 1_500, at="a", claimed="new")
    assert brain.submit(claimed, pool, 0.1) is None


@pytest.mark.parametrize("near", ["a", "b"])
def test_a_child_goes_to_its_parents_replica_where_prices_are_equal(near):
    """The parent's replica breaks the tie."""
    decision = scheduler().submit(ask(near=near), [replica("a"), replica("b")], 0.0)
    assert (decision.replica, decision.reason) == (near, "parent")


@pytest.mark.parametrize("home", ["a", "b"])
def test_a_bound_session_stays(home):
    """Its replica is there and at leisure: there it goes, and nothing is to be written."""
    decision = scheduler().submit(ask(at=home), [replica("a"), replica("b")], 0.0)
    assert (decision.replica, decision.reason, decision.binding) == (home, "bound", "keep")


def test_a_binding_made_a_moment_ago_keeps_its_reason():
    """The proposal that won the claim is what is told."""
    decision = scheduler().submit(
        ask(at="b", claimed="parent"), [replica("a"), replica("b")], 0.0
    )  # fmt: skip
    assert (decision.replica, decision.reason, decision.binding) == ("b", "parent", "keep")


def test_a_crowded_home_is_left_for_a_cheaper_replica():
    """A small context behind a long wait moves."""
    brain, pool = scheduler(), [replica("a"), replica("b")]
    for n in range(20):
        brain.submit(ask(f"other {n}", 5000), pool[:1], 0.0)
    decision = brain.submit(ask(tokens=200, at="a"), pool, 0.0)
    assert (decision.replica, decision.reason, decision.binding) == ("b", "cheaper", "rebind")


def test_a_full_home_is_left_for_free_memory():
    """Where the session does not fit, it does not stay, and the reason is memory."""
    brain, pool = scheduler(), [replica("a", 10_000), replica("b", 10_000)]
    brain.submit(ask("other", 8000), pool[:1], 0.0)
    decision = brain.submit(ask(tokens=4000, at="a"), pool, 0.0)
    assert (decision.replica, decision.reason, decision.binding) == ("b", "memory", "rebind")


def test_a_turn_that_failed_goes_elsewhere_even_where_memory_is_full():
    """It has begun: it does not queue again."""
    brain, pool = scheduler(), [replica("a", 10_000), replica("b", 10_000)]
    brain.submit(ask("other", 8000), pool[1:], 0.0)
    decision = brain.submit(ask(tokens=4000, at="a"), pool, 0.0, ("a",))
    assert (decision.replica, decision.reason, decision.binding) == ("b", "failover", "rebind")


def test_a_restarted_replica_and_one_that_left_are_told_apart():
    """The same replica in a new incarnation holds nothing any more; the reason says which."""
    pool = [replica("a"), replica("b")]
    old = ask(bound=Binding("a", "0", 1))
    assert scheduler().submit(old, pool, 0.0).reason == "restarted"
    gone = scheduler().submit(ask(at="z"), pool, 0.0)
    assert (gone.reason, gone.binding) == ("replica_gone", "rebind")


def test_a_replica_whose_turns_do_not_end_is_not_believed_to_be_fast_for_ever():
    """What is believed of it follows what all replicas of its model show meanwhile."""
    brain, pool = scheduler(), [replica("a"), replica("b")]

    def turn(name, at, took_s):
        asked = ask(name, 4000)
        brain.book(asked, brain.decide(asked, [at], now), pool, now)
        brain.first_token(asked.turn, now + took_s)
        end(brain, name, now + took_s, 4000)

    now = 0.0
    for n in range(20):
        now += 10.0
        turn(f"fast {n}", pool[n % 2], 0.1)
    for n in range(100):
        now += 10.0
        turn(f"slow {n}", pool[0], 0.5)
    assert brain.decide(ask("next", 4000), [pool[1]], now).predicted_ttft_s > 0.3


def test_deciding_books_nothing():
    """Only `submit` and `book` change what the replicas are believed to do."""
    brain, a = scheduler(), replica("a", 10_000)
    brain.decide(ask(), [a], 0.0)
    assert not a.runs and not a.holdings.live_tokens


def test_a_fan_out_spreads():
    """Sixteen children of one parent, sent in the same moment, do not pile up behind it."""
    brain = scheduler()
    pool = [replica(id, 200_000) for id in "abcd"]
    blocks = tuple(range(20))
    near = brain.submit(ask("parent", 5200, blocks=blocks), pool, 0.0).replica
    end(brain, "parent", 3.0, 5200, pause="task")
    seen = [
        brain.submit(ask(f"child {n}", 5400, blocks=blocks, near=near), pool, 4.0).replica
        for n in range(16)
    ]
    assert len(set(seen)) >= 3
    assert max(seen.count(id) for id in seen) <= 10


def test_parallel_calls_of_one_session_keep_it_until_the_last_ends():
    """The session pauses when none of its turns runs any more."""
    brain, a = scheduler(), replica("a", 100_000)
    for n in (1, 2):
        brain.submit(ask(turn=f"t{n}"), [a], 0.0)
    brain.end("t1", 1.0, prompt_tokens=1000, cached_tokens=0, output_tokens=10)
    assert a.holdings.is_live("s") and not a.paused
    brain.end("t2", 2.0, prompt_tokens=1000, cached_tokens=0, output_tokens=10, pause="ls")
    assert a.holdings.is_live("s") and a.paused == {"s"}


def test_a_wrong_guess_of_a_prompts_length_is_corrected():
    """What was taken to be half as long again is counted as long as the engine says, the blocks
    that the session shares with others among it: memory that nobody needs holds nobody up."""
    brain, a = scheduler(), replica("a", 100_000)
    blocks = tuple(range(12))
    guessed = ask(tokens=12 * BLOCK, blocks=blocks)
    brain.submit(guessed, [a], 0.0)
    end(brain, "s", 0.5, 12 * BLOCK * 2 // 3, pause="tool")
    assert abs(a.holdings.live_tokens - (12 * BLOCK * 2 // 3 + 100)) <= len(blocks)
    other = ask("other", 12 * BLOCK * 2 // 3, blocks=blocks)
    assert a.holdings.need("other", blocks, other.prompt_tokens) <= len(blocks)


def test_a_first_token_is_foreseen_once_one_has_been_seen():
    """Before the replica has answered anything, how long it will take is unknown."""
    brain, a = scheduler(), replica()
    assert brain.submit(ask(), [a], 0.0).predicted_ttft_s is None
    brain.first_token("turn of s", 0.3)
    end(brain, "s", 0.5)
    assert brain.submit(ask(at="a"), [a], 1.0).predicted_ttft_s > 0


# -- the queue


def full(capacity=100_000, tokens=60_000, **limits):
    """A replica whose memory one running session needs most of."""
    brain, a = scheduler(**limits), replica("a", capacity)
    assert brain.submit(ask("first", tokens), [a], 0.0)
    return brain, a


def admitted(brain, a, now):
    """Sessions that come out of the queue."""
    return [out.ask.session for out in brain.admit(lambda model: [a], now)]


def test_a_turn_waits_for_memory_and_goes_when_it_is_free():
    """It comes out of the queue with its decision, booked, and with the time it waited."""
    brain, a = full()
    assert brain.submit(ask("second", 60_000), [a], 1.0) is None
    assert admitted(brain, a, 2.0) == []
    end(brain, "first", 3.0, 60_000)
    (out,) = brain.admit(lambda model: [a], 4.0)
    assert (out.decision.replica, out.queued_s) == ("a", 3.0)
    assert not brain.queue and "turn of second" in a.runs


def test_a_held_session_passes_those_who_wait_and_a_newcomer_does_not():
    """Who is back finds its memory; who is new stands behind the others, though it would fit."""
    brain, a = full()
    end(brain, "first", 1.0, 60_000, pause="ls")
    assert brain.submit(ask("second", 60_000), [a], 1.1) is None
    assert brain.submit(ask("small", 100), [a], 1.2) is None
    assert brain.submit(ask("first", 60_500, at="a"), [a], 1.3).reason == "bound"


def test_a_full_queue_refuses():
    """The caller is told when to come back."""
    brain, a = full(most_queued=0)
    with pytest.raises(Overloaded) as caught:
        brain.submit(ask("second", 60_000), [a], 1.0)
    assert caught.value.retry_after_s >= 1.0


def test_a_deadline_ends_the_wait():
    """Whose deadline has passed leaves the queue without a decision."""
    brain, a = full()
    brain.submit(ask("second", 60_000, deadline=5.0), [a], 1.0)
    assert brain.admit(lambda model: [a], 4.9) == []
    (out,) = brain.admit(lambda model: [a], 5.0)
    assert out.decision is None and not brain.queue


def test_whose_client_has_gone_leaves_the_queue():
    """Nothing of it is left, and memory that comes free is not given to it."""
    brain, a = full()
    brain.submit(ask("second", 60_000), [a], 1.0)
    brain.end("turn of second", 2.0)
    end(brain, "first", 3.0, 60_000)
    assert admitted(brain, a, 3.0) == [] and not a.holdings.live_tokens


# -- pauses and leases


def waiting_for_a_pause(capacity=100_000, tokens=60_000):
    """One session pauses from 0 on, another waits for its memory."""
    brain, a = full(capacity, tokens)
    end(brain, "first", 0.0, tokens, pause="ls")
    assert brain.submit(ask("second", tokens), [a], 0.1) is None
    return brain, a


def test_a_pause_holds_its_memory_as_long_as_it_is_worth():
    """Ten seconds, by the prior; then whoever waits gets it."""
    brain, a = waiting_for_a_pause()
    assert admitted(brain, a, 9.0) == []
    assert admitted(brain, a, 10.5) == ["second"]


def test_a_pause_gives_way_under_pressure():
    """Where memory is refilled fast, a pause that does not end soon is not worth it."""
    brain, a = waiting_for_a_pause(10_000, 6_000)
    assert admitted(brain, a, 0.5) == []
    assert admitted(brain, a, 1.5) == ["second"]


def test_a_lease_holds_memory_for_as_long_as_was_told():
    """Neither the prior nor those who wait end it; its time does."""
    brain, a = waiting_for_a_pause(10_000, 6_000)
    assert brain.live.lease("first", 0.2, 60.0)
    assert admitted(brain, a, 59.0) == []
    assert admitted(brain, a, 60.5) == ["second"]


@pytest.mark.parametrize("seconds", [1.0, 5000.0])
def test_a_pause_that_nobody_looked_at_for_long_holds_nothing(seconds):
    """Whether its time passed long ago or its lease was longer than sessions are expected back."""
    brain, a = full()
    end(brain, "first", 0.0, 60_000, pause="ls")
    brain.live.lease("first", 0.0, seconds)
    brain.live.expire(5001.0)
    assert not a.holdings.live_tokens and not a.paused


def test_a_lease_of_nothing_lets_go_and_a_stranger_has_none():
    """Zero seconds free the memory; who does not pause holds nothing."""
    brain, a = waiting_for_a_pause()
    assert not brain.live.lease("nobody", 0.2, 60.0)
    assert brain.live.lease("first", 0.2, 0.0)
    assert admitted(brain, a, 0.3) == ["second"]


def test_closing_a_session_ends_its_lease():
    """Nothing is held for it any more."""
    brain, a = waiting_for_a_pause()
    brain.live.lease("first", 0.2, 60.0)
    brain.close("first")
    assert admitted(brain, a, 0.3) == ["second"] and a.holdings.age("first") is None


def test_a_session_that_has_grown_displaces_the_pause_least_likely_to_end():
    """Of two that pause, the one that has lasted longer loses its memory."""
    brain, a = scheduler(), replica("a", 100_000)
    for session, ended_at in (("long", 0.0), ("short", 5.0), ("mine", 5.5)):
        assert brain.submit(ask(session, 30_000), [a], 0.0)
        end(brain, session, ended_at, 30_000, pause="ls")
    assert brain.submit(ask("mine", 45_000, at="a"), [a], 6.0).reason == "bound"
    assert not a.holdings.is_live("long") and a.holdings.is_live("short")


# -- the other routers


def test_schedulers_that_exchange_news_agree():
    """What one runs, holds, leases and closes, the other counts as live, and no longer."""
    here, there = (Scheduler(Limits(), peers=True) for _ in range(2))
    mine, yours = replica("a", 100_000), replica("a", 100_000)

    def tell(now):
        there.hear(list(here.live.news), [yours], now)
        here.live.news.clear()
        assert yours.holdings.live_tokens == mine.holdings.live_tokens
        assert yours.paused == mine.paused

    here.submit(ask(tokens=5000, blocks=tuple(range(19))), [mine], 0.0)
    tell(0.1)
    assert yours.holdings.live_tokens
    here.end("turn of s", 1.0, prompt_tokens=6000, cached_tokens=0, output_tokens=50, pause="ls")
    tell(1.1)
    assert yours.holdings.match(tuple(range(19))) == mine.holdings.match(tuple(range(19))) > 5000
    here.live.lease("s", 1.2, 100.0)
    tell(1.2)
    for brain in (here, there):
        brain.live.expire(90.0)
    tell(90.0)
    assert yours.holdings.is_live("s")
    here.close("s")
    tell(91.0)
    assert not yours.holdings.live_tokens


def test_what_one_router_learns_of_a_replica_all_learn():
    """First tokens are told: routers that see a part of the turns each know as much as one."""
    here, there = (Scheduler(Limits(), peers=True) for _ in range(2))
    mine, yours = replica(), replica()
    for number in range(20):
        now = 10.0 * number
        here.submit(ask(), [mine], now)
        here.first_token("turn of s", now + 0.1)
        end(here, "s", now + 1.0, pause="ls")
        there.hear(list(here.live.news), [yours], now + 1.0)
        here.live.news.clear()
    assert yours.rates.turns == mine.rates.turns == 20
    assert (yours.rates.base_s, yours.rates.slope_s) == (mine.rates.base_s, mine.rates.slope_s)


def test_closing_a_program_lets_go_of_what_it_has_at_other_routers():
    """A sub-agent whose last turn was elsewhere is let go of with it, at every router."""
    here, there = (Scheduler(Limits(), peers=True) for _ in range(2))
    mine, yours = replica("a", 100_000), replica("a", 100_000)
    there.submit(ask("child", program="root"), [yours], 0.0)
    end(there, "child", 1.0, pause="ls")
    here.hear(list(there.live.news), [mine], 1.0)
    assert mine.holdings.is_live("child")
    here.close("root")
    assert not mine.holdings.is_live("child")
    there.hear(list(here.live.news), [yours], 1.1)
    assert not yours.holdings.live_tokens


def test_the_turns_of_a_lost_router_are_over():
    """Its memory is free at once; what runs here, or at a router that lives, is not touched."""
    here, there = (Scheduler(Limits(), peers=True) for _ in range(2))
    pool = [replica("a", 100_000)]
    for session in ("lost", "both", "other"):
        there.submit(ask(session, turn=f"theirs of {session}"), [replica("a", 100_000)], 0.0)
    lost, both, other = there.live.news
    here.hear([lost, both], pool, 0.1, "killed")
    here.hear([other], pool, 0.1, "alive")
    here.submit(ask("both"), pool, 0.2)
    here.hear([both], pool, 0.3, "killed")
    here.live.lose("killed")
    live = [name for name in ("lost", "both", "other") if pool[0].holdings.is_live(name)]
    assert live == ["both", "other"]
    here.live.lose("killed")
    here.live.lose("alive")
    assert not pool[0].holdings.is_live("other")


def test_news_that_nobody_takes_are_bounded():
    """With the store away the oldest are lost."""
    brain = Scheduler(Limits(), peers=True)
    for number in range(6_000):
        brain.close(f"s{number}")
    assert len(brain.live.news) == 5_000 and brain.live.news[-1].session == "s5999"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "end", "pause", "fail", "lease", "close", "admit"]),
        st.integers(0, 5),
        st.integers(1, 8_000),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_a_turn_goes_to_a_replica_that_may_take_it(steps):
    """Never to one that failed it or is not there; and when all is over, nothing is live."""
    brain = scheduler()
    pool = {id: replica(id, 10_000) for id in "abc"}
    bound, turns, now = {}, {}, 0.0

    def sent(decision, session, turn, among):
        chosen = next(o for o in among if o.id == decision.replica)
        assert chosen.incarnation == decision.incarnation and turn in chosen.runs
        bound[session] = Binding(chosen.id, chosen.incarnation, 1)

    def admit():
        for out in brain.admit(lambda model: list(pool.values()), now):
            sent(out.decision, out.ask.session, out.ask.turn, pool.values())

    for number, (what, n, tokens, id) in enumerate(steps):
        now += 0.7
        session, turn = f"s{n}", f"t{number}"
        made = ask(session, tokens, turn=turn, bound=bound.get(session))
        if what == "submit":
            among = [outlook for outlook in pool.values() if outlook.id != id]
            decision = brain.submit(made, among, now)
            turns[turn] = session
            if decision is not None:
                sent(decision, session, turn, among)
        elif what == "fail":
            decision = brain.submit(made, list(pool.values()), now, (id,))
            turns[turn] = session
            assert decision.replica != id
            sent(decision, session, turn, pool.values())
        elif what in ("end", "pause") and turns:
            over = sorted(turns)[n % len(turns)]
            del turns[over]
            brain.end(over, now, prompt_tokens=tokens, cached_tokens=0, output_tokens=9,
                      pause="ls" if what == "pause" else None)  # fmt: skip
        elif what == "lease":
            brain.live.lease(session, now, 5.0)
        elif what == "close":
            brain.close(session)
        admit()
    for turn in turns:
        brain.end(turn, now)
    brain.live.expire(now + 1_000.0)
    for outlook in pool.values():
        assert not outlook.runs and not outlook.pending_work and not outlook.paused
        assert not outlook.holdings.live_tokens


def test_nothing_is_remembered_of_a_session_whose_only_turn_left_the_queue():
    """A client that gives up waiting leaves nothing behind."""
    scheduler = Scheduler(Limits(most_queued=4))
    outlook = Outlook("a", "1")
    outlook.resize(1_000)
    first = Ask(session="first", turn="t1", model="m", prompt_tokens=900, output_tokens=50)
    second = Ask(session="second", turn="t2", model="m", prompt_tokens=900, output_tokens=50)
    assert scheduler.submit(first, [outlook], 0.0) is not None
    assert scheduler.submit(second, [outlook], 0.0) is None
    scheduler.end("t2", 1.0)
    assert not scheduler.queue
    assert "second" not in scheduler.live._born


# -- children that share a prefix, moves, and what is released


def wide(session, tail, **fields):
    """A turn of 40 shared blocks and one of its own."""
    return ask(session, 41 * BLOCK, blocks=(*range(40), tail), **fields)


def test_a_turn_waits_for_the_one_that_computes_what_they_share():
    """From when that is sent until its first token; a turn that shares little waits for nobody."""
    brain, pool = scheduler(), [replica()]
    for session, tail in (("one", 101), ("two", 102)):
        brain.submit(wide(session, tail), pool, 0.0)
    brain.submit(ask("three", 1000, blocks=(201, 202)), pool, 0.0)
    assert brain.leader("turn of one") is None and brain.leader("turn of three") is None
    leader, until = brain.leader("turn of two")
    assert leader == "turn of one" and until > pool[0].rates.prefill_s(40 * BLOCK)
    brain.first_token("turn of one", 1.0)
    assert brain.leader("turn of two") is None
    assert set(pool[0].computing.values()) == {"turn of two", "turn of three"}
    for session in ("two", "three"):
        end(brain, session, 2.0)
    assert not pool[0].computing


def test_of_those_who_waited_for_one_that_failed_the_first_takes_over():
    """And the others wait for it."""
    brain, pool = scheduler(), [replica()]
    for session, tail in (("one", 101), ("two", 102), ("three", 103)):
        brain.submit(wide(session, tail), pool, 0.0)
    brain.end("turn of one", 1.0)
    for session in ("two", "three"):
        brain.take_over(f"turn of {session}")
    assert brain.leader("turn of two") is None
    assert brain.leader("turn of three")[0] == "turn of two"


def move(brain, pool, now):
    """Moves the pausing session "s" to whichever replica of the pool takes it."""
    asked = msgspec.structs.replace(ask(at="a"), turn="warm")
    decision = brain.decide(asked, pool, now)
    brain.move(asked, decision, pool, now)
    return decision


def test_a_session_that_moves_pauses_on_where_it_goes():
    """Booked there as work at first, then as a pause, as old as it is; the old home is released."""
    brain, (a, b) = scheduler(), (replica("a"), replica("b"))
    brain.submit(ask(at="a"), [a, b], 0.0)
    end(brain, "s", 1.0, pause="bash")
    assert a.paused == {"s"} and brain.live.return_rate("s", 1.5) == brain.returns.rate("bash", 0.5)
    decision = move(brain, [b], 2.0)
    assert (decision.replica, decision.binding) == ("b", "rebind")
    assert not a.paused and list(brain.live.released) == [("s", "a")]
    assert b.pending_work > 0 and b.in_flight == 1
    brain.moved("warm", 3.0, prompt_tokens=1000, cached_tokens=0)
    assert b.paused == {"s"} and not b.in_flight and not b.pending_work
    assert brain.live.return_rate("s", 4.0) == brain.returns.rate("bash", 3.0)
    assert b.holdings.held("s", ()) == 1100
    assert brain.live.is_home("s", "b") and not brain.live.is_home("s", "a")


def test_the_other_routers_are_told_of_a_move():
    """First that the session runs where it goes, then that it pauses there."""
    brain, (a, b) = Scheduler(Limits(), peers=True), (replica("a"), replica("b"))
    brain.submit(ask(at="a"), [a, b], 0.0)
    end(brain, "s", 1.0, pause="bash")
    brain.live.news.clear()
    move(brain, [b], 2.0)
    brain.moved("warm", 3.0, prompt_tokens=1000, cached_tokens=0)
    told = [(news.state, news.replica, news.kind) for news in brain.live.news]
    assert told == [("runs", "b", ""), ("pauses", "b", "bash")]


def test_a_session_that_is_back_while_it_is_moved_runs_where_it_went():
    """The end of the move changes nothing of its turn, nor of its next pause."""
    brain, (a, b) = scheduler(), (replica("a"), replica("b"))
    brain.submit(ask(at="a"), [a, b], 0.0)
    end(brain, "s", 1.0, pause="bash")
    move(brain, [b], 2.0)
    brain.submit(ask(at="b"), [b], 2.5)
    brain.moved("warm", 3.0)
    assert list(b.runs) == ["turn of s"] and not b.paused
    end(brain, "s", 4.0, pause="")
    assert b.paused == {"s"} and brain.live.return_rate("s", 4.0) is not None


def test_a_session_that_nobody_holds_is_let_go_of_when_it_has_moved():
    """Its time had passed: it is prewarmed, but burdens nobody."""
    brain, (a, b) = scheduler(), (replica("a"), replica("b"))
    brain.submit(ask(at="a"), [a, b], 0.0)
    end(brain, "s", 1.0, pause="")
    brain.live.lease("s", 1.0, 0.0)
    brain.live.expire(1.0)
    move(brain, [b], 2.0)
    brain.moved("warm", 3.0, prompt_tokens=1000, cached_tokens=0)
    assert not b.paused and not b.holdings.live_tokens
    assert b.holdings.held("s", ()) == 1100


def test_what_ends_for_good_is_released():
    """A turn without a pause, a lease of nothing, a closed session; not one that pauses."""
    brain, pool = scheduler(), [replica()]
    for session, pause in (("once", None), ("leased", ""), ("closed", ""), ("kept", "")):
        brain.submit(ask(session), pool, 0.0)
        end(brain, session, 1.0, pause=pause)
    brain.live.lease("leased", 1.0, 0.0)
    brain.close("closed")
    assert list(brain.live.released) == [("once", "a"), ("leased", "a"), ("closed", "a")]
