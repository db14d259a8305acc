"""`sessile bench` as a command, before fake replicas in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sessile.engines.supervisor import free_ports
from sessile.lab.cost import measure_sockets


@pytest.fixture(scope="module")
def replicas() -> Iterator[list[str]]:
    """The URLs of two fake replicas."""
    with ExitStack() as stack:
        urls = []
        for port in free_ports(2):
            process = subprocess.Popen(
                [sys.executable, "-m", "sessile.lab.fake_replica", "--port", str(port)]
            )
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            urls.append(f"http://127.0.0.1:{port}")
        with httpx2.Client(transport=httpx2.HTTPTransport(retries=8)) as http:
            for url in urls:
                http.get(f"{url}/health")
        yield urls


def bench(*arguments: str, code: int = 0) -> tuple[str, str]:
    """What the command wrote to standard output and to standard error."""
    command = [sys.executable, "-m", "sessile.cli", "bench", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == code, ran.stderr
    return ran.stdout, ran.stderr


def options(urls: list[str]) -> list[str]:
    """Two replicas, and arrivals without much delay."""
    named = [part for url in urls for part in ("--replica", f"openai={url}")]
    return [*named, "--rate", "50", "--think", "0.01", "--max-tokens", "4"]


def test_sessions_beat_turns_about(replicas: list[str]) -> None:
    """On the same prompts, sessions find in the cache what round-robin does not."""
    out, said = bench(*options(replicas), "--sessions", "6", "--json")
    bound, about = json.loads(out)
    assert (bound["name"], about["name"]) == ("session", "round_robin")
    assert bound["errors"] == about["errors"] == 0 and bound["turns"] == about["turns"] > 20
    assert bound["hit_rate"] > about["hit_rate"]
    assert bound["hit_of_ceiling"] > 0.8 and len(about["per_replica"]) == 2
    assert said == ""  # no progress bar in a pipe


def test_replays_a_file_without_naming_sessions(replicas: list[str], tmp_path: Path) -> None:
    """Recorded trajectories, told apart by the router alone, as a table."""
    talk: list[dict[str, Any]] = [{"role": "system", "content": "Be brief. " * 30}]
    for turn in range(4):
        talk.append({"role": "user", "content": f"question {turn} " * 20})
        talk.append({"role": "assistant", "content": f"answer {turn}"})
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps({"id": "one", "messages": talk}))
    out, _ = bench(str(path), *options(replicas), "--policies", "session", "--lineage")
    assert "4 (0)" in out and "hit / ceiling" in out


def test_measures_a_running_server_as_it_is(replicas: list[str]) -> None:
    """With --url nothing is started, and the server's own name for replicas is not needed."""
    out, _ = bench("--url", f"{replicas[0]}/v1", "--sessions", "2", "--rate", "50", "--think", "0",
                   "--json")  # fmt: skip
    [report] = json.loads(out)
    assert report["errors"] == 0 and report["hit_rate"] > 0.5


def test_what_cannot_be_measured_is_said_in_one_sentence(tmp_path: Path) -> None:
    """A policy that is none, a file that is none, a server that is not there."""
    (gone,) = free_ports(1)
    for arguments, word, code in (
        (["--policies", "luck"], "luck", 2),
        ([str(tmp_path / "gone.jsonl")], "gone.jsonl", 1),
        (["--url", f"http://127.0.0.1:{gone}"], str(gone), 2),
    ):
        _, said = bench(*arguments, code=code)
        assert word in said and said.count("\n") == 1, said


def test_routers_in_small() -> None:
    """The instrument runs: every turn is answered, with Redis killed in the middle too."""
    command = [
        sys.executable, "-m", "sessile.lab.routers_bench", "--routers", "1,2", "--sessions", "4",
        "--rate", "10", "--think", "0.1", "--away", "0.3", "--json",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    rows = json.loads(ran.stdout)
    assert [(row["routers"], row["redis_away_s"]) for row in rows] == [(1, 0), (2, 0), (2, 0.3)]
    assert all(row["turns"] > 20 and row["errors"] == 0 for row in rows), rows
    assert all(0.5 < row["hit_rate"] < 1 and row["ttft_p99"] > 0 for row in rows)


def test_cost_of_the_router_in_small() -> None:
    """The instrument runs, and every figure is there."""
    out, _ = bench("--cost", "--requests", "400", "--json")
    cost = json.loads(out)
    assert cost["cpu_ms_per_request"] > 0 and cost["cpu_s_per_million_events"] > 0
    assert cost["direct_p50_ms"] > 0 and cost["requests"] == 400


async def test_open_websockets_in_small() -> None:
    """Turns stream on some of many sockets, and nothing of them is left at the router."""
    measured = await measure_sockets(20, 5, None, lambda step: None)
    assert measured.events > 5 * 200 and measured.streaming_mb > 0
    assert measured.upstream_streams_after == 0
    assert measured.files_after <= measured.files_before + 4
