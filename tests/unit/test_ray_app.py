"""What an application is made of: arguments that cannot be are refused, and the Serve config that
comes with Sessile is one."""

import json
import shlex
from pathlib import Path

import msgspec
import pytest

from launched import launched, settled
from sessile.cli.deploy import ray as deploy_ray
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
        (
            {"command": ("serve", "{gpu}")},
            r"has \{gpu\}; filled in are \{model\}, \{host\}, \{port\}",
        ),
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


def examples():
    """The applications that the Serve config shows, commented out."""
    yaml = pytest.importorskip("yaml")
    text = "".join(
        line.removeprefix("  # ") + "\n"
        for line in CONFIG.read_text().splitlines()
        if line.startswith(("  # - ", "  #   "))
    )
    return yaml.safe_load(text)


def told_by_help():
    """The arguments of the command with an engine of its own that `--help` shows."""
    text = (deploy_ray.__doc__ or "").partition("sessile deploy ray --engine")[2]
    words = shlex.split("--engine" + text)
    given = dict(zip(words[::2], words[1::2], strict=True))
    return {"model": given["--model"], "engine": given["--engine"], "gpus": given["--gpus"],
            "command": shlex.split(given["--command"])}  # fmt: skip


@pytest.mark.parametrize("number", [0, 1, None])
def test_engines_that_are_shown_have_what_sessile_up_gives_them(number):
    """Those of the Serve config and of `--help`: each flag and variable, but for addresses."""
    if number is not None and not CONFIG.is_file():
        pytest.skip("deploy/ is not in a wheel")
    given = RayArguments(**(told_by_help() if number is None else examples()[number]["args"]))
    words = given.filled("10.0.0.7", 20000, 20001, 20002)
    flags, variables = launched(given.engine, int(given.gpus))
    assert settled(words) == flags
    line = " ".join(words)
    assert all(f"{name}={value}" in words for name, value in variables.items())
    assert f"--served-model-name {given.model} --host 10.0.0.7 --port 20000 " in line
    events = json.loads(words[words.index("--kv-events-config") + 1])
    assert (events["endpoint"], events["replay_endpoint"]) == ("tcp://*:20001", "tcp://*:20002")


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
