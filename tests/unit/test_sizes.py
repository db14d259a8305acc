"""How long prompts and replies will be, learned from what engines report."""

from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from sessile.sizes import Sizes


def test_tokens_a_byte_are_learned():
    """The model's own, from its turns; a turn's own is told at once."""
    sizes = Sizes()
    for _ in range(100):
        assert sizes.learn(1000, 500, None) == 0.5
    assert sizes.tokens_per_byte == approx(0.5, rel=0.01)


def test_replies_are_learned_and_capped_by_what_was_asked():
    """No more than the request allows; a turn without a count teaches nothing."""
    sizes = Sizes()
    before = sizes.reply(None)
    sizes.learn(1000, 270, None)
    assert sizes.reply(None) == before
    for _ in range(100):
        sizes.learn(1000, 270, 40)
    assert sizes.reply(None) == approx(40, abs=1)
    assert sizes.reply(10) == 10


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**6), st.integers(0, 10**5))))
def test_lengths_are_never_negative(turns):
    """Even of an empty prompt."""
    sizes = Sizes()
    for turn in turns:
        assert sizes.learn(*turn) >= 0
    assert sizes.tokens_per_byte >= 0 and sizes.reply(None) >= 0
