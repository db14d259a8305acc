"""The sending half of a WebSocket: frames in a row, for as long as its client reads them."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from starlette.types import Scope, Send

from sessile.api.ws_frames import error_frame
from sessile.errors import SessileError


class SlowReader(ConnectionError):
    """The client has not read for `send_timeout_s`, and is as good as gone."""


class Line(Protocol):
    """What our own server gives besides `send`, which costs an event several times as much."""

    @property
    def roomy(self) -> bool: ...

    def put(self, texts: Sequence[bytes]) -> None: ...


def line_of(scope: Scope) -> Line | None:
    """The line that a connection came by, where its server gives one."""
    line: Line | None = scope.get("extensions", {}).get("sessile.line", {}).get("line")
    return line


class Outbox:
    """What a connection sends through. Made by it, gone with it; `closed` once nothing may be sent
    any more."""

    __slots__ = ("_line", "_send", "_sending", "_timeout_s", "closed")

    def __init__(self, send: Send, timeout_s: float, line: Line | None = None) -> None:
        self._send = send
        self._line = line
        self._timeout_s = timeout_s
        self._sending = asyncio.Lock()  # first come, first served: what is decided first is told so
        self.closed = False

    @property
    def ready(self) -> bool:
        """Whether there is no need to wait, now or a moment later: frames may be `put`."""
        return (
            not self.closed
            and self._line is not None
            and self._line.roomy
            and not self._sending.locked()
        )

    def put(self, texts: Sequence[bytes]) -> None:
        """Send frames at once, by who has just found it `ready`; what has filled the line since is
        at most one such call of each lane. Raises `ConnectionResetError`."""
        if self.closed or self._line is None:
            raise ConnectionResetError("the connection is being closed")
        self._line.put(texts)

    async def send_all(self, texts: Sequence[bytes]) -> None:
        """Send frames in a row; waits while the client does not read, for `send_timeout_s`.

        Raises `SlowReader`, and `ConnectionResetError` where the connection is being closed.
        """
        if self.ready:
            self.put(texts)
            return
        if self.closed:
            raise ConnectionResetError("the connection is being closed")
        try:
            async with asyncio.timeout(self._timeout_s), self._sending:
                for text in texts:
                    await self._send({"type": "websocket.send", "text": text.decode()})
        except TimeoutError as error:
            raise SlowReader from error

    async def close(self, code: int, reason: str, why: SessileError | None = None) -> None:
        """Say that the connection ends, and why, to a client that reads."""
        self.closed = True
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(self._timeout_s):
                if why is not None:
                    text = error_frame(why, None).decode()
                    await self._send({"type": "websocket.send", "text": text})
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
