"""A running response's events over HTTP, behind any number: how a turn is taken up again."""

import asyncio
from collections.abc import AsyncGenerator

import httpx2
import msgspec

from sessile.client import calls
from sessile.client.calls import read_error, unreachable
from sessile.client.http import AsyncHttp
from sessile.client.sockets import Lost
from sessile.errors import ReplicaTimeout, RequestError, ResponseNotFound, StreamBroken

_POLL_S = 0.5
_ENDS = ("completed", "incomplete", "failed", "cancelled")


class SseLines:
    """Server-sent events from lines: each one's data, where its blank line comes. Pure."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> str | None:
        """The data of the event that this line ends, None if it ends none."""
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            return None
        data, self._data = self._data, []
        return "\n".join(data) if data else None


class Follower:
    """Reads on behind event `after` of a response, as `AsyncSocket.receive` would."""

    def __init__(self, http: AsyncHttp, response: str, after: int, timeout_s: float) -> None:
        self._http = http
        self.response = response
        self._frames = self._read(after, timeout_s)

    async def receive(self) -> str | bytes:
        """The next event; raises `Lost`, or `RouterUnreachable`, where it may be tried again."""
        try:
            return await anext(self._frames)
        except StopAsyncIteration:
            raise Lost("the router ended the stream before the turn's end") from None

    async def aclose(self) -> None:
        """Let go of the connection."""
        await self._frames.aclose()

    async def _read(self, after: int, timeout_s: float) -> AsyncGenerator[str | bytes, None]:
        call = calls.follow_response(self.response, after)
        try:
            async with self._http.stream(call, timeout_s) as answer:
                if answer.status_code == 200:
                    parser = SseLines()
                    async for line in answer.aiter_lines():
                        if (data := parser.feed(line)) is not None:
                            yield data
                    return
                error = read_error(answer.status_code, await answer.aread())
        except httpx2.ReadTimeout as silence:
            raise ReplicaTimeout(f"no event of the turn came for {timeout_s:g} s") from silence
        except httpx2.TransportError as broken:
            raise unreachable(self._http.url, broken) from broken
        if isinstance(error, ResponseNotFound):
            raise StreamBroken(
                f"the router knows nothing of response {self.response} (any more); send the turn"
                " again to repeat it"
            ) from error
        if not isinstance(error, RequestError):
            raise Lost(error.message) from error
        # Its events are not kept (any more): the response itself tells how it ended.
        yield await self._ended()

    async def _ended(self) -> bytes:
        while True:
            found = await self._http.call(calls.show_response(self.response))
            if (status := found.get("status")) in _ENDS:
                kind = "incomplete" if status == "cancelled" else status
                event = {"type": f"response.{kind}", "response": found}
                return msgspec.json.encode(event)
            await asyncio.sleep(_POLL_S)
