"""What engines are told beside the turns: that one is to stop, that a session's memory may go, or
that its model is to stay loaded. No turn waits for any of it, and none fails by it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from sessile.errors import ReplicaError
from sessile.router.pool import Pool
from sessile.router.replica import Replica
from sessile.sessions.binding import Standings
from sessile.sessions.record import SessionKey
from sessile.turn import Turn

log = logging.getLogger("sessile.flow")

_ABORT_TIMEOUT_S = 2.0
_RELEASE_TIMEOUT_S = 2.0
_HOLD_TIMEOUT_S = 60.0  # it loads the model, if that was unloaded already


class EngineCalls:
    """Made by `Flow`, one a router, whose `spawn` runs a call whatever becomes of the client."""

    def __init__(
        self,
        pool: Pool,
        standings: Standings,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._pool = pool
        self._standings = standings
        self._spawn = spawn

    def abort(self, replica: Replica, turn: Turn) -> None:
        """Closing the connection has told most engines; tell those that want it said."""
        replica.ghosts.leave(turn.request_id)
        call = replica.engine.abort_call(turn.request_id)
        if call is not None and replica.state != "down":
            self._spawn(_quietly(replica.upstream.call(call, _ABORT_TIMEOUT_S)))

    def release(self, released: Iterable[tuple[SessionKey, str]]) -> None:
        """Sessions whose memory is held no longer, and at which replica: its engine is told."""
        for key, replica_id in released:
            replica = self._pool.find(replica_id)
            if replica is None or replica.identity is None or replica.state == "down":
                continue
            call = replica.engine.release_call(key.attribution, replica.identity)
            if call is not None:
                self._spawn(_quietly(replica.upstream.call(call, _RELEASE_TIMEOUT_S)))

    def hold(self, key: SessionKey, seconds: float) -> None:
        """Have the engine keep the model loaded for a pausing session, where it would not."""
        standing = self._standings.get(key)
        replica = self._pool.find(standing.binding.replica) if standing is not None else None
        if replica is None or replica.state != "ready":
            return
        variant = self._pool.releases.variant(key.model)
        model = key.model if variant is None else variant.model
        call = replica.engine.hold_call(model, seconds)
        if call is not None:
            self._spawn(_quietly(replica.upstream.call(call, _HOLD_TIMEOUT_S)))


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except ReplicaError as error:
        log.debug("call was not heard why=%r", error.message)
