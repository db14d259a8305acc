"""Turns that wait while another computes at their replica what they share with it."""

import asyncio
import time

from sessile.router.scheduler import Scheduler
from sessile.turn import Turn


class SharedPrefill:
    """Who waits for whose prefill. Made by `Placement`, one a router."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._followers: dict[str, list[asyncio.Future[bool]]] = {}

    def follows(self, turn: Turn) -> bool:
        """Whether another turn computes at the replica what this one shares with it."""
        return self._scheduler.leader(turn.id) is not None

    async def follow(self, turn: Turn) -> None:
        """Wait while another turn computes at the replica what this one shares with it: a fan-out
        computes its parent's prefix once there, and a session that is back while it is prewarmed
        joins that."""
        while (found := self._scheduler.leader(turn.id)) is not None:
            leader, until = found
            future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            followers = self._followers.setdefault(leader, [])
            followers.append(future)
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    done = await future
            except TimeoutError:
                return
            finally:
                if future in followers:
                    followers.remove(future)
            if not done:
                self._scheduler.take_over(turn.id)

    def lead(self, turn: str, done: bool) -> None:
        """The turn has computed its prompt, or never will: those who wait for it go on."""
        for future in self._followers.pop(turn, ()):
            if not future.done():
                future.set_result(done)
