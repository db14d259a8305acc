"""How much longer a step is with the tokens before it: learned, and decided by."""

from random import Random

import pytest

from pace_world import World
from sessile.router.contexts import Contexts
from sessile.router.steps import Steps

PLAIN = (4.1e-3, 0.85e-6)  # seconds a step, and more for each token: measured with SGLang's
DRAFTS = (9.8e-3, 9.4e-6)  # STANDALONE on an H100


def seconds(kind, context):
    step_s, longer_s = kind
    return step_s + longer_s * context


def test_steps_over_long_prompts_tell_what_they_are_over_short_ones():
    """Though none of these was seen, and what was seen itself is told as it was."""
    steps = Steps()
    for _ in range(4):
        for context in (600, 1100, 1600):
            steps.add(True, 1, 0.0, seconds(DRAFTS, context), context)
            steps.add(False, 1, 0.0, seconds(PLAIN, context), context)
    assert steps.step_s(True, 1, 1100) == pytest.approx(seconds(DRAFTS, 1100), rel=0.1)
    assert steps.step_s(True, 1, 150) == pytest.approx(seconds(DRAFTS, 150), rel=0.25)
    assert steps.step_s(False, 1, 150) == pytest.approx(seconds(PLAIN, 150), rel=0.1)


def test_what_depends_on_no_context_is_not_laid_to_it():
    """Steps that differ by chance, turns of one length, and a larger batch of longer prompts."""
    random = Random(1)
    steps = Steps()
    for _ in range(60):
        steps.add(True, 1, 0.0, 0.010 * random.uniform(0.8, 1.2), random.choice((300, 600, 900)))
    assert steps.step_s(True, 1, 2000) == pytest.approx(steps.step_s(True, 1, 100), rel=0.3)
    steps = Steps()
    for _ in range(30):
        steps.add(True, 1, 0.0, 0.010, 500)
        steps.add(True, 16, 0.0, 0.020, 4000)
    assert steps.step_s(True, 1, 4000) == pytest.approx(0.010, rel=0.01)


def test_a_step_is_never_shorter_for_a_longer_context():
    contexts = Contexts()
    for _ in range(50):
        contexts.add(2000.0, 1000.0, 0.7, 1.0)
    assert contexts.longer == 0.0


def test_a_batch_tells_of_contexts_as_often_as_one_turn_does():
    """All of sixteen that run at once met the same, be it late for another reason."""
    alone, together = Contexts(), Contexts()
    for _ in range(16):
        together.add(1500.0, 1000.0, 1.2, 16.0)
    alone.add(1500.0, 1000.0, 1.2, 1.0)
    assert together.longer == pytest.approx(alone.longer, rel=0.1)


@pytest.mark.parametrize(
    ("before", "after", "where"), [(1500, 60, "on"), (60, 3000, "off")], ids=["shorter", "longer"]
)
def test_prompts_of_another_length_are_decided_by_what_they_will_take(before, after, where):
    """A draft model pays over short prompts and not over long ones: the first session of the other
    texts goes where it is faster, with no trial."""
    world = World(shared=1.7, device="0", longer_s=(PLAIN[1], DRAFTS[1]))
    world.plain, world.verify = (lambda running: PLAIN[0]), (lambda running: DRAFTS[0])
    world.first_tokens = before
    world.run([9.0], 3, 12)
    world.run([4.0], 3, 10)
    world.where.clear()
    world.reasons.clear()
    world.first_tokens = after
    world.run([4.0], 3, 4)
    assert world.where[4.0, where] == 12
    assert not world.reasons["trial"]
