"""A response is made once: a repeated idempotency key is given the one that runs, or ran, under it.

One whose events are logged is followed, at whichever router it runs. One that is not stored can be
followed by nobody: it is waited for, and what it told is kept with the key.
"""

import asyncio
import logging
import time

from sessile.api.responses_job import Followed, Job
from sessile.api.responses_sequence import Event
from sessile.durable import Durable
from sessile.errors import SessionBusy, StoreUnavailable
from sessile.event_feed import kind_of
from sessile.once import check_same
from sessile.sessions.store import Running, Store, StoredResult

log = logging.getLogger("sessile.api")

_EVENTS = "application/x-ndjson"
_APPEAR_S = 1.0  # that the events of a response may come to the log after its key


class Earlier(Followed, frozen=True):
    """The response of an earlier try: its id, and its events where they cannot be followed."""

    events: list[Event] = []


class Once:
    """One a router, made by `Responses`. Without the store there is no memory of earlier tries."""

    def __init__(self, store: Store, turns: Durable, wait_s: float) -> None:
        self._store = store
        self._turns = turns
        self._wait_s = wait_s
        self._ending: set[asyncio.Task[None]] = set()

    async def begin(self, job: Job) -> Earlier | None:
        """Take the job's key, or find what there is under it already.

        Waits for a response that runs and cannot be followed; raises `SessionBusy` if that takes
        too long, `KeyReused` where something else was asked under the key.
        """
        if job.once is None:
            return None
        began = time.monotonic()
        pause_s = 0.02
        while True:
            try:
                found = await self._store.begin_once(job.tenant, job.once, job.id)
                if found is None:
                    return None
                check_same(job.once, found)
                if isinstance(found, StoredResult) and found.body:
                    return Earlier(found.turn, _events(found.body))
                turn = found.turn
                if await self._is_told(job.tenant, turn):
                    return Earlier(turn)
                waited_s = time.monotonic() - began
                if waited_s > _APPEAR_S and self._is_gone(job, found):
                    await self._store.end_once(job.tenant, job.once.key, None)
                    continue
            except StoreUnavailable:
                job.once = None
                return None
            if waited_s > self._wait_s:
                raise SessionBusy(
                    f"response {turn} with the same idempotency key is still being made",
                    retry_after_s=1.0,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.25)

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

    async def aclose(self) -> None:
        """Wait for what still has to be written."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _settle(self, job: Job, result: StoredResult | None) -> "asyncio.Task[None]":
        """Runs to its end whatever becomes of the client; once for each response."""
        assert job.once is not None
        work = self._write(job.tenant, job.once.key, job.id, result)
        job.once = None
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _write(self, tenant: str, key: str, turn: str, result: StoredResult | None) -> None:
        try:
            await self._store.end_once(tenant, key, result)
        except StoreUnavailable as error:
            log.warning("idempotency key was not settled turn=%s why=%r", turn, error.message)

    def _is_gone(self, job: Job, found: Running | StoredResult) -> bool:
        """Whether one whose events are not in the log never will have any. A router that has not
        accepted what it took the key for in the time of a lease is gone, and nobody takes over what
        no log knows; of one that is not to be logged nothing can be told."""
        if isinstance(found, StoredResult):
            return True
        lease_s = self._store.events.limits.lease_s
        return job.asked.store and time.time() - found.since > lease_s

    async def _is_told(self, tenant: str, turn: str) -> bool:
        """Whether the events of a turn can be followed."""
        if self._turns.writer.find(tenant, turn) is not None:
            return True
        return await self._store.events.look(tenant, turn) is not None


def _events(lines: bytes) -> list[Event]:
    return [Event(kind_of(line).decode(), line) for line in lines.split(b"\n")]
