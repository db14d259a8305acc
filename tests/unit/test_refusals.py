"""Engines that answer, and not as their kind does."""

import pytest

from sessile.engines.refusals import Refusals
from sessile.errors import SettingsError

WHY = "its /server_info answered 404"


def test_it_is_told_once_and_given_up_after_a_while():
    """By what its answers lack, with what to look at."""
    refusals = Refusals()
    told = [refusals.look("local-0", "sglang", WHY, float(now)) for now in range(60)]
    assert told == [f"local-0: it answers, but {WHY}"] + [None] * 59
    with pytest.raises(SettingsError, match="not as sglang does: its /server_info answered 404"):
        refusals.look("local-0", "sglang", WHY, 61.0)


def test_one_that_comes_right_meanwhile_has_all_the_time_again():
    """Each for itself."""
    refusals = Refusals()
    refusals.look("a", "vllm", WHY, 0.0)
    refusals.look("b", "vllm", WHY, 50.0)
    assert refusals.look("a", "vllm", None, 59.0) is None
    assert refusals.look("a", "vllm", "its /metrics is not Prometheus text", 61.0)
    assert refusals.look("b", "vllm", WHY, 61.0) is None
