"""The placement policies, each by what it promises."""

from random import Random

import pytest

from sessile.router.policy import POLICIES, Ask, Candidate, make_policy, rendezvous

TWO = [Candidate("a", "1"), Candidate("b", "1")]


def choose(name, ask, candidates, seed=0):
    """One choice of a fresh policy."""
    return make_policy(name, Random(seed)).choose(ask, candidates)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_chooses_a_candidate_and_says_why(name):
    """One candidate or many: the choice is among them, with a reason."""
    for candidates in (TWO[:1], TWO):
        chosen, reason = choose(name, Ask(session="s"), candidates)
        assert chosen in candidates and reason


def test_round_robin_takes_each_in_turn():
    """As many turns at each, whatever they carry."""
    policy = make_policy("round_robin", Random(0))
    chosen = [policy.choose(Ask(session="s"), TWO).candidate.id for _ in range(6)]
    assert chosen == ["a", "b"] * 3


@pytest.mark.parametrize("name", ["least_loaded", "power_of_two", "session"])
def test_the_lighter_replica_is_preferred(name):
    """Fewer waiting, then fewer in flight, then fewer sessions."""
    for heavy, light in (
        (Candidate("a", "1", 5, 1), Candidate("b", "1", 5, 0)),
        (Candidate("a", "1", 5), Candidate("b", "1", 4)),
        (Candidate("a", "1", 5, 0, 9), Candidate("b", "1", 5, 0, 8)),
    ):
        assert choose(name, Ask(session="s"), [heavy, light]).candidate == light


def test_equal_replicas_share_new_sessions():
    """Ties go by the session's own rank, so that they spread, and every router agrees."""
    seen = [choose("session", Ask(session=f"s{n}"), TWO).candidate.id for n in range(200)]
    assert 60 < seen.count("a") < 140
    again = [choose("session", Ask(session=f"s{n}"), TWO[::-1]).candidate.id for n in range(200)]
    assert again == seen


def test_rendezvous_moves_only_the_share_of_the_replica_that_left():
    """Without `c`, what was not at `c` stays where it was."""
    three = [*TWO, Candidate("c", "1")]
    for n in range(300):
        before = rendezvous(f"s{n}", three).id
        if before != "c":
            assert rendezvous(f"s{n}", TWO).id == before


def test_a_group_shares_a_home_until_it_is_full():
    """A prompt cache key places requests together, and splits when turns would wait there."""
    homes = {choose("session", Ask(session=f"s{n}", group="g"), TWO) for n in range(20)}
    assert len(homes) == 1
    home = homes.pop()
    assert home.reason == "group"
    full = [c._replace(in_flight=4, queued=2) if c == home.candidate else c for c in TWO]
    assert choose("session", Ask(session="s", group="g"), full).candidate.id != home.candidate.id


def test_a_child_begins_beside_its_parent_unless_turns_wait_there():
    """A fork's first turn finds its prefix."""
    ask = Ask(session="child", near="b")
    assert choose("session", ask, [Candidate("a", "1"), Candidate("b", "1", 3)]).reason == "parent"
    full = [Candidate("a", "1"), Candidate("b", "1", 5, 2)]
    assert choose("session", ask, full).candidate.id == "a"


def test_without_the_store_every_router_chooses_alike():
    """Load differs between routers, so it decides nothing while they cannot agree."""
    ask = Ask(session="s", shared=False)
    loaded = [Candidate("a", "1", 9, 3, 40), Candidate("b", "1")]
    assert choose("session", ask, TWO).candidate.id == choose("session", ask, loaded).candidate.id
    assert choose("session", ask, TWO).reason == "store_down"
