"""`sessile up` with engines of other environments: a stand-in, started as SGLang would be."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from sessile.engines.supervisor import free_ports

SESSILE = str(Path(sys.executable).with_name("sessile"))
FAKE = Path(__file__).with_name("fake_sglang.py")


class Site:
    """A folder that holds a package `sglang`, a model, and the settings that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        package = folder / "site" / "sglang"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        shutil.copy(FAKE, package / "launch_server.py")
        about = folder / "site" / "sglang-0.5.99.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.99\n")
        (about / "top_level.txt").write_text("sglang\n")
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text('{"model_type": "llama", "vocab_size": 10}')

    def settings(self, *lines: str, way: str = "serve") -> str:
        """The path of settings with one pool of SGLang's, with these lines more."""
        path = self.folder / "sessile.toml"
        env = f'PYTHONPATH = "{self.folder / "site"}", FAKE_WAY = "{way}"'
        python = [] if any(line.startswith("python") for line in lines) else [
            f'python = "{sys.executable}"'
        ]  # fmt: skip
        path.write_text(
            "\n".join(
                ["[[pool]]", 'engine = "sglang"', f'model = "{self.folder / "model"}"',
                 f"env = {{ {env} }}", *python, *lines]
            )
        )  # fmt: skip
        return str(path)

    def up(self, *flags: str) -> subprocess.Popen[str]:
        """A running `sessile up`, its cache in this folder, on a free port."""
        up = subprocess.Popen(
            [SESSILE, "up", "--port", "0", *flags], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
            env={**os.environ, "SESSILE_CACHE_DIR": str(self.folder / "cache")},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        self.started.append(up)
        return up

    def end(self) -> None:
        """Kill what a test that failed has left."""
        for up in self.started:
            up.kill()
            up.communicate()

    def processes(self) -> dict[int, str]:
        """What runs of this site, its deaf children among them."""
        found = {}
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"PYTHONPATH={self.folder}" in environ.read_text(errors="replace"):
                    line = environ.with_name("cmdline").read_text().replace("\0", " ")
                    found[int(environ.parent.name)] = line
            except OSError:
                continue  # it has ended
        return {pid: line for pid, line in found.items() if line}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A stand-in of SGLang's, installed."""
    site = Site(tmp_path)
    yield site
    site.end()


def until(true: Callable[[], object]) -> None:
    """Wait for what must come true; the test's own time-out says that it did not."""
    while not true():
        time.sleep(0.1)


def served(up: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """The address of the router, once all replicas are up, and what was said until then."""
    assert up.stderr is not None
    said: list[str] = []
    for line in up.stderr:
        said.append(line)
        if "Ctrl-C" in line:
            break
    url = next(word for line in said for word in line.split() if word.startswith("http"))
    return url.rstrip(",").removesuffix("/v1"), said


def test_replicas_start_say_what_they_do_heal_and_leave_nothing(site: Site):
    """Two of them; one killed comes back; Ctrl-C ends them and the children that they forgot."""
    up = site.up("-c", site.settings("replicas = 2", way="slow"))
    url, said = served(up)
    text = "".join(said)
    assert "starting 2 replicas of model (sglang)" in text
    assert "SGLang 0.5.99 lacks --enable-cache-report" in text
    for name in ("local-0", "local-1"):
        assert f"{name}: loading weights" in text and f"{name}: KV memory allocated" in text
    body = {"model": "model", "messages": [{"role": "user", "content": "hi"}]}
    answered = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert answered.json()["choices"][0]["message"]["content"] == "hello"

    def replica() -> dict[str, str]:
        found = httpx2.get(f"{url}/sessile/v1/replicas", timeout=10).json()["replicas"]
        return next(each for each in found if each["id"] == "local-0")

    before = replica()
    port = before["url"].rpartition(":")[2]
    engine = next(
        pid for pid, line in site.processes().items()
        if f"--port {port}" in line and "keeper" not in line
    )  # fmt: skip
    os.kill(engine, signal.SIGKILL)
    until(lambda: replica()["incarnation"] != before["incarnation"])
    until(lambda: replica()["state"] == "ready")
    assert sum("fake-scheduler" in line for line in site.processes().values()) == 2
    logs = list((site.folder / "cache" / "logs").rglob("local-0.log"))
    assert logs and logs[0].read_text().count("Load weight begin") == 2
    up.send_signal(signal.SIGINT)
    assert "stopping 2 replicas" in up.communicate(timeout=30)[1]
    assert up.returncode == 0
    assert not site.processes()


def test_one_that_dies_again_and_again_is_started_later_each_time(site: Site):
    """With its last words each time, though it has served between."""
    up = site.up("-c", site.settings(way="dies"))
    url, _ = served(up)
    body = {"model": "model", "messages": [{"role": "user", "content": "hi"}]}

    def replica() -> dict[str, str]:
        (found,) = httpx2.get(f"{url}/sessile/v1/replicas", timeout=10).json()["replicas"]
        return found

    for _ in range(3):
        until(lambda: replica()["state"] == "ready")
        before = replica()["incarnation"]
        answered = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=30)
        assert answered.status_code >= 500
        until(lambda before=before: replica()["incarnation"] != before)
    up.send_signal(signal.SIGINT)
    said = up.communicate(timeout=30)[1]
    ends = re.findall(
        r"restart_s=([\d.]+) why='its process ended with 3 after [\d.]+ s: (.*)'", said
    )
    assert [pause for pause, _ in ends] == ["0.5", "1.0", "2.0"]
    assert all(re.fullmatch(r"RuntimeError: the kernel of \d+ was lost", w) for _, w in ends)
    assert len({words for _, words in ends}) == 3


def test_an_engine_that_has_work_to_end_is_waited_for(site: Site):
    """It is told to end once, and ends by itself; what it forgot is ended for it."""
    up = site.up("-c", site.settings(way="orderly"))
    served(up)
    up.send_signal(signal.SIGINT)
    assert up.wait(30) == 0 and not site.processes()
    (log,) = (site.folder / "cache" / "logs").rglob("local-0.log")
    assert log.read_text().splitlines()[-2:] == ["draining", "all drained, goodbye"]


def test_sigkill_leaves_nothing(site: Site):
    """The keeper sees its end, and ends what it kept."""
    up = site.up("-c", site.settings())
    served(up)
    assert len(site.processes()) == 3
    up.kill()
    up.communicate()
    until(lambda: not site.processes())


@pytest.mark.parametrize(
    ("lines", "way", "said"),
    [
        (['args = ["--bogus", "1"]'], "serve",
         ["local-0 cannot start", "unrecognized arguments: --bogus 1", "correct pool.args"]),
        ([], "memory", ["local-0 cannot start", "CUDA out of memory", "fewer replicas", ".log"]),
        ([], "taken", ["local-0 cannot start", "address already in use", "leave --port out"]),
        (['python = "/nowhere/bin/python"'], "serve", ["/nowhere/bin/python is not there"]),
        (["gpus = [63]"], "serve", ["there is no GPU 63"]),
        (["[pool.speculation]", 'method = "suffix"'], "serve", ["does not speculate on a CPU"]),
        (["replicas = 2", 'args = ["--port", "31999"]'], "serve", ["2 replicas can have"]),
    ],
)  # fmt: skip
def test_an_engine_that_cannot_start_is_one_sentence(site: Site, lines, way, said):
    """With its own last words and the remedy, exit code 2, and nothing left."""
    up = site.up("-c", site.settings(*lines, way=way))
    _, error = up.communicate(timeout=60)
    assert up.returncode == 2 and "Traceback" not in error
    last = error.strip().splitlines()[-1]
    for part in said:
        assert part in last
    assert not site.processes()


def test_an_engine_that_answers_as_no_known_version_does_is_told(site: Site):
    """While others would only be waited for."""
    up = site.up("-c", site.settings(way="strange"))
    assert up.stderr is not None
    said = next(line for line in up.stderr if "it answers" in line)
    assert said == "local-0: it answers, but its /server_info answered 404\n"
    up.send_signal(signal.SIGINT)
    assert up.wait(30) == 0 and not site.processes()


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(site: Site):
    """By the port, with the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = site.up("-c", site.settings(f'args = ["--port", "{port}"]'))
        _, error = up.communicate(timeout=60)
    assert up.returncode == 2 and f"port {port} is in use" in error


def test_an_engine_that_is_not_installed_is_said(site: Site):
    """With the interpreter that lacks it."""
    path = Path(site.settings())
    path.write_text(path.read_text().replace(str(site.folder / "site"), "/nowhere"))
    up = site.up("-c", str(path))
    _, error = up.communicate(timeout=60)
    assert up.returncode == 2 and f"sglang is not installed for {sys.executable}" in error


def test_a_dry_run_prints_the_commands_and_starts_nothing(site: Site):
    """On standard output, one a replica, that a shell takes as they are."""
    up = site.up("-c", site.settings("replicas = 2"), "--dry-run")
    printed, _ = up.communicate(timeout=60)
    commands = [line for line in printed.splitlines() if not line.startswith("#")]
    assert up.returncode == 0 and len(commands) == 2 and not site.processes()
    asked = subprocess.run(
        ["bash", "-c", f"{commands[0]} --help"], capture_output=True, text=True, timeout=60
    )
    assert asked.returncode == 0 and "--served-model-name" in asked.stdout


def test_declared_adapters_are_in_the_command_of_their_model(site: Site):
    """By an alias, too; one whose files are elsewhere is told with what to add."""
    about = site.folder / "lora" / "adapter_config.json"
    about.parent.mkdir()
    about.write_text('{"r": 12, "target_modules": ["v_proj", "q_proj"]}')
    lines = [
        "replicas = 1", "[aliases]", 'small = "model"',
        "[[adapter]]", 'name = "sql"', 'base = "small"', f'path = "{about.parent}"',
        "[[adapter]]", 'name = "far"', 'base = "model"', 'path = "org/far"',
    ]  # fmt: skip
    up = site.up("-c", site.settings(*lines), "--dry-run")
    printed, told = up.communicate(timeout=60)
    asked = "--enable-lora --max-lora-rank 12 --lora-target-modules q_proj v_proj"
    assert f"{asked} --lora-backend torch_native" in printed
    said = " ".join(told.split())
    assert "adapter far: no adapter_config.json can be read in org/far" in said
    assert "adapter sql" not in said


def test_ports_that_are_to_be_in_a_row_are_all_free():
    """A server of ranks publishes at each; what a run has, no other has."""
    runs = free_ports(3, 8)
    ports = [first + n for first in runs for n in range(8)]
    assert len(set(ports)) == 24
    for port in ports:
        with socket.socket() as free:
            free.bind(("127.0.0.1", port))
