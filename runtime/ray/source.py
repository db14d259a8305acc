"""Replicas of a Ray Serve application, as its roll lists them: `ray://HOST:PORT/APPLICATION`.

HOST:PORT is Ray Serve's HTTP proxy at any node. Each look takes this router's report along: the
application scales by what its routers tell, and a replica goes once they have nothing left there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection

import msgspec

from sessile.errors import DiscoveryFailed, ReplicaError
from sessile.ray.roll import BEAT_S, Answer, Report
from sessile.router.connection import Timeouts
from sessile.router.discovery import Listed
from sessile.router.engine import Call
from sessile.router.replica import ReplicaSpec
from sessile.router.upstream import Upstream

_TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=5.0, idle_s=5.0)
_LOOK_S = 5.0

Reports = Callable[[str | None, Collection[ReplicaSpec], float], Report]
"""What this router has under way at those replicas of that model; first tokens later than so many
seconds are late."""


class RaySource:
    """The replicas of one application. Lives as long as its router."""

    def __init__(self, name: str, url: str, report: Reports) -> None:
        self.name = name
        self._url = url
        self._report = report
        self._specs: tuple[ReplicaSpec, ...] = ()
        self._model: str | None = None
        self._ttft_s = 0.0

    async def lists(self) -> AsyncIterator[tuple[Listed, ...]]:
        """As `Source` says."""
        base, _, path = self._url.partition("://")[2].partition("/")
        upstream = Upstream(f"http://{base}", _TIMEOUTS)
        try:
            while True:
                answer = await self._ask(upstream, f"/{path}")
                self._model, self._ttft_s = answer.model, answer.ttft_s
                found = tuple(_listed(answer))
                self._specs = tuple(each.spec for each in found)
                if answer.settled:  # else it lacks some, and those would drain
                    yield found
                await asyncio.sleep(BEAT_S)
        finally:
            await upstream.aclose()

    async def _ask(self, upstream: Upstream, path: str) -> Answer:
        body = msgspec.json.encode(self._report(self._model, self._specs, self._ttft_s))
        try:
            reply = await upstream.call(Call("POST", path, body), _LOOK_S)
        except ReplicaError as error:
            raise DiscoveryFailed(f"Ray Serve does not answer: {error.message}") from error
        if reply.status != 200:
            raise DiscoveryFailed(f"{self.name} answered {reply.status}: is it deployed?")
        try:
            return msgspec.json.decode(reply.body, type=Answer)
        except msgspec.DecodeError as error:
            raise DiscoveryFailed(f"{self.name} is no application of Sessile: {error}") from error


def _listed(answer: Answer) -> list[Listed]:
    return [
        Listed(
            ReplicaSpec(id=each.id, engine=each.engine, url=each.url, model=each.model,
                        folder=each.folder),
            entry.leaving,
        )
        for entry in answer.replicas
        for each in (entry.replica,)
    ]  # fmt: skip
