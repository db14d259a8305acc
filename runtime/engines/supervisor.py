"""Starts replicas as child processes, keeps them up, and stops them. Whether one serves is the
probe's to find out; here only the process is watched."""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from sessile.engines.back_off import BackOff
from sessile.engines.guard import guarded
from sessile.engines.launch import Launch
from sessile.engines.process_log import ProcessLog
from sessile.engines.progress import ending, hopeless, last_words, remedy, stage
from sessile.errors import SettingsError

log = logging.getLogger("sessile.supervisor")

_STOP_S = 5.0
_OVER_S = 5.0  # what a keeper has beyond the time that it gives its engine
_SHOWN_LINES = 200
_LAST_LINES_S = 1.0  # for what is still in the pipe of one that was stopped
_PORTS = (12000, 22000)  # below what SGLang takes for itself, and the kernel for connections


class Listener(msgspec.Struct, frozen=True):
    """Who is told of every start and every end: (replica id, incarnation), (replica id, why)."""

    started: Callable[[str, str], None]
    stopped: Callable[[str, str], None]


class Supervised:
    """One process that is started again when it dies. Made and ended by a `Supervisor`.

    With `tree` it runs under a keeper (`sessile.engines.keeper`), which ends what it started too.
    All that it writes goes to `lines_to`, its last lines are kept.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        listener: Listener,
        *,
        env: Mapping[str, str] | None = None,
        stop_s: float = _STOP_S,
        tree: bool = False,
        lines_to: ProcessLog | None = None,
    ) -> None:
        self.name = name
        self.incarnation = ""
        self.ended: str | None = None
        """Why it ended the last time, if it ever did."""
        self.stage: str | None = None
        """What it is doing while it starts, as it tells."""
        self.heard_at = time.monotonic()
        """When it last wrote a line, or was started."""
        self.last_lines: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._command = list(command)
        self._listener = listener
        self._env = env
        self._stop_s = stop_s
        self._tree = tree
        self._log = lines_to
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the present incarnation."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Keep it up until cancelled, then stop it: SIGTERM, and SIGKILL if that is not heard."""
        back_off = BackOff()
        try:
            while True:
                began = time.monotonic()
                code = await self._once()
                lived_s = time.monotonic() - began
                why = f"its process {ending(code)} after {lived_s:.1f} s"
                if words := last_words(self.last_lines):
                    why += f": {words}"
                self.ended = why
                self._listener.stopped(self.name, f"it is started again, since {why}")
                pause_s = back_off.pause_s(lived_s)
                log.warning(
                    "process ended replica=%s restart_s=%.1f why=%r", self.name, pause_s, why
                )
                await asyncio.sleep(pause_s)
        finally:
            await self._stop()
            if self._reading is not None:
                await asyncio.wait((self._reading,), timeout=_LAST_LINES_S)
                self._reading.cancel()

    async def _once(self) -> int:
        self.last_lines.clear()
        self.stage, self.heard_at = None, time.monotonic()
        self._process = await asyncio.create_subprocess_exec(
            *self._tied(),
            stdin=asyncio.subprocess.PIPE,  # its end tells the child that we are gone
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**20,
            env=self._env,
            start_new_session=True,  # Ctrl-C is for us; the children are stopped in order
        )
        self.incarnation = secrets.token_hex(6)
        log.debug("process started replica=%s pid=%d", self.name, self._process.pid)
        self._listener.started(self.name, self.incarnation)
        self._reading = asyncio.create_task(self._read(self._process), name=f"read {self.name}")
        code = await self._process.wait()
        self._end_group()  # whoever still holds its pipe would be read for ever
        await self._reading
        return code

    def _tied(self) -> list[str]:
        if not self._tree:
            return guarded(self._command)
        keeper = [sys.executable, "-m", "sessile.engines.keeper", f"{self._stop_s:g}"]
        return [*keeper, *self._command]

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        # NOTE: read to the end whatever comes: a child whose pipe is full stands still.
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # a line over the limit: what was read of it is dropped, the rest is next
            if not line:
                return
            # A progress bar writes over its line: what is seen of it in the end is the last part.
            text = line.decode("utf-8", "replace").rstrip().rpartition("\r")[2]
            self.heard_at = time.monotonic()
            self.stage = stage(text) or self.stage
            self.last_lines.append(text)
            if hopeless(text):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            if self._log is not None:
                self._log.write(text)
            else:
                log.debug("replica said replica=%s line=%r", self.name, text)

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                async with asyncio.timeout(self._stop_s + (_OVER_S if self._tree else 0)):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._end_group()

    def _end_group(self) -> None:
        """What of its process group is left. It had a session of its own, so the group is its."""
        if self._process is not None and hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


class Supervisor:
    """The replicas of one `sessile up`; an async context manager that ends them all.

    What they write is kept in `logs`, a file each.
    """

    def __init__(self, launches: Sequence[Launch], listener: Listener, logs: Path) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._logs = logs
        self._fresh: dict[str, Supervised] = {}
        self.specs = [launch.spec for launch in launches]
        self.children: list[Supervised] = []
        for launch in launches:
            child = Supervised(
                launch.id, launch.command, listener, env=environment(launch), tree=launch.tree,
                stop_s=launch.stop_s, lines_to=ProcessLog(self.log_of(launch.id)),
            )  # fmt: skip
            self.children.append(child)
            self._fresh[launch.id] = child

    def log_of(self, replica_id: str) -> Path:
        """The file that holds what a replica writes."""
        return self._logs / f"{replica_id}.log"

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

    def served(self, replica_id: str) -> None:
        """The replica was seen to serve: from now on its end is no failure to start."""
        self._fresh.pop(replica_id, None)

    def check(self, silent_s: float) -> None:
        """Raise `SettingsError` with its last words if a replica that never served has ended, or
        has said nothing for `silent_s`."""
        for name, child in self._fresh.items():
            silent = time.monotonic() - child.heard_at > silent_s
            if child.ended is None and not silent:
                continue
            words = child.ended or f"it has said nothing for {silent_s:.0f} s, and does not serve"
            told = f"replica {name} cannot start: {words}"
            if hint := remedy(words):
                told += f" ({hint})"
            raise SettingsError(f"{told}; all that it said is in {self.log_of(name)}")


def environment(launch: Launch) -> dict[str, str]:
    """Ours, with what the launch sets; its interpreter's folder first on the path, where engines
    look for the tools of their environment (ninja)."""
    whole = {**os.environ, **launch.env}
    if launch.first_on_path:
        whole["PATH"] = f"{launch.first_on_path}{os.pathsep}{whole.get('PATH', '')}"
    return whole


def free_ports(count: int, run: int = 1) -> list[int]:
    """Ports of the loopback interface that nobody listens on, each the first of `run` such, and
    that stay free for the long start of an engine: those that others take meanwhile, for outgoing
    connections or (SGLang, from 22000 on) between their processes, are not among them, unless
    there is no other and one is enough."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            for port in (*random.sample(range(*_PORTS), 50), *((0,) if run == 1 else ())):
                if held := _hold(port, run):
                    found.append(held[0].getsockname()[1])
                    for each in held:
                        stack.enter_context(each)
                    break
    return found


def _hold(first: int, run: int) -> list[socket.socket]:
    """Sockets on that port and those after it; none where one of them is taken."""
    with contextlib.ExitStack() as stack:
        held = []
        for port in range(first, first + run):
            each = stack.enter_context(socket.socket())
            held.append(each)
            try:
                each.bind(("127.0.0.1", port))
            except OSError:
                return []
        stack.pop_all()
    return held
