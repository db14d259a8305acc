"""Seconds a decoding step, by kind of replica, by how many run, and beside busy others."""

import pytest

from sessile.router.curve import Curve
from sessile.router.steps import Steps


def test_a_curve_keeps_what_is_not_seen_any_longer():
    """And lies between what it has seen; one turn that was late by chance does not move it far."""
    curve = Curve()
    assert curve.at(3) is None
    for _ in range(20):
        curve.add(1, 0.010)
    for _ in range(200):
        curve.add(16, 0.013)
    curve.add(16, 5.0)
    near = curve.at(1)
    assert near is not None and near.step_s == pytest.approx(0.010, rel=0.05) and near.away == 0
    between = curve.at(8.5)
    assert between is not None and 0.0115 < between.step_s < 0.0135


def test_a_step_that_is_twice_as_fast_is_believed_at_once():
    """What made the ones before it longer is over. One by half as much counts half: a turn is not
    measured as well as that."""
    curve = Curve()
    for _ in range(40):
        curve.add(16, 0.120)
    curve.add(16, 0.010)
    soon = curve.at(16)
    assert soon is not None and soon.step_s == pytest.approx(0.010)
    curve.add(16, 0.006)
    half = curve.at(16)
    assert half is not None and half.step_s == pytest.approx(0.008)


def test_what_makes_steps_longer_with_so_many_does_with_others_too():
    """In part, for those that are not seen; until a point is sure it tells nothing of others."""
    curve = Curve()
    for _ in range(20):
        curve.add(16, 0.020)
    for _ in range(3):
        curve.add(1, 0.010)
        curve.add(1, 0.012)
    far = curve.at(16)
    assert far is not None and far.step_s == pytest.approx(0.020)
    for _ in range(50):
        curve.add(1, 0.022)
    near, far = curve.at(1), curve.at(16)
    assert near is not None and near.step_s == pytest.approx(0.022, rel=0.01)
    assert far is not None and 0.023 < far.step_s < 0.026


def test_the_first_of_a_batch_of_another_size_are_not_believed():
    """An engine compiles for it meanwhile, seconds long; the next ones tell what it takes."""
    steps = Steps()
    for _ in range(20):
        steps.add(True, 4, 0.0, 0.0055)
    for _ in range(16):
        steps.add(True, 16, 0.0, 0.070)
    assert steps.step_s(True, 16) < 0.012
    for _ in range(16):
        steps.add(True, 16, 0.0, 0.009)
    assert steps.step_s(True, 16) == pytest.approx(0.009, rel=0.1)
    for _ in range(60):
        steps.add(True, 16, 0.0, 0.050)
    assert steps.step_s(True, 16) == pytest.approx(0.050, rel=0.1)


def test_the_first_turns_of_all_are_not_believed_once_one_is_much_faster():
    """Nothing foresees them, and an engine compiles for them too. As many must have told as run at
    once, three times, until a kind is judged: one crowd is one look."""
    steps = Steps()
    for _ in range(4):
        steps.add(True, 4, 0.0, 0.061)
    assert steps.heard(True) and not steps.seen(True)
    for _ in range(8):
        steps.add(True, 4, 0.0, 0.0045)
    assert steps.seen(True)
    assert steps.step_s(True, 4) == pytest.approx(0.0045)


def test_what_waited_for_a_compiler_is_found_by_turns_of_another_batch():
    """It is never seen again, but what lies beside it is, and would be taken for as slow."""
    steps = Steps()
    for running in (2.3, 3.3, 3.9):
        steps.add(True, running, 0.0, 0.061)
    for _ in range(3):
        steps.add(True, 1, 0.0, 0.0035)
    assert steps.step_s(True, 3) < 0.006
    assert steps.step_s(True, 1) == pytest.approx(0.0035)


def test_a_batch_does_not_grow_steeply_by_its_first_turns_where_the_others_does_not():
    """They may have waited for a compiler; steps of sixteen would be taken for those of a processor
    by them, and not be looked at again."""
    steps = Steps()
    for running, step_s in ((1, 0.0122), (4, 0.0166)):
        for _ in range(3 * running):
            steps.add(True, running, 0.0, step_s)
    for _ in range(3):
        steps.add(False, 1, 0.0, 0.004)
    for _ in range(4):
        steps.add(False, 4, 0.0, 0.0115)
    assert steps.step_s(False, 16) < 0.008
    assert steps.sure(False, 2) and not steps.sure(False, 16)


def test_a_kind_that_was_not_seen_is_taken_from_the_other():
    """Dearer where it verifies drafts, by as much either way, until turns enough have told."""
    steps = Steps()
    assert steps.step_s(True, 1) > steps.step_s(False, 1)
    for _ in range(3):
        steps.add(False, 1, 0.0, 0.010)
    assert not steps.known
    assert steps.step_s(False, 1) == pytest.approx(0.010)
    assert steps.step_s(True, 1) == pytest.approx(0.016)
    for _ in range(3):
        steps.add(True, 1, 0.0, 0.020)
    assert steps.known
    assert steps.step_s(True, 1) == pytest.approx(0.020)


@pytest.mark.parametrize(("beside_s", "shared"), [(0.018, True), (0.0101, False)])
def test_replicas_of_one_device_are_found_by_their_steps(beside_s, shared):
    """They are longer while the others are busy; what is told of the device holds whatever is
    seen."""
    steps = Steps()
    assert not steps.shared
    for _ in range(6):
        steps.add(False, 1, 0.0, 0.010)
        steps.add(False, 1, 1.0, beside_s)
    assert steps.shared is shared
    assert steps.waits == pytest.approx(beside_s / 0.010 - 1.0)
    steps.one_device = True
    assert steps.shared


def test_how_much_a_batch_costs_is_seen_and_not_only_supposed():
    """A step of four on a processor is nearly four times as long as one of one: so is one of
    sixteen, of either kind, before any was seen. Little more than was supposed is not believed."""
    steps = Steps()
    for running in (1, 4):
        for _ in range(8 * running):
            steps.add(False, running, 0.0, 0.012 + 0.017 * running)
    assert steps.step_s(False, 16) == pytest.approx(0.284, rel=0.1)
    for _ in range(3):
        steps.add(True, 1, 0.0, 0.034)
    assert steps.step_s(True, 4) > 0.1
    gentle = Steps()
    for running, step_s in ((1, 0.0061), (4, 0.0063)):
        for _ in range(3):
            gentle.add(False, running, 0.0, step_s)
    assert gentle.step_s(False, 16) < 0.007


def test_a_larger_batch_is_not_taken_for_a_busy_neighbour():
    """Steps of two alone and of four beside others differ by what four cost."""
    steps = Steps()
    for _ in range(6):
        steps.add(False, 2, 0.0, 0.046)
        steps.add(False, 4, 1.0, 0.079)
    assert not steps.shared
    for _ in range(6):
        steps.add(False, 4, 0.0, 0.045)
    assert steps.shared
