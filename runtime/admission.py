"""Turns that wait until a replica's KV memory fits them: each is let go when its time has come.

Who is next is decided by the scheduler; here are the futures that its decisions end, and the clock
on which the queue is looked at when nothing else happens.
"""

import asyncio
import time

from sessile.errors import Overloaded
from sessile.router.decide import Decision
from sessile.router.pool import Pool
from sessile.router.scheduler import Scheduler
from sessile.turn import Turn

_LOOK_S = 0.25


class Admission:
    """Made by `Placement`, one a router."""

    def __init__(self, scheduler: Scheduler, pool: Pool) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._waiting: dict[str, asyncio.Future[Decision]] = {}
        self._clock: asyncio.TimerHandle | None = None

    async def wait(self, turn: Turn) -> Decision:
        """The decision, once the queue has let the turn through."""
        began = time.monotonic()
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._waiting[turn.id] = future
        self.admit()
        try:
            return await future
        finally:
            self._waiting.pop(turn.id, None)
            self._scheduler.queue.remove(turn.id)
            waited_s = time.monotonic() - began
            turn.receipt.queue_s = (turn.receipt.queue_s or 0.0) + waited_s

    def admit(self) -> None:
        """Let those of the queue go whose turn has come, and look again soon if any are left."""
        now = time.monotonic()
        if not self._scheduler.queue:
            self._scheduler.live.expire(now)
            return
        for admitted in self._scheduler.admit(self._pool.outlooks, now):
            future = self._waiting.get(admitted.ask.turn)
            if future is None or future.done():
                self._scheduler.end(admitted.ask.turn, time.monotonic())
            elif admitted.decision is not None:
                future.set_result(admitted.decision)
            else:
                future.set_exception(
                    Overloaded("the turn's deadline passed while it waited for KV memory")
                )
        if self._scheduler.queue and self._clock is None:
            self._clock = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._clock = None
        self.admit()

    def aclose(self) -> None:
        """Stop looking at the queue."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
