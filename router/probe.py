"""Looks at replicas at an interval, and tells the pool what they say of themselves.

A replica is up when its identity and health can be read, down when two looks in a row fail or one
is refused a connection; a look that takes too long while turns there are being answered counts for
nothing. A look costs a few cheap calls; none of them runs a generation. One look is
of a whole server: its data-parallel ranks answer at one URL.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from sessile.errors import ReplicaError, ReplicaRefused, ReplicaTimeout, ReplicaUnreachable
from sessile.router.engine import Call, Load, Reply
from sessile.router.pool import Pool
from sessile.router.replica import Replica
from sessile.router.server import Server

log = logging.getLogger("sessile.probe")

_STARTING_INTERVAL_S = 0.1  # a replica that is coming up is looked at often: it costs it nothing
_IDENTITY_EVERY = 10  # looks: a restart between two looks shows here, if nowhere else


class Probe:
    """The task that watches one server. Made by `Probes`, ends with the server."""

    def __init__(
        self, pool: Pool, server: Server, interval_s: float, timeout_s: float,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._pool = pool
        self._server = server
        self._named = server.engine  # as the settings name it; it may be known only once it is up
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._looks = 0
        self._missed = 0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            waiting = self._server.state == "starting"
            await asyncio.sleep(_STARTING_INTERVAL_S if waiting else self._interval_s)

    async def look(self) -> None:
        """One look; never raises for what the server does."""
        server, name = self._server, self._server.spec.id
        began = time.monotonic()
        try:
            coming_up = server.state in ("starting", "down")
            if coming_up:
                await self._detect()
            await self._health()
            if coming_up:
                await self._identify()
            if calls := server.engine.load_calls():
                replies = await self._replies(calls)
                for replica in server.replicas:
                    load = replica.engine.read_load(replies, self._clock())
                    replica.reported(load, time.monotonic())
                    await self._lay_ghosts(replica, load)
            if not coming_up and self._looks % _IDENTITY_EVERY == 0:
                # NOTE: a busy engine may tell it late (SGLang's waits for the end of a prefill,
                # many seconds on a CPU): that is no sign of trouble.
                with suppress(ReplicaTimeout):
                    await self._identify()
            self._looks += 1
            self._missed = 0
            server.refuses = False
        except ReplicaError as error:
            if isinstance(error, ReplicaTimeout) and self._speaks(began):
                return
            self._missed += 1
            self._looks = 0
            unreachable = isinstance(error, ReplicaUnreachable)
            if not (unreachable and self._is_awaited()):
                for replica in server.replicas:
                    # A trial that failed has ended what was under way there, this look too.
                    replica.why = replica.doubts.refused or error.message
                if self._missed > 1 or unreachable:
                    self._pool.mark_down(name, error.message)
            server.refuses = isinstance(error, ReplicaRefused)

    def _speaks(self, since: float) -> bool:
        """Whether it has said something of an answer since then, and so is only busy."""
        server = self._server
        return server.state in ("ready", "draining") and any(
            r.doubts.heard_at > since for r in server.replicas
        )

    def _is_awaited(self) -> bool:
        """Whether its launcher has told more than that it does not serve yet."""
        server = self._server
        return server.launched and server.state in ("starting", "down")

    async def _detect(self) -> None:
        """Find out which engine answers, where nobody has said. Asked anew each time it comes up:
        another may answer then."""
        if not (calls := self._named.detect_calls()):
            return
        found = self._named.detected(await self._replies(calls))
        server = self._server
        if found is not server.engine:
            server.engine = found
            for replica in server.replicas:
                replica.engine = found if replica.rank is None else found.at_rank(replica.rank)
            log.info("engine found replica=%s url=%s engine=%s", server.spec.id, server.spec.url,
                     found.kind)  # fmt: skip

    async def _health(self) -> None:
        (reply,) = await self._replies((self._server.engine.health_call(),))
        self._server.engine.read_health(reply)

    async def _identify(self) -> None:
        engine, shelf = self._server.engine, self._server.replicas[0].outlook.shelf
        moves = shelf.moves
        identity = engine.read_identity(await self._replies(engine.identity_calls()))
        old = shelf.moves != moves  # an adapter was loaded or dropped while the engine told of them
        for replica in self._pool.seen(self._server.spec.id, identity, old_adapters=old):
            await replica.upstream.aclose()

    async def _lay_ghosts(self, replica: Replica, load: Load) -> None:
        """Stop what the replica runs for no one, where its engine can stop a request by its id."""
        if load.running is None:
            return
        known = replica.upstream.streams + replica.foreign_streams
        reported = load.running + (load.waiting or 0)
        ghosts = replica.ghosts
        new, left = ghosts.look(reported, known, replica.turns + replica.failures)
        if not new:
            return
        calls = [call for name in left if (call := replica.engine.abort_call(name)) is not None]
        log.warning("replica ran requests for no one replica=%s ghosts=%d aborts=%d", replica.id,
                    new, len(calls))  # fmt: skip
        await self._replies(tuple(calls))
        ghosts.aborted += new if calls else 0

    async def _replies(self, calls: tuple[Call, ...]) -> tuple[Reply, ...]:
        upstream = self._server.replicas[0].upstream
        return tuple([await upstream.call(call, self._timeout_s) for call in calls])


class Probes:
    """One probe for each server of the pool, started and ended as servers come and go."""

    def __init__(
        self, pool: Pool, *, interval_s: float, timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self._pool = pool
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._tasks: dict[Server, asyncio.Task[None]] = {}

    def sync(self) -> None:
        """Start what is new, end what has left; called on every change of the pool."""
        present = set(self._pool.servers.values())
        for server in [s for s in self._tasks if s not in present]:
            self._tasks.pop(server).cancel()
        for server in present - self._tasks.keys():
            probe = Probe(self._pool, server, self._interval_s, self._timeout_s, self._clock)
            task = asyncio.create_task(probe.run(), name=f"probe {server.spec.id}")
            task.add_done_callback(_report)
            self._tasks[server] = task

    async def aclose(self) -> None:
        """End every probe."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _report(task: asyncio.Task[None]) -> None:
    """A probe never ends by itself: if one does, that is a defect, and must not pass unseen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("probe failed task=%r", task.get_name(), exc_info=error)
