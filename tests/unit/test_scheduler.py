"""The scheduler: each case of the decision, and what holds whatever happens."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling import BLOCK, ask, end, replica, scheduler
from sessile.errors import NoReplica
from sessile.sessions.record import Binding


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


@pytest.mark.parametrize("last, reason", [(False, "new"), (True, "prefix")])
def test_who_will_not_be_back_burdens_nobody_later(last, reason):
    """A short prefix is worth less than to be alone for all the turns that are foreseen, and more
    where there are none."""
    brain, pool = scheduler(), [replica("a"), replica("b")]
    blocks = tuple(range(4))
    brain.submit(ask("one", 4 * BLOCK, blocks=blocks), pool, 0.0)
    end(brain, "one", 1.0, 4 * BLOCK, pause="tool")
    again = brain.decide(ask("two", 4 * BLOCK, blocks=blocks, last=last), pool, 1.2)
    assert again.reason == reason


def test_a_prefix_whose_turn_was_refused_draws_nobody():
    """Its replica never computed it; what the session had there before it still has."""
    brain, pool = scheduler(), [replica("a"), replica("b")]
    blocks = tuple(range(40))
    first = brain.submit(ask("one", 10 * BLOCK, blocks=blocks[:10]), pool, 0.0)
    end(brain, "one", 1.0, 10 * BLOCK)
    there = first.replica
    assert brain.submit(ask("one", 40 * BLOCK, there, blocks=blocks), pool, 2.0).replica == there
    brain.end("turn of one", 2.1, refused=True)
    held = [outlook.held(ask("two", 40 * BLOCK, blocks=blocks)) for outlook in pool]
    assert sorted(held) == [0, 10 * BLOCK]
    again = brain.submit(ask("one", 10 * BLOCK + 150, there, blocks=blocks[:10]), pool, 3.0)
    assert again.predicted_cached_tokens == 10 * BLOCK + 100
    assert not any(o.holdings.live_tokens for o in pool if o.id != there)


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
