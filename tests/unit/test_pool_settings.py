"""A pool's settings: what does not go together is refused by name."""

import pytest

from sessile.pool_settings import PoolSettings


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"engine": "sglang"}, "'sglang' needs model"),
        ({"engine": "openai", "model": "m"}, "is reached by urls"),
        ({"urls": ["http://a"], "replicas": 2}, "give one of urls"),
        ({"engine": "vllm", "urls": ["http://a"], "args": ["--x"]}, "args is for replicas started"),
        ({"model": "m", "gpus": 1}, "the embedded llamacpp takes no gpus"),
        ({"engine": "vllm", "model": "m", "memory": 1.5}, "less than 1"),
        (
            {"engine": "vllm", "model": "m", "speculation": {"method": "guess"}},
            "speculation.method",
        ),
    ],
)
def test_a_pool_that_contradicts_itself_is_refused(pool, said):
    """One sentence with the setting."""
    with pytest.raises(ValueError, match=said):
        PoolSettings.model_validate(pool)


def test_a_pool_goes_through_its_own_values_unchanged():
    """As the command line lays its flags over those of a file."""
    pool = PoolSettings.model_validate(
        {"engine": "vllm", "urls": ["http://a"], "model": "m"}
    )  # fmt: skip
    assert PoolSettings.model_validate(dict(pool)) == pool


def test_a_variable_s_value_is_not_printed():
    """It may be a token."""
    pool = PoolSettings.model_validate({"engine": "vllm", "model": "m", "env": {"HF_TOKEN": "hf"}})
    assert pool.model_dump(mode="json")["env"]["HF_TOKEN"] != "hf" and "'hf'" not in repr(pool)
