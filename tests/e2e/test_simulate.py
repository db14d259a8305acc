"""`sessile simulate` as a command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def simulate(*arguments: str, code: int = 0) -> tuple[str, str]:
    """What the command wrote to standard output and to standard error."""
    command = [sys.executable, "-m", "sessile.cli", "simulate", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == code, ran.stderr
    return ran.stdout, ran.stderr


def test_policies_stand_beside_the_oracle() -> None:
    """A row each, in a pipe without a progress bar, the same twice, in whatever process."""
    out, said = simulate("--sessions", "20")
    assert [line.split()[0] for line in out.splitlines()[3:7]] == [
        "session", "sticky", "round_robin", "oracle",
    ]  # fmt: skip
    assert said == ""
    assert simulate("--sessions", "20", "--jobs", "1")[0] == out


def test_json_has_every_figure() -> None:
    """Those that a script would want, by policy and swept value."""
    out, _ = simulate("--sessions", "20", "--sweep", "replicas=1..2", "--policy", "session",
                      "--slo-ttft-p99", "30", "--seeds", "1,2", "--json")  # fmt: skip
    told = json.loads(out)
    assert [(run["policy"], run["replicas"]) for run in told["runs"]] == [
        ("session", 1), ("oracle", 1), ("session", 2), ("oracle", 2),
    ]  # fmt: skip
    for name in ("hit_rate", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "session_time_mean_s",
                 "computed_tokens", "max_over_mean", "failed"):  # fmt: skip
        assert name in told["runs"][0]
    assert set(told["meets_slo"]) == {"session", "oracle"} and told["seeds"] == [1, 2]


def test_it_plans_capacity() -> None:
    """A verdict for each policy."""
    out, _ = simulate("--sessions", "20", "--sweep", "replicas=1..3", "--slo-ttft-p99", "0.0011")
    assert "session: no value of replicas keeps a TTFT p99 of 0.0011 s" in out


def test_a_trace_with_faults_loses_nothing(tmp_path: Path) -> None:
    """Every request of the file ends."""
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 200 * n, "input_length": 3000, "output_length": 50, "hash_ids": [0, 1, n + 2]}
        for n in range(100)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    out, _ = simulate(str(path), "--fault", "replica:1@5", "--fault", "router:0@8+2", "--json")
    for run in json.loads(out)["runs"]:
        assert (run["turns"], run["failed"]) == (100, 0)


def test_it_draws(tmp_path: Path) -> None:
    """A picture, if matplotlib is there."""
    pytest.importorskip("matplotlib")
    simulate("--sessions", "5", "--plot", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "word", "code"),
    [
        (["--policy", "luck"], "luck", 2),
        (["gone.jsonl"], "gone.jsonl", 1),
        (["--fault", "disk@3"], "replica:1@60", 2),
        (["--fault", "replica:9@3"], "there are 4", 2),
        (["--sweep", "replicas=9..2"], "2..16", 2),
        (["--slo-ttft-p99", "1"], "--sweep", 2),
        (["--seeds", "x"], "1,2,3", 2),
        (["--arrival", "never"], "poisson", 2),
        (["--plot", "out.txt"], ".png", 2),
        (["--plot", "gone/out.png"], "no folder", 2),
    ],
)
def test_what_cannot_be_simulated_is_said_in_one_sentence(
    arguments: list[str], word: str, code: int
) -> None:
    """With what would do instead."""
    _, said = simulate(*arguments, code=code)
    assert word in said and said.count("\n") == 1, said
