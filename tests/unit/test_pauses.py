"""Sessions between two turns, and whose memory goes first."""

from sessile.router.pauses import Pauses


def test_a_pause_lasts_as_long_as_it_is_worth_and_is_then_given_up():
    """Its memory is let go of once, and after ten minutes it is forgotten."""
    pauses = Pauses()
    pauses.begin("s", "r1", "bash", 0.0)
    worth_s = pauses.returns.worth_s("bash")
    assert pauses.over(worth_s - 0.1) == ([], [])
    assert pauses.over(worth_s + 0.1) == (["s"], [])
    pauses.let_go("s")
    assert "s" in pauses and pauses.over(599.0) == ([], [])
    assert pauses.over(601.0) == ([], ["s"]) and "s" not in pauses


def test_a_return_is_learned_from():
    """The class is known to return sooner; what was never a pause teaches nothing."""
    pauses = Pauses()
    before = pauses.returns.rate("slow", 20.0)
    for number in range(20):
        pauses.begin(f"s{number}", "r1", "slow", 0.0)
        pauses.returned(f"s{number}", 20.0)
    assert pauses.returns.rate("slow", 20.0) > before and len(pauses) == 0
    pauses.returned("stranger", 1.0)


def test_the_longest_away_go_first():
    """Of each kind the oldest, as long as they return more rarely than asked."""
    pauses = Pauses()
    for number, kind in enumerate(["bash", "mail", "bash", "bash"]):
        pauses.begin(f"s{number}", "r1", kind, 10.0 * number)
    pauses.begin("elsewhere", "r2", "bash", 0.0)
    assert pauses.poorest("r1", 0.05, now=31.0) == ["s0", "s2", "s1"]
    assert pauses.poorest("r1", 100.0, now=31.0) == ["s0", "s2", "s3", "s1"]
    assert pauses.poorest("r3", 100.0, now=31.0) == []


def test_what_somebody_asked_to_hold_is_held():
    """A lease stands against any want of memory, until its time is over; 0 ends it."""
    pauses = Pauses()
    pauses.begin("s", "r1", "bash", 0.0)
    assert pauses.hold("s", 0.0, 500.0)
    assert pauses.poorest("r1", 1e9, now=400.0) == []
    assert pauses.over(400.0) == ([], []) and pauses.over(500.5) == (["s"], [])
    assert not pauses.hold("stranger", 0.0, 10.0)


def test_a_session_that_runs_at_another_router_is_no_pause():
    """It can neither be leased nor let go of for want, nor does its end teach anything; but it is
    not live for ever if its router dies."""
    pauses = Pauses()
    pauses.away("s", "r1", 0.0, "other")
    assert pauses.at("other") == ["s"] and pauses.at("another") == []
    share = pauses.returns.share
    assert not pauses.hold("s", 1.0, 10.0) and pauses.poorest("r1", 1e9, 100.0) == []
    assert pauses.over(601.0) == (["s"], ["s"]) and "s" not in pauses
    assert pauses.returns.share == share


def test_nothing_is_left_of_those_that_returned():
    """Groups of replicas and kinds do not pile up."""
    pauses = Pauses()
    for number in range(100):
        pauses.begin(f"s{number}", f"r{number % 3}", f"tool{number}", 0.0)
        if number % 2:
            pauses.returned(f"s{number}", 0.5)
        else:
            pauses.let_go(f"s{number}")
    assert not pauses._loose


def test_a_program_s_pauses_are_found_by_the_session_that_began_it():
    """As long as they pause."""
    pauses = Pauses()
    for name in ("child", "other"):
        pauses.begin(name, "r1", "bash", 0.0, program="root")
    pauses.begin("stranger", "r1", "bash", 0.0)
    pauses.returned("other", 1.0)
    assert pauses.of("root") == ["child"] and pauses.of("child") == []
    pauses.drop("child")
    assert pauses.of("root") == [] and not pauses._programs


def test_a_pause_that_moves_is_found_where_it_went():
    """Where memory is short it may be let go of there, and no longer where it was."""
    pauses = Pauses()
    pauses.begin("s", "r1", "bash", 0.0)
    pauses.move("s", "r2")
    pauses.move("nobody", "r2")
    assert pauses.poorest("r1", 1e9, 1.0) == [] and pauses.poorest("r2", 1e9, 1.0) == ["s"]
    assert pauses.get("s").since == 0.0
    pauses.hold("s", 1.0, 60.0)
    pauses.move("s", "r1")
    assert pauses.poorest("r1", 1e9, 1.0) == [] and pauses.get("s").replica == "r1"
