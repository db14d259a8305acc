"""Releases: who gets which variant, and what each command makes of a swap."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.errors import InvalidRequest
from sessile.router.releases import (
    HEARD_S,
    Release,
    Releases,
    Variant,
    begin,
    choose,
    finish,
    grow,
    is_over,
    keeping,
    roll_back,
)

OLD, NEW = Variant(name="m", model="m"), Variant(name="m@green", model="m", group="green")
BOTH = ("m", "m@green")
KEYS = [f"t\x1f{n}" for n in range(2000)]


def swap(percent=10.0, deadline_s=None, before=None, since=100.0):
    """A swap that begins at 100."""
    return begin(before, "m", OLD, NEW, id="r1", percent=percent, deadline_s=deadline_s,
                 now=since - HEARD_S)  # fmt: skip


def at(since):
    """When a command was given that is in force since then."""
    return since - HEARD_S


def weights(release):
    """Name to weight."""
    return {v.name: v.weight for v in release.variants}


def chosen(release, able=BOTH):
    """The keys that the target gets."""
    return {k for k in KEYS if choose(release.variants, k, able).name == NEW.name}


@pytest.mark.parametrize("percent", [0, 1, 5, 30, 50, 99, 100])
def test_the_share_of_new_sessions_is_the_percentage(percent):
    """Within what chance allows; 0 and 100 exactly."""
    share = len(chosen(swap(percent))) / len(KEYS)
    p = percent / 100
    assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / len(KEYS))


def test_growing_takes_nobody_away_from_the_target():
    """Whoever gets the canary at 5 % gets it at 20 %, and so on."""
    release = swap(5)
    before = chosen(release)
    for percent in (20, 50, 90, 100):
        release = grow(release, "m", percent, at(200.0))
        after = chosen(release)
        assert before <= after
        before = after


@given(st.text(max_size=40), st.floats(0, 100))
def test_a_choice_is_a_variant_that_takes_new_sessions(key, percent):
    """Whatever the key."""
    release = swap(percent)
    assert choose(release.variants, key, BOTH).weight > 0


def test_a_variant_that_nothing_serves_is_passed_over():
    """Unless nothing is served by any: then the choice stands."""
    release = swap(50)
    assert chosen(release, able=("m",)) == set()
    assert chosen(release, able=()) == chosen(release)


def test_at_a_hundred_percent_the_source_stands_in_until_the_swap_has_ended():
    """For a target that nothing serves, and no longer than it is served itself."""
    release = swap(100)
    for able, name in ((("m",), "m"), (BOTH, "m@green"), ((), "m@green")):
        assert choose(release.variants, "k", able, release.spare).name == name
    ended = finish(release, "m", None, at(200.0))
    assert choose(ended.variants, "k", ("m",), ended.spare).name == "m@green"


def test_a_release_is_in_force_from_its_time():
    """Until all routers have heard of it, what was before holds."""
    release = swap(10, since=100.0)
    assert [v.name for v in release.at(99.9)] == ["m"]
    assert [v.name for v in release.at(100.0)] == ["m", "m@green"]
    grown = grow(release, "m", 50, at(200.0))
    assert grown.at(199.0) == release.variants


def test_a_command_on_the_heels_of_another_brings_nothing_forward():
    """What was not yet in force is passed over: what was in force before stays so until then."""
    first = swap(10, since=100.0)
    second = grow(first, "m", 50, at(101.0))
    assert [v.name for v in second.at(100.9)] == ["m"]
    assert weights(second) == {"m": 50, "m@green": 50}
    back = roll_back(first, "m", 0.0, at(101.0))
    assert [v.name for v in back.at(100.9)] == ["m"]


def test_sessions_stay_while_their_variant_takes_new_ones():
    """Even with nothing ready there: they are told so, not moved."""
    release = swap(10, deadline_s=0.0)
    assert keeping(release.variants, 1e9, ()) == ["m", "m@green"]


def test_at_a_hundred_percent_the_old_one_is_left_by_the_deadline():
    """Its sessions stay until then, or, without a deadline, as long as something serves them."""
    release = swap(100, deadline_s=60.0)
    assert keeping(release.variants, 159.9, BOTH) == ["m", "m@green"]
    assert keeping(release.variants, 160.0, BOTH) == ["m@green"]
    endless = swap(100)
    assert keeping(endless.variants, 1e9, BOTH) == ["m", "m@green"]
    assert keeping(endless.variants, 1e9, ("m@green",)) == ["m@green"]


def test_less_than_a_hundred_again_stops_the_clock():
    """The old one takes new sessions again, so that nobody has to leave it."""
    release = grow(swap(100, deadline_s=60.0), "m", 50, at(110.0))
    assert keeping(release.variants, 1e9, BOTH) == ["m", "m@green"]


def test_finish_gives_the_target_all_new_sessions_and_the_old_one_its_deadline():
    """The swap's own, unless another is given; one that runs already is not begun anew."""
    done = finish(swap(10, deadline_s=60.0), "m", None, at(200.0))
    assert (done.state, weights(done)) == ("finished", {"m": 0, "m@green": 100})
    assert done.variants[0].until == 260.0
    assert finish(swap(10, deadline_s=60.0), "m", 5.0, at(200.0)).variants[0].until == 205.0
    assert finish(swap(100, deadline_s=600.0), "m", None, at(200.0)).variants[0].until == 700.0
    assert finish(swap(10), "m", None, at(200.0)).variants[0].until is None


@pytest.mark.parametrize("finished", [False, True])
def test_roll_back_gives_the_source_all_again(finished):
    """At once, or after a deadline; of a finished swap too."""
    release = swap(50, deadline_s=60.0)
    if finished:
        release = finish(release, "m", None, at(150.0))
    back = roll_back(release, "m", 0.0, at(200.0))
    assert (back.state, weights(back)) == ("rolled_back", {"m": 100, "m@green": 0})
    assert keeping(back.variants, 200.0, BOTH) == ["m"]
    later = roll_back(release, "m", 30.0, at(200.0))
    assert keeping(later.variants, 229.0, BOTH) == ["m", "m@green"]


def test_what_is_settled_is_the_source_of_the_next_swap():
    """Before the end the old one, after it the new one."""
    release = swap(90)
    assert release.settled.name == "m"
    assert roll_back(release, "m", 0, at(200.0)).settled.name == "m"
    assert finish(release, "m", None, at(200.0)).settled.name == "m@green"


def test_a_second_swap_remembers_who_is_still_left_behind():
    """Sessions that stay where the first swap left them go on there; who is gone is forgotten."""
    third = Variant(name="n", model="n")
    for deadline_s, remembered in ((None, True), (1000.0, True), (10.0, False)):
        first = finish(swap(100), "m", deadline_s, at(200.0))
        second = begin(first, "m", first.settled, third, id="r2", percent=0, deadline_s=None,
                       now=at(300.0))  # fmt: skip
        assert ("m" in weights(second)) is remembered
        assert second.was == first.variants
        assert (second.source, second.target) == ("m@green", "n")


def test_back_to_what_was_left_takes_it_into_service():
    """A swap to the old one again names it once."""
    first = finish(swap(100), "m", None, at(200.0))
    again = begin(first, "m", first.settled, OLD, id="r2", percent=100, deadline_s=None,
                  now=at(300.0))  # fmt: skip
    assert [v.name for v in again.variants] == ["m@green", "m"]
    assert weights(again) == {"m@green": 0, "m": 100}


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: swap(101), "percent must be from 0 to 100"),
        (lambda: swap(-1), "percent must be from 0 to 100"),
        (lambda: swap(math.nan), "percent must be from 0 to 100"),
        (lambda: swap(10, deadline_s=-1), "deadline must be"),
        (lambda: swap(10, deadline_s=math.inf), "deadline must be"),
        (lambda: swap(before=swap()), "is under way: finish it or roll it back"),
        (lambda: grow(None, "m", 5, at(1.0)), "begin one with --to"),
        (lambda: grow(roll_back(swap(), "m", 0, at(1.0)), "m", 5, at(1.0)), "begin one with --to"),
        (lambda: finish(finish(swap(), "m", None, at(1.0)), "m", None, 1.0), "begin one with --to"),
        (lambda: roll_back(None, "m", 0, at(1.0)), "no swap of 'm' to roll back"),
        (lambda: roll_back(roll_back(swap(), "m", 0, at(1.0)), "m", 0, 1.0), "to roll back"),
        (
            lambda: begin(None, "m", OLD, OLD, id="", percent=5, deadline_s=None, now=1.0),
            "served by 'm' already",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(act, words):
    """In one sentence that says what to do."""
    with pytest.raises(InvalidRequest, match=words):
        act()


def test_a_swap_is_over_once_nobody_can_be_left_behind():
    """A while after the last deadline; never while there is none, or two take new sessions."""
    assert not is_over(swap(50).variants, 1e9)
    assert not is_over(finish(swap(50), "m", None, at(200.0)).variants, 1e9)
    done = finish(swap(50), "m", 0.0, at(200.0))
    assert not is_over(done.variants, 200.0)
    assert is_over(done.variants, 1e9)


def test_groups_are_apart_from_their_model():
    """A router knows the variants of all its releases, those being left too."""
    known = Releases()
    assert not known
    known.put(swap())
    assert known.groups("m") == {"green"}
    assert known.variant("m@green").group == "green"
    assert known.variant("x") is None
    assert known.get("m").target == "m@green"
    assert [r.served for r in known] == ["m"]
    assert isinstance(known.get("m"), Release)
