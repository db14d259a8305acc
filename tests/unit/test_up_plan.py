"""What `sessile up` finds out before anything is started."""

from pathlib import Path

from sessile.settings import Settings
from sessile.up_plan import plan_up


def test_an_adapter_that_no_embedded_replica_will_load_is_told(tmp_path: Path):
    """Also where its base is named by an alias; that of another model is another's."""
    settings = Settings.model_validate(
        {
            "pool": [{"model": "smollm2-135m", "replicas": 1}],
            "aliases": {"small": "smollm2-135m"},
            "adapter": [
                {"name": "a", "base": "small", "path": "/adapters/a"},
                {"name": "b", "base": "elsewhere", "path": "/adapters/b"},
            ],
        }
    )
    told: list[str] = []
    (launch,) = plan_up(settings, tmp_path, None, told.append)
    assert launch.engine == "llamacpp"
    assert told == [
        "adapter a: the embedded llama.cpp loads no adapters; serve smollm2-135m with sglang or "
        "vllm"
    ]
