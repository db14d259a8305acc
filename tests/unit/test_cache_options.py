"""What a request says of the cache."""

import pytest

from sessile.api.cache_options import read_cache_options
from sessile.errors import InvalidRequest


@pytest.mark.parametrize(
    ("body", "generates"),
    [
        ({}, True),
        ({"generate": True}, True),
        ({"generate": None, "prompt_cache_options": None}, True),
        ({"generate": False}, False),
        ({"prompt_cache_options": {"prewarm": True}}, False),
        ({"generate": True, "prompt_cache_options": {"prewarm": True}}, False),
        ({"prompt_cache_options": {"prewarm": False}}, True),
        ({"prompt_cache_options": {"mode": "explicit"}}, True),
    ],
)
def test_what_generates(body, generates):
    """`prewarm` overrides `generate`; modes change nothing."""
    assert read_cache_options(body).generate is generates


def test_a_lifetime_is_a_lease_and_is_told():
    """The two that the API knows, in seconds; without one nothing is claimed to be applied."""
    options = {"ttl": "30m", "comparison_response_id": "r", "mode": "explicit"}
    asked = read_cache_options({"prompt_cache_options": options})
    assert asked.hold_s == 1800 and asked.told() == options
    assert read_cache_options({"prompt_cache_options": {"ttl": "12h"}}).hold_s == 43_200
    none = read_cache_options({"prompt_cache_options": {"mode": "implicit"}})
    assert none.hold_s is None and none.told() is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"generate": "no"}, "generate"),
        ({"prompt_cache_options": []}, "prompt_cache_options"),
        ({"prompt_cache_options": {"ttl": "5m"}}, "prompt_cache_options.ttl"),
        ({"prompt_cache_options": {"ttl": 30}}, "prompt_cache_options.ttl"),
        ({"prompt_cache_options": {"ttl": ["30m"]}}, "prompt_cache_options.ttl"),
        ({"prompt_cache_options": {"mode": "other"}}, "prompt_cache_options.mode"),
        ({"prompt_cache_options": {"prewarm": 1}}, "prompt_cache_options.prewarm"),
        ({"prompt_cache_options": {"warm": True}}, "prompt_cache_options.warm"),
        ({"prompt_cache_options": {"comparison_response_id": ""}},
         "prompt_cache_options.comparison_response_id"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(body, param):
    """Each by its own field."""
    with pytest.raises(InvalidRequest) as caught:
        read_cache_options(body)
    assert caught.value.param == param
