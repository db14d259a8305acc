"""The sending half of a WebSocket: frames in a row, for as long as its client reads them."""

import asyncio
from contextlib import suppress

from starlette.types import Send

from sessile.api.ws_frames import error_frame
from sessile.errors import SessileError


class SlowReader(ConnectionError):
    """The client has not read for `send_timeout_s`, and is as good as gone."""


class Outbox:
    """What a connection sends through. Made by it, gone with it; `closed` once nothing may be sent
    any more."""

    __slots__ = ("_send", "_sending", "_timeout_s", "closed")

    def __init__(self, send: Send, timeout_s: float) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self._sending = asyncio.Lock()  # first come, first served: what is decided first is told so
        self.closed = False

    async def send_all(self, texts: list[str]) -> None:
        """Send frames in a row; waits while the client does not read, for `send_timeout_s`.

        Raises `SlowReader`, and `ConnectionResetError` where the connection is being closed.
        """
        if self.closed:
            raise ConnectionResetError("the connection is being closed")
        try:
            async with asyncio.timeout(self._timeout_s), self._sending:
                for text in texts:
                    await self._send({"type": "websocket.send", "text": text})
        except TimeoutError as error:
            raise SlowReader from error

    async def close(self, code: int, reason: str, why: SessileError | None = None) -> None:
        """Say that the connection ends, and why, to a client that reads."""
        self.closed = True
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(self._timeout_s):
                if why is not None:
                    await self._send({"type": "websocket.send", "text": error_frame(why, None)})
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
