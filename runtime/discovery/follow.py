"""Follows the sources of replicas, and takes the steps in the pool that their lists come to.

A source that cannot be read keeps what it listed last, however long; that is said in the log and in
`/ready`, and its replicas are still looked at by their probes. It never empties the pool.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable
from contextlib import aclosing

from sessile.errors import DiscoveryFailed, InvalidRequest
from sessile.router.discovery import Known, Listed, Source, change, twice
from sessile.router.pool import Pool
from sessile.router.replica import ReplicaSpec

log = logging.getLogger("sessile.discovery")

_SWEEP_S = 0.25  # how soon a drained replica goes after its last turn
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0


class Followed:
    """One source and what the pool holds of it. Made by `Discovery`, lives as long.

    `why` is what keeps it from being read, None while it is well. What `mine` has is in the pool,
    unless a person has removed it there: then it is added again, for the source still lists it.
    """

    def __init__(self, pool: Pool, source: Source) -> None:
        self._pool = pool
        self._source = source
        self.name = source.name
        self.why: str | None = "it has not been read yet"
        self._listed: Collection[Listed] | None = None
        self._mine: dict[str, ReplicaSpec] = {}
        self._drained: set[str] = set()
        self._refused: set[str] = set()

    async def run(self) -> None:
        """Read the source until cancelled; after a failure again, ever more seldom."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with aclosing(self._source.lists()) as lists:  # type: ignore[type-var]
                    async for listed in lists:
                        self._take(listed)
                        pause_s = _FIRST_PAUSE_S
            except DiscoveryFailed as error:
                self._fail(error.message)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def sweep(self) -> None:
        """Take the steps that can be taken now."""
        if self._listed is None:
            return
        made = change(self._listed, self._known())
        for name in made.drain:
            self._pool.drain(name, f"{self.name} lists it no more, or as leaving")
            self._drained.add(name)
        for name in made.resume:
            self._pool.resume(name)
            self._drained.discard(name)
        for spec in made.add:
            self._add(spec)
        for name in made.remove:
            if name in self._pool.servers:  # nobody else removed it while one was closed
                await self._pool.remove(name)
                log.info("replica left replica=%s source=%s", name, self.name)

    def _known(self) -> list[Known]:
        found = []
        for name, spec in list(self._mine.items()):
            server = self._pool.servers.get(name)
            if server is None:
                del self._mine[name]
                self._drained.discard(name)
            else:
                if server.state != "draining":
                    self._drained.discard(name)
                drained = name in self._drained
                found.append(Known(spec, server.state, server.in_flight, drained))
        return found

    def _add(self, spec: ReplicaSpec) -> None:
        try:
            self._pool.add(spec)
        except InvalidRequest as error:  # somebody else's: it is said once
            if spec.id not in self._refused:
                self._refused.add(spec.id)
                log.warning("replica was not taken replica=%s source=%s why=%r", spec.id, self.name,
                            error.message)  # fmt: skip
            return
        self._refused.discard(spec.id)
        self._mine[spec.id] = spec
        log.info("replica found replica=%s url=%s source=%s", spec.id, spec.url, self.name)

    def _take(self, listed: Collection[Listed]) -> None:
        if (wrong := twice(listed)) is not None:
            raise DiscoveryFailed(f"{self.name}: {wrong}")
        if self.why is not None:
            log.info("source is read source=%s replicas=%d", self.name, len(listed))
        self._listed, self.why = listed, None

    def _fail(self, why: str) -> None:
        if self.why != why:
            log.warning("source failed source=%s why=%r kept=%d", self.name, why, len(self._mine))
        self.why = why


class Discovery:
    """All sources of a router. Made by `app`; its tasks run from `open` to `aclose`."""

    def __init__(self, pool: Pool, sources: Iterable[Source]) -> None:
        self.followed = [Followed(pool, source) for source in sources]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def failing(self) -> dict[str, str]:
        """Why each source that cannot be read now cannot."""
        return {each.name: each.why for each in self.followed if each.why is not None}

    def open(self) -> None:
        """Begin to follow them."""
        if self.followed:
            self._tasks = [
                asyncio.create_task(each.run(), name=f"follow {each.name}")
                for each in self.followed
            ]
            self._tasks.append(asyncio.create_task(self._sweep(), name="sweep discovered"))
        for task in self._tasks:
            task.add_done_callback(_report)

    async def aclose(self) -> None:
        """End it; the replicas stay in the pool."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sweep(self) -> None:
        while True:
            for each in self.followed:
                await each.sweep()
            await asyncio.sleep(_SWEEP_S)


def _report(task: asyncio.Task[None]) -> None:
    """None of them ends by itself: if one does, that is a defect, and must not pass unseen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("discovery failed task=%r", task.get_name(), exc_info=error)
