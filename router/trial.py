"""Tries a replica that is doubted with a turn of one token, and takes it out if that fails.

Only the doubted are tried: a trial costs the engine a request, and perhaps a slot's cache. One that
was taken out is tried again until it answers.
"""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

import msgspec

from sessile.errors import ReplicaError, ReplicaTimeout
from sessile.router.doubts import patience_s, serves
from sessile.router.engine import Call
from sessile.router.pool import Pool
from sessile.router.replica import Replica

log = logging.getLogger("sessile.probe")

_LOOK_S = 0.5
_AGAIN = 1 / 6  # of the patience with silence, between two trials of one that is out
_MOST_CHARACTERS = 200


class Fault(msgspec.Struct, frozen=True):
    """How a trial failed. `silent`: no answer came, so that who waits there waits in vain. `busy`:
    it was refused as by an engine whose queue is full, which it may be while other turns run."""

    why: str
    silent: bool = False
    busy: bool = False


class Trials:
    """One a router, made by `app`; `silent_s` is how long a replica may say nothing while a turn
    waits there. Half of that is the trial's."""

    def __init__(self, pool: Pool, silent_s: float) -> None:
        self._pool = pool
        self._silent_s = silent_s
        self._looking: asyncio.Task[None] | None = None
        self._trying: dict[Replica, asyncio.Task[None]] = {}

    def open(self) -> None:
        """Begin to look."""
        self._looking = asyncio.create_task(self._run(), name="doubt replicas")

    async def aclose(self) -> None:
        """End the looking and every trial."""
        tasks = [*self._trying.values(), *([self._looking] if self._looking else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._trying = {r: task for r, task in self._trying.items() if not task.done()}
            for replica in self._pool:
                if replica not in self._trying and self._is_due(replica):
                    self._trying[replica] = asyncio.create_task(
                        self._try(replica), name=f"try {replica.id}"
                    )
            await asyncio.sleep(_LOOK_S)

    def _is_due(self, replica: Replica) -> bool:
        if replica.doubts.refused is not None:
            return replica.identity is not None
        if replica.state not in ("ready", "draining"):
            return False
        return replica.doubts.doubted(time.monotonic(), self._silent_s)

    async def _try(self, replica: Replica) -> None:
        doubts, incarnation = replica.doubts, replica.incarnation
        was_out = doubts.refused is not None
        began = time.monotonic()
        found = await self._ask(replica, patience_s(doubts.last, self._silent_s) / 2)
        now = time.monotonic()
        if replica.incarnation != incarnation or self._pool.find(replica.id) is not replica:
            return
        if found is None or doubts.alive(began, silent=found.silent and not was_out):
            doubts.settled(now)
            if was_out:
                self._pool.serves(replica)
            return
        if not (found.busy and replica.in_flight):
            doubts.refused = f"it says that it is healthy, but serves nothing: {found.why}"
            self._pool.mark_down(replica.id, doubts.refused)
            if found.silent and self._has_others(replica):
                replica.upstream.give_up(doubts.refused)
        await asyncio.sleep(_AGAIN * self._silent_s)

    async def _ask(self, replica: Replica, within_s: float) -> "Fault | None":
        """What is wrong with it; None if it serves."""
        assert replica.identity is not None
        asked = replica.doubts.last
        path = asked.path if asked is not None else "/v1/chat/completions"
        model = asked.model if asked is not None else replica.identity.models[0]
        body = msgspec.json.encode({"model": model, **_least(path)})
        try:
            call, headers = Call("POST", path, body), replica.engine.headers(None)
            reply = await replica.upstream.call(call, within_s, headers)
        except ReplicaError as error:
            return Fault(error.message, silent=isinstance(error, ReplicaTimeout))
        if serves(reply.status):
            return None
        why = f"a turn of one token was answered {reply.status}{_words(reply.body)}"
        return Fault(why, busy=reply.status in (429, 503))

    def _has_others(self, replica: Replica) -> bool:
        """Whether the turns that wait there could go elsewhere."""
        return any(self._pool.outlooks(model) for model in replica.models)


def _words(body: bytes) -> str:
    """The engine's own message, in OpenAI's shape or SGLang's; nothing where there is none."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        told = msgspec.json.decode(body)
        error = told.get("error", told) if isinstance(told, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        if isinstance(message, str) and message:
            return f" ({message[:_MOST_CHARACTERS]})"
    return ""


def _least(path: str) -> dict[str, Any]:
    """The least that can be asked by that path."""
    if path == "/v1/embeddings":
        return {"input": "hi"}
    if path == "/v1/completions":
        return {"prompt": "hi", "max_tokens": 1}
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
