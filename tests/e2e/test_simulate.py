"""`sessile simulate` as people run it: its help, its table, its JSON, and what it refuses."""

import json
import os
import subprocess
import sys

import pytest

TINY = ("--sessions", "6", "--replicas", "2", "--rate", "2", "--context", "6000",
        "--policy", "session")  # fmt: skip


def run(*arguments):
    """One command in a process of its own; exit code, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "sessile.cli", "simulate", *arguments],
        capture_output=True, text=True, timeout=100, check=False,
        env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_help_teaches():
    """Lines to copy, what the oracle is, and every option with a sentence."""
    code, text, _ = run("--help")
    assert code == 0
    for said in ("sessile simulate --routers 3 --fault", "oracle knows every cache", "--sweep",
                 "--slo-ttft-p99", "--json"):  # fmt: skip
        assert said in text


def test_a_run_prints_a_table():
    """The policy that was asked for, and the oracle beside it."""
    code, text, errors = run(*TINY)
    assert (code, errors) == (0, "")
    assert "6 generated agents" in text and "POLICY" in text
    lines = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert "session" in lines and "oracle" in lines


def test_json_is_whole_and_a_sweep_finds_the_value():
    """Setup, seeds and runs; each swept value with each policy."""
    code, text, _ = run(*TINY, "--json", "--sweep", "replicas=1..2", "--slo-ttft-p99", "1000",
                        "--jobs", "1")  # fmt: skip
    told = json.loads(text)
    assert code == 0 and told["seeds"] == [1] and told["setup"]["sessions"] == 6
    assert [(row["replicas"], row["policy"]) for row in told["runs"]] == [
        (1, "session"), (1, "oracle"), (2, "session"), (2, "oracle"),
    ]  # fmt: skip
    assert all(row["failed"] == 0 for row in told["runs"])
    assert told["meets_slo"] == {"session": 1, "oracle": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "best"), "there is no policy 'best'"),
        (("no-such-file.jsonl",), "there is no file no-such-file.jsonl"),
        (("--fault", "disk:1@2"), "--fault 'disk:1@2' is not like replica:1@60"),
        (("--fault", "replica:9@2"), "there are 2, counted from 0"),
        (("--sweep", "colour=1..2"), "--sweep 'colour=1..2'"),
        (("--slo-ttft-p99", "1"), "asks for a --sweep"),
        (("--arrival", "never"), "there are poisson, even and bursts"),
        (("--seeds", "x"), "give whole numbers by comma"),
    ],
)
def test_what_goes_wrong_is_one_sentence(arguments, said):
    """No traceback, and the exit code of a wrong setting."""
    code, text, errors = run(*TINY, *arguments)
    assert (code, text) == (2, "")
    assert errors.startswith("sessile: ") and said in errors
    assert errors.count("\n") == 1 and "Traceback" not in errors
