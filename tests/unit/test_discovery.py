"""What becomes of the pool when a source lists its replicas, and how sources are named and read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.router.discovery import Change, Known, Listed, change, twice
from sessile.router.replica import ReplicaSpec


def spec(name, port=None):
    """A replica at a port of its own."""
    return ReplicaSpec(id=name, engine="openai", url=f"http://h:{port or ord(name[0])}")


def known(name, state="ready", in_flight=0, drained=False, port=None):
    """The same as the pool has it."""
    return Known(spec(name, port), state, in_flight, drained)


def test_what_is_listed_is_added_and_what_is_there_is_left_alone():
    """New ones are added, in the source's order; nothing is done twice."""
    listed = [Listed(spec("a")), Listed(spec("b"))]
    assert change(listed, []) == Change(add=(spec("a"), spec("b")))
    assert change(listed, [known("a"), known("b", "down")]) == Change()


def test_what_is_listed_no_more_drains_and_goes_once_its_turns_have_ended():
    """A replica that takes no turns, since it is down or has never come up, goes at once."""
    assert change([], [known("a", in_flight=2)]) == Change(drain=("a",))
    assert change([], [known("a", "draining", 2, True)]) == Change()
    assert change([], [known("a", "draining", 0, True)]) == Change(remove=("a",))
    assert change([], [known("a", "down", 2)]) == Change(remove=("a",))
    assert change([], [known("a", "starting")]) == Change(remove=("a",))


def test_what_is_leaving_drains_and_stays_until_it_is_listed_no_more():
    """It is neither removed nor, if it was never there, added."""
    leaving = [Listed(spec("a"), leaving=True)]
    assert change(leaving, [known("a")]) == Change(drain=("a",))
    assert change(leaving, [known("a", "draining", 0, True)]) == Change()
    assert change(leaving, [known("a", "down")]) == Change()
    assert change(leaving, []) == Change()


def test_what_its_source_drained_comes_back_and_what_a_person_drained_does_not():
    """A pod that is ready again is put back into service; a person's drain stands."""
    listed = [Listed(spec("a"))]
    assert change(listed, [known("a", "draining", 1, True)]) == Change(resume=("a",))
    assert change(listed, [known("a", "draining", 1, False)]) == Change()


def test_one_name_at_another_address_is_another_replica():
    """The old one drains and goes; then the new one is added, and not before."""
    listed = [Listed(spec("a", 2))]
    assert change(listed, [known("a", port=1)]) == Change(drain=("a",))
    assert change(listed, [known("a", "draining", 1, True, port=1)]) == Change()
    assert change(listed, [known("a", "draining", 0, True, port=1)]) == Change(remove=("a",))
    assert change(listed, []) == Change(add=(spec("a", 2),))


def test_an_address_that_is_used_anew_waits_until_the_old_replica_is_gone():
    """Two replicas never share a URL."""
    listed = [Listed(spec("b", 1))]
    assert change(listed, [known("a", "draining", 1, True, port=1)]) == Change()


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([spec("a"), spec("a", 5)], "two replicas have the id 'a'"),
        ([spec("a", 1), spec("b", 1)], "http://h:1 is listed twice, as 'a' and as 'b'"),
        ([spec("a"), spec("b")], None),
    ],
)
def test_a_list_that_names_a_replica_twice_is_refused(listed, said):
    """Before anything of it is done."""
    assert twice([Listed(each) for each in listed]) == said


@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from("abcd"), st.booleans()), st.booleans()),
        min_size=1,
    )
)
def test_the_pool_comes_to_hold_what_is_listed_whatever_came_before(history):
    """However lists follow each other: once the turns have ended, just those that are listed and
    not leaving take turns, and no step is ever taken on a replica that is not there."""
    pool: dict[str, list] = {}  # id -> [spec, state, drained]

    def step(listed, in_flight):
        held = [Known(s, state, in_flight, drained) for s, state, drained in pool.values()]
        made = change(listed, held)
        for name in made.remove:
            assert pool.pop(name)[1] != "ready"
        for name in made.drain:
            pool[name][1:] = ["draining", True]
        for name in made.resume:
            pool[name][1:] = ["ready", False]
        for each in made.add:
            assert each.id not in pool
            pool[each.id] = [each, "ready", False]
        return made

    for names, busy in history:
        listed = [Listed(spec(name), leaving) for name, leaving in names.items()]
        step(listed, int(busy))
    while any(step(listed, 0)):
        pass
    serving = {name for name, (_, state, _) in pool.items() if state == "ready"}
    assert serving == {each.spec.id for each in listed if not each.leaving}
    assert pool.keys() <= {each.spec.id for each in listed}
