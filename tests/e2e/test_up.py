"""`sessile up` with its real engine: it comes up, heals, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

SESSILE = str(Path(sys.executable).with_name("sessile"))
MODEL = "smollm2-135m"


class Up:
    """A running `sessile up`, and every process below it that was ever seen."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.said: list[str] = []

    def replicas(self) -> dict[str, dict[str, Any]]:
        """The replicas by id, as the router tells."""
        found = httpx2.get(f"{self.url}/sessile/v1/replicas", timeout=10).json()["replicas"]
        return {replica["id"]: replica for replica in found}

    def children(self) -> dict[int, str]:
        """The command lines of all processes below it."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with_name = _read(stat)
            if with_name:
                parents[int(stat.parent.name)] = int(with_name.rpartition(")")[2].split()[1])
        below = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in below} - below:
            below |= more
        return {pid: _read(Path(f"/proc/{pid}/cmdline")) for pid in below - {self.process.pid}}


@contextmanager
def running(*flags: str) -> Iterator[Up]:
    """`sessile up` on a free port, ready; killed at the end if the test has not ended it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [SESSILE, "up", "--port", str(port), *flags], stderr=subprocess.PIPE, text=True
    )
    up = Up(process, f"http://127.0.0.1:{port}")
    assert process.stderr is not None
    try:
        for line in process.stderr:
            up.said.append(line)
            if "Ctrl-C" in line:
                break
        assert process.poll() is None, "".join(up.said)
        yield up
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_it_serves_heals_and_leaves_nothing_after_ctrl_c():
    """A real model answers; a replica killed comes back anew; Ctrl-C ends every process."""
    with running() as up:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        for _ in range(2):
            reply = httpx2.post(
                f"{up.url}/v1/chat/completions", json=body, headers={"x-session-id": "s"},
                timeout=60,
            )  # fmt: skip
            assert reply.status_code == 200
        turn = reply.headers["x-sessile-turn"]
        receipt = httpx2.get(f"{up.url}/sessile/v1/turns/{turn}/receipt").json()
        assert receipt["reason"] == "bound" and receipt["cached_tokens"] > 0

        home = receipt["replica"]
        before = up.replicas()[home]["incarnation"]
        port = up.replicas()[home]["url"].rpartition(":")[2]
        child = next(pid for pid, command in up.children().items() if f"\0{port}\0" in command)
        os.kill(child, signal.SIGKILL)
        told = set()

        def anew() -> bool:
            replica = up.replicas()[home]
            told.add(replica["why"])
            return replica["incarnation"] != before and replica["state"] == "ready"

        until(anew)
        assert any(why and why.startswith("it is started again, since its pro") for why in told)
        reply = httpx2.post(
            f"{up.url}/v1/chat/completions", json=body, headers={"x-session-id": "s"}, timeout=60
        )
        # Its session went elsewhere meanwhile, unless it has been bound to the new start itself.
        assert reply.headers["x-sessile-reason"] in ("moved", "restarted")

        children = up.children()
        assert len(children) >= 3
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(30) == 0
        assert not alive(children)


def test_sigkill_leaves_nothing():
    """Whatever ends the parent ends the replicas and the store."""
    with running("--replicas", "1") as up:
        assert "1 replica, ready in" in " ".join("".join(up.said).split())
        children = up.children()
        up.process.kill()
        up.process.wait()
        until(lambda: not alive(children))


def test_ctrl_c_while_a_model_is_pulled_ends_the_pull(tmp_path):
    """An index that never answers: Ctrl-C and SIGKILL end pip too, and no file is left."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        environment = {
            **os.environ, "SESSILE_CACHE_DIR": str(tmp_path), "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{mute.getsockname()[1]}/simple",
            "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "",
        }  # fmt: skip
        for number in (signal.SIGINT, signal.SIGKILL):
            process = subprocess.Popen(
                [SESSILE, "up", "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as a shell would
            )  # fmt: skip
            up = Up(process, "")
            until(lambda up=up: any("download" in command for command in up.children().values()))
            children = up.children()
            process.send_signal(number)
            said = process.communicate(timeout=20)[1]
            assert process.returncode != 0 and "Traceback" not in said
            until(lambda children=children: not alive(children))
    assert not list(tmp_path.rglob("*.gguf"))


def test_ctrl_c_while_replicas_load_ends_them():
    """Nobody waits for readiness any more."""
    process = subprocess.Popen([SESSILE, "up", "--port", "0"], stderr=subprocess.PIPE, text=True)
    up = Up(process, "")
    until(lambda: sum("engines.embedded" in command for command in up.children().values()) == 2)
    children = up.children()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 0 and "Traceback" not in said
    assert not alive(children)


def test_a_port_in_use_is_said_before_anything_starts():
    """One sentence with the remedy, exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run([SESSILE, "up", "--port", port], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and f":{port}" in ended.stderr and "--port" in ended.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "no-such-model"], MODEL),
        (["--model", __file__], "not a GGUF"),
        (["--policy", "guess"], "router.policy"),
        (["--host", "0.0.0.0"], "API_KEYS"),
        (["-c", "/nowhere.toml"], "cannot read"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_sentence(flags, said):
    """Exit code 2 before any process is started."""
    ended = subprocess.run([SESSILE, "up", "--port", "0", *flags], capture_output=True, text=True)
    assert ended.returncode == 2
    assert said in ended.stderr and "Traceback" not in ended.stderr


def test_a_model_that_does_not_load_is_said_with_the_engine_s_last_words(tmp_path):
    """A file that begins like a model and is none ends `up` instead of restarting for ever."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 1000)
    ended = subprocess.run(
        [SESSILE, "up", "--port", "0", "--replicas", "1", "--model", str(broken)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "cannot start" in ended.stderr and "error loading model" in ended.stderr
    assert "Traceback" not in ended.stderr


def alive(pids: dict[int, str]) -> list[str]:
    """The processes of `pids` that still run."""
    return [
        command
        for pid, command in pids.items()
        if command and _read(Path(f"/proc/{pid}/cmdline")) == command
    ]


def until(true: Callable[[], bool]) -> None:
    """Wait for what must come true; the test's own time-out says that it did not."""
    while not true():
        time.sleep(0.1)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
