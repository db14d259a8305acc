"""The roll as a deployment of Ray Serve: replicas reach it by a handle, routers over HTTP through
any node's proxy, which needs no Ray at the router."""

import asyncio
import logging
import time
from contextlib import suppress

import msgspec
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from sessile.ray.roll import Beat, Report, Roll, Signals

log = logging.getLogger("ray.serve")


class RollCall:
    """The ingress of the application, one of it; `engines` is the handle of its replicas."""

    def __init__(self, engines: DeploymentHandle, model: str, ttft_s: float) -> None:
        self._engines = engines
        self._roll = Roll(model, ttft_s, time.monotonic())
        self._waking: asyncio.Task[None] | None = None

    async def __call__(self, request: Request) -> Response:
        """POST: a router's report, answered with who is up. GET: the same answer, for people."""
        if request.method == "GET":
            now = time.monotonic()
            shown = {"roll": self._roll.answer(now), "load": self._roll.signals(now)}
            return _json(shown)
        try:
            report = msgspec.json.decode(await request.body(), type=Report)
        except msgspec.DecodeError as error:
            return _json({"error": f"not a router's report: {error}"}, 400)
        answer = self._roll.report(report, time.monotonic())
        self._wake(self._roll.signals(time.monotonic()))
        return _json(answer)

    async def beat(self, told: bytes) -> bytes:
        """A replica lives; it is told the load."""
        self._roll.beat(msgspec.json.decode(told, type=Beat), time.monotonic())
        return msgspec.json.encode(self._roll.signals(time.monotonic()))

    async def leave(self, told: bytes) -> bool:
        """A replica is to go; whether it may by now."""
        beat = msgspec.json.decode(told, type=Beat)
        self._roll.leave(beat, time.monotonic())
        return self._roll.is_drained(beat.id, time.monotonic())

    async def gone(self, replica: str) -> None:
        """It has ended."""
        self._roll.gone(replica)

    def _wake(self, load: Signals) -> None:
        """Ask for a replica where there is none: a call that waits for one is what Ray Serve scales
        up from zero for."""
        asked = load.missed or load.queued
        if asked and not load.replicas and (self._waking is None or self._waking.done()):
            self._waking = asyncio.create_task(self._call())

    async def _call(self) -> None:
        with suppress(RayError, RayServeException):
            await self._engines.wake.remote()


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
