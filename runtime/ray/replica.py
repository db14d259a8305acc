"""One replica as an actor of Ray Serve: it starts an engine, says that it is up, and ends it.

The engine's requests do not pass through Ray: routers speak to its URL. Ray Serve decides when the
replica comes and goes; on its way out it drains, whatever the reason (fewer are wanted, a new
version, a node that is given back).
"""

import asyncio
import logging
import math
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from sessile import models
from sessile.engines.kinds import engine
from sessile.engines.progress import last_words
from sessile.engines.supervisor import Listener, Supervised, free_ports
from sessile.errors import ReplicaError, SettingsError
from sessile.ray.arguments import RayArguments
from sessile.ray.policy import figures
from sessile.ray.roll import BEAT_S, Beat, Signals
from sessile.router.connection import Timeouts
from sessile.router.upstream import Upstream

log = logging.getLogger("ray.serve")

_LOOK_S = 0.1
_DRAIN_LOOK_S = 0.5
_TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=10.0, idle_s=10.0)
_CALL_S = 3.0
_STOP_S = 20.0
_MOST_ENDS = 3  # within _ENDS_S: the engine is not to be kept up here
_ENDS_S = 120.0
_AWAY = (RayError, RayServeException, TimeoutError)


class EngineReplica:
    """Made by Ray Serve once for each replica, in a process of its own; ready once made."""

    _child: Supervised | None = None  # what there is of it when `__init__` has failed
    _tasks: tuple[asyncio.Task[None], ...] = ()

    async def __init__(self, arguments: dict[str, Any], roll: str) -> None:  # type: ignore[misc]
        self._arguments = given = RayArguments.model_validate(arguments)
        context = serve.get_replica_context()
        name = f"{context.app_name}-{context.replica_id.unique_id}"
        self._roll = serve.get_deployment_handle(roll, context.app_name)
        self._signals = Signals()
        host = ray.util.get_node_ip_address()
        # Its KV events take a port a data-parallel rank, of which it has no more than GPUs.
        port, *others = free_ports(3, max(1, math.ceil(given.gpus)))
        alias, command = await asyncio.to_thread(_command, given, host, port, others)
        folder = given.kv_folder if not given.command else None
        self._beat = Beat(name, given.engine, f"http://{host}:{port}", alias, folder)
        self._told = msgspec.json.encode(self._beat)
        self._upstream = Upstream(self._beat.url, _TIMEOUTS)
        self._ends: deque[float] = deque(maxlen=_MOST_ENDS)
        listener = Listener(_nobody, lambda *_: self._ends.append(time.monotonic()))
        # An engine of its own command starts processes for its ranks, which are to end with it.
        self._child = Supervised(name, command, listener, tree=bool(given.command), stop_s=_STOP_S)
        supervising = asyncio.create_task(self._child.run())
        try:
            await self._until_up(given.ready_s)
        except BaseException:  # cancelled, or not up: no engine stays behind
            supervising.cancel()
            await asyncio.wait((supervising,))
            raise
        self._tasks = (supervising, asyncio.create_task(self._tell()))

    async def wake(self) -> None:
        """Answered once a replica is up: who calls it at none makes Ray Serve start one."""

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The application's load, for `sessile.ray.policy`."""
        return figures(self._signals)

    async def check_health(self) -> None:
        """Raises when the engine cannot be kept up here: Ray Serve starts a replica elsewhere."""
        ends = self._ends
        if len(ends) == _MOST_ENDS and time.monotonic() - ends[0] < _ENDS_S:
            raise SettingsError(self._last_words("dies again and again"))

    async def __del__(self) -> None:
        """Drain, then end the engine. Called by Ray Serve, which waits for it."""
        if not self._tasks:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._arguments.drain_s):
                while True:
                    if await self._is_drained():
                        break
                    await asyncio.sleep(_DRAIN_LOOK_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(*_AWAY):
            await self._ask("gone", self._beat.id)
        await self._upstream.aclose()

    async def _is_drained(self) -> bool:
        """Whether no router has anything here any more; by the engine's own word where the roll is
        away, as when the whole application is deleted."""
        try:
            return bool(await self._ask("leave", self._told))
        except _AWAY:
            pass
        adapter = engine(self._arguments.engine)
        try:
            replies = [await self._upstream.call(c, _CALL_S) for c in adapter.load_calls()]
            load = adapter.read_load(tuple(replies), time.time())
        except ReplicaError:
            return True  # it has gone already
        return not (load.running or load.waiting)

    async def _ask(self, method: str, told: object) -> Any:
        """Call the roll; a handle would wait for ever for one that is gone."""
        async with asyncio.timeout(_CALL_S):
            return await getattr(self._roll, method).remote(told)

    async def _tell(self) -> None:
        """Say that it is up, and hear of the load, until cancelled."""
        while True:
            try:
                answer = await self._ask("beat", self._told)
                self._signals = msgspec.json.decode(answer, type=Signals)
            except _AWAY as error:
                log.warning("the roll was not reached replica=%s why=%r", self._beat.id, error)
            await asyncio.sleep(BEAT_S)

    async def _until_up(self, within_s: float) -> None:
        """Wait for the engine; raises `SettingsError` with its last words."""
        adapter = engine(self._arguments.engine)
        try:
            async with asyncio.timeout(within_s):
                while True:
                    with suppress(ReplicaError):
                        reply = await self._upstream.call(adapter.health_call(), _TIMEOUTS.idle_s)
                        adapter.read_health(reply)
                        return
                    if self._ends:
                        raise SettingsError(self._last_words("cannot start"))
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as error:
            late = f"was not up within {within_s:.0f} s"
            raise SettingsError(self._last_words(late)) from error

    def _last_words(self, what: str) -> str:
        child = self._child
        said = child and (last_words(child.last_lines) or child.ended)
        return f"the engine {what}: {said or 'it said nothing'}"


def _command(
    given: RayArguments, host: str, port: int, events: Sequence[int]
) -> tuple[str, list[str]]:
    """The model's name and what starts the engine; pulls the model if this node has it not."""
    if given.command:
        return given.model, given.filled(host, port, *events)
    alias, path = models.resolve(given.model)
    return alias, [
        sys.executable, "-m", "sessile.engines.embedded", "--alias", alias,
        "--model", str(path or models.pull(alias, _quiet)), "--host", host, "--port", str(port),
        "--threads", str(given.threads), "--context", str(given.context_tokens),
        "--slots", str(given.slots), "--slots-dir", given.kv_folder or tempfile.gettempdir(),
    ]  # fmt: skip


def _nobody(*_: object) -> None:
    """Probes tell routers of every start."""


def _quiet(what: str, done: int, total: int) -> None:
    if not done:
        log.info("pulling what=%r bytes=%d", what, total)
