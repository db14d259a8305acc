"""A response is made once: a repeated idempotency key is given the one that runs, or ran, under it.

One whose events are logged is followed, at whichever router it runs. One that is not stored can be
followed by nobody: it is waited for, and what it told is kept with the key.
"""

import asyncio
from functools import partial

from sessile.api.responses_job import Followed, Job
from sessile.api.responses_sequence import Event
from sessile.durable import Durable
from sessile.errors import StoreUnavailable
from sessile.event_feed import kind_of
from sessile.once import OnceKeys
from sessile.sessions.store import Store, StoredResult

_EVENTS = "application/x-ndjson"


class Earlier(Followed, frozen=True):
    """The response of an earlier try: its id, and its events where they cannot be followed."""

    events: list[Event] = []


class Once:
    """One a router, made by `Responses`. Without the store there is no memory of earlier tries."""

    def __init__(self, keys: OnceKeys, store: Store, turns: Durable) -> None:
        self._keys = keys
        self._store = store
        self._turns = turns
        self._ending: set[asyncio.Task[None]] = set()

    async def begin(self, job: Job) -> Earlier | None:
        """Take the job's key, or find what there is under it already.

        Waits for a response that runs and cannot be followed; raises `SessionBusy` if that takes
        too long, `KeyReused` where something else was asked under the key.
        """
        if job.once is None:
            return None
        is_told = partial(self._is_told, job.tenant)
        try:
            found = await self._keys.begin(job.tenant, job.once, job.id, is_told)
        except StoreUnavailable:
            job.once = None
            return None
        if found is None:
            return None
        if isinstance(found, StoredResult) and found.body:
            return Earlier(found.turn, _events(found.body))
        return Earlier(found.turn)

    async def end(self, job: Job) -> None:
        """The response is made: keep it under its key. A failed one frees the key for another
        try."""
        if job.once is None:
            return
        result = None
        said = b"" if job.live is not None else job.said()
        if job.failure is None and said is not None:
            result = StoredResult(job.id, 200, _EVENTS, said, job.once.asked)
        await asyncio.shield(self._settle(job, result))

    def free(self, job: Job) -> None:
        """The response came to nothing, or was cut off: its key is free for another try, unless it
        was kept before."""
        if job.once is not None:
            self._settle(job, None)

    def leave(self, job: Job) -> None:
        """Another router makes the response now, and has its key."""
        if job.once is not None:
            self._keys.leave(job.tenant, job.once, job.id)

    async def aclose(self) -> None:
        """Wait for what still has to be written."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _settle(self, job: Job, result: StoredResult | None) -> "asyncio.Task[None]":
        """Runs to its end whatever becomes of the client; once for each response."""
        assert job.once is not None
        work = self._keys.end(job.tenant, job.once, job.id, result)
        job.once = None
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _is_told(self, tenant: str, turn: str) -> bool:
        """Whether the events of a turn can be followed."""
        if self._turns.writer.find(tenant, turn) is not None:
            return True
        return await self._store.events.look(tenant, turn) is not None


def _events(lines: bytes) -> list[Event]:
    return [Event(kind_of(line).decode(), line) for line in lines.split(b"\n")]
