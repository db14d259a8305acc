"""Starts replicas as child processes, keeps them up, and stops them. Whether one serves is the
probe's to find out; here only the process is watched."""

import asyncio
import contextlib
import logging
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from sessile.engines.guard import guarded
from sessile.errors import SettingsError
from sessile.router.replica import ReplicaSpec

log = logging.getLogger("sessile.supervisor")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 30.0  # up for so long, a process has earned the short pause again
_STOP_S = 5.0
_SHOWN_LINES = 8


class ReplicaPlan(msgspec.Struct, frozen=True, kw_only=True):
    """An embedded replica to start: its model's file and name, and its share of the machine."""

    id: str
    model: Path
    alias: str
    threads: int
    context_tokens: int
    slots: int


class Listener(msgspec.Struct, frozen=True):
    """Who is told of every start and every end: (replica id, incarnation), (replica id, why)."""

    started: Callable[[str, str], None]
    stopped: Callable[[str, str], None]


class Supervised:
    """One process that is started again when it dies. Made and ended by a `Supervisor`."""

    def __init__(self, name: str, command: Sequence[str], listener: Listener) -> None:
        self.name = name
        self.incarnation = ""
        self.failed_at_once = False
        self.last_lines: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._command = command
        self._listener = listener
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the present incarnation."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Keep it up until cancelled, then stop it: SIGTERM, and SIGKILL if that is not heard."""
        pause_s = _FIRST_PAUSE_S
        try:
            while True:
                began = time.monotonic()
                code = await self._once()
                lived_s = time.monotonic() - began
                why = f"its process ended with {code} after {lived_s:.1f} s"
                if self.last_lines:
                    why += ": " + " | ".join(self.last_lines)
                self.failed_at_once = lived_s < _FIRST_PAUSE_S * 4
                self._listener.stopped(self.name, why)
                pause_s = _FIRST_PAUSE_S if lived_s > _STEADY_S else pause_s
                log.warning(
                    "process ended replica=%s restart_s=%.1f why=%r", self.name, pause_s, why
                )
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        finally:
            await self._stop()

    async def _once(self) -> int:
        self.last_lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            *guarded(list(self._command)),
            stdin=asyncio.subprocess.PIPE,  # its end tells the child that we are gone
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**20,
            start_new_session=True,  # Ctrl-C is for us; the children are stopped in order
        )
        self.incarnation = secrets.token_hex(6)
        log.debug("process started replica=%s pid=%d", self.name, self._process.pid)
        self._listener.started(self.name, self.incarnation)
        assert self._process.stdout is not None
        # NOTE: read to the end whatever comes: a child whose pipe is full stands still.
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                continue  # a line over the limit: what was read of it is dropped, the rest is next
            if not line:
                return await self._process.wait()
            text = line.decode("utf-8", "replace").rstrip()
            self.last_lines.append(text)
            log.debug("replica said replica=%s line=%r", self.name, text)

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


class Supervisor:
    """The embedded replicas of one `sessile up`; an async context manager that ends them all.

    They save slots in `folder`, which outlives it.
    """

    def __init__(self, plans: Sequence[ReplicaPlan], listener: Listener, folder: Path) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self.specs: list[ReplicaSpec] = []
        self.children: list[Supervised] = []
        for plan, port in zip(plans, free_ports(len(plans)), strict=True):
            self.specs.append(
                ReplicaSpec(
                    id=plan.id, engine="llamacpp", url=f"http://127.0.0.1:{port}",
                    model=plan.alias, incarnation="starting", folder=str(folder),
                )
            )  # fmt: skip
            command = _command(plan, port, folder)
            self.children.append(Supervised(plan.id, command, listener))

    async def __aenter__(self) -> "Supervisor":
        self._tasks = [
            asyncio.create_task(child.run(), name=f"supervise {child.name}")
            for child in self.children
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Raise `SettingsError` with its last words if a replica cannot even start."""
        for child in self.children:
            if child.failed_at_once and child.last_lines:
                raise SettingsError(f"replica {child.name} cannot start: {child.last_lines[-1]}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _command(plan: ReplicaPlan, port: int, slots_dir: Path) -> list[str]:
    return [
        sys.executable, "-m", "sessile.engines.embedded",
        "--model", str(plan.model), "--alias", plan.alias, "--port", str(port),
        "--threads", str(plan.threads), "--context", str(plan.context_tokens),
        "--slots", str(plan.slots), "--slots-dir", str(slots_dir),
    ]  # fmt: skip
