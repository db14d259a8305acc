"""Turns that share a prefix which one of them computes."""

from scheduling import BLOCK, ask, end, replica, scheduler


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
