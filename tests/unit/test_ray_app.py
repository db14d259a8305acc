"""What an application is made of: arguments that cannot be are refused, and the Serve config that
comes with Sessile is one."""

from pathlib import Path

import msgspec
import pytest

from sessile.errors import SettingsError
from sessile.ray.arguments import RayArguments, served
from sessile.ray.autoscale import Goals

CONFIG = Path(__file__).parents[2] / "deploy" / "ray.yaml"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"min_replicas": 3}, "max_replicas 1 is under min_replicas"),
        ({"engine": "sglang"}, "give the command that starts 'sglang'"),
        ({"engine": "mlx", "command": ("mlx",)}, "mlx"),
        ({"replicas": 3}, "replicas"),
    ],
)
def test_arguments_that_cannot_be_are_refused(given, said):
    """With what is wrong."""
    with pytest.raises(ValueError, match=said):
        RayArguments(**given)


def test_goals_are_those_of_the_arguments():
    """By the same names, and the bounds by Ray's."""
    given = RayArguments(min_replicas=0, max_replicas=7, ttft_s=2.0, down_after_s=9.0)
    goals = msgspec.convert(given.goals(), Goals)
    assert (goals.least, goals.most, goals.ttft_s, goals.down_after_s) == (0, 7, 2.0, 9.0)


def test_an_engine_of_its_own_command_serves_under_the_models_name():
    """And one that is started here must be known."""
    command = ("python", "-m", "sglang.launch_server")
    assert served(RayArguments(model="Q/Q", engine="sglang", command=command)) == "Q/Q"
    with pytest.raises(SettingsError):
        served(RayArguments(model="no-such-model"))


def test_the_serve_config_is_one():
    """Ray reads it, and its arguments are ours."""
    yaml = pytest.importorskip("yaml")
    schema = pytest.importorskip("ray.serve.schema", reason="needs sessile[ray]")
    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = config.applications
    assert application.import_path == "sessile.ray.app:build"
    assert RayArguments(**application.args).max_replicas == 4


def test_the_load_reaches_ray_as_numbers_and_is_read_back():
    """What is unknown stays so; each replica tells the same, and their mean is taken."""
    policy = pytest.importorskip("sessile.ray.policy", reason="needs sessile[ray]")
    roll = pytest.importorskip("sessile.ray.roll")
    load = roll.Signals(replicas=2, in_flight=3, busy=0.75, wait_s=1.5)
    told = policy.figures(load)
    assert "kv_fill" not in told
    assert policy.read({name: {"a": v, "b": v} for name, v in told.items()}, 2) == load
