"""Child processes of a benchmark: a router, a mock replica; started, waited for, stopped."""

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from sessile.engines.embedded_store import find_server
from sessile.engines.guard import guarded
from sessile.engines.scratch import private_folder
from sessile.errors import ReplicaError, RouterUnreachable, SettingsError
from sessile.router.connection import Timeouts
from sessile.router.engine import Call
from sessile.router.upstream import Upstream

_STOP_S = 20.0
_STORE_UP_S = 10.0


@asynccontextmanager
async def child(
    arguments: Sequence[str], url: str, path: str, ready_s: float
) -> AsyncIterator[int]:
    """Run `python ARGUMENTS` until the block ends; yields its pid once `path` answers 200.

    Raises `RouterUnreachable` with its last words if it does not come up.
    """
    process = await asyncio.create_subprocess_exec(
        *guarded([sys.executable, *arguments]),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    said: list[str] = []
    reading = asyncio.create_task(_drain(process.stderr, said))
    try:
        if not await _answers(url, path, ready_s, process):
            tail = " | ".join(said[-3:]) or "it said nothing"
            raise RouterUnreachable(f"{' '.join(arguments[:3])} did not come up: {tail}")
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await reading


def cpu_s(pid: int) -> float:
    """CPU seconds that all threads of a process have used (Linux, to the nanosecond)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def family(pid: int) -> list[int]:
    """A process and all that it has started, and they (Linux)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [pid, *(each for child in children for each in family(child))]


def memory_bytes(pid: int, kind: str = "Pss") -> int:
    """The process's memory (Linux): `Pss`, its proportional share, or `Rss`, all it has mapped."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    return 0


def allow_files(count: int) -> None:
    """Let this process, and those it starts, hold `count` file descriptors, if the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_files(pid: int) -> int:
    """How many file descriptors a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class RedisProcess:
    """A Redis or Valkey of our own, at a Unix socket; it keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "redis.sock"
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    async def start(self) -> None:
        """Start it, empty. Raises `SettingsError` if there is none on this machine."""
        binary = shutil.which("redis-server") or shutil.which("valkey-server") or find_server()
        if binary is None:
            raise SettingsError("a store is needed: install redis-server, or sessile[local]")
        self._path.unlink(missing_ok=True)
        command = [
            str(binary), "--port", "0", "--unixsocket", str(self._path), "--save", "",
            "--appendonly", "no", "--dir", str(self._folder), "--daemonize", "no",
        ]  # fmt: skip
        self._process = await asyncio.create_subprocess_exec(
            *guarded(command), stdout=asyncio.subprocess.DEVNULL
        )
        until = time.monotonic() + _STORE_UP_S
        while not self._path.exists():
            if time.monotonic() > until:
                raise RouterUnreachable("the store of the benchmark did not come up")
            await asyncio.sleep(0.01)

    async def kill(self) -> None:
        """At once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    def hold(self, still: bool) -> None:
        """Let it do nothing, or go on: it is there, and does not answer."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP if still else signal.SIGCONT)


@asynccontextmanager
async def own_redis() -> AsyncIterator[RedisProcess]:
    """A store of the block's own, started empty."""
    with private_folder() as folder:
        redis = RedisProcess(folder)
        try:
            await redis.start()
            yield redis
        finally:
            await redis.kill()


async def _drain(stream: asyncio.StreamReader, said: list[str]) -> None:
    async for line in stream:
        said.append(line.decode("utf-8", "replace").rstrip())
        del said[:-20]


async def _answers(
    url: str, path: str, ready_s: float, process: asyncio.subprocess.Process
) -> bool:
    upstream = Upstream(url, Timeouts(connect_s=1.0, first_byte_s=5.0, idle_s=5.0))
    until = time.monotonic() + ready_s
    try:
        while time.monotonic() < until and process.returncode is None:
            try:
                if (await upstream.call(Call("GET", path), 5.0)).status == 200:
                    return True
            except ReplicaError:
                pass  # not up yet
            await asyncio.sleep(0.05)
        return False
    finally:
        await upstream.aclose()


async def all_ready(url: str, within_s: float) -> None:
    """Wait until every replica of the router at `url` is ready. Raises `RouterUnreachable`."""
    upstream = Upstream(url, Timeouts(connect_s=1.0, first_byte_s=5.0, idle_s=5.0))
    until = time.monotonic() + within_s
    try:
        while time.monotonic() < until:
            reply = await upstream.call(Call("GET", "/ready"), 5.0)
            counts = msgspec.json.decode(reply.body)["replicas"]
            if counts["ready"] == counts["total"]:
                return
            await asyncio.sleep(0.1)
    finally:
        await upstream.aclose()
    raise RouterUnreachable(f"not every replica of {url} was ready within {within_s:.0f} s")
