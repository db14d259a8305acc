"""A session's WebSocket: opened at need, and again after a drop.

A frame that could not be sent is sent on a new connection, since the router has not seen it. What
becomes of a turn whose connection drops after that is `line`'s to decide.
"""

import asyncio
from typing import Any

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.protocol import State

from sessile.client.address import Address
from sessile.client.calls import read_error, unreachable
from sessile.errors import InvalidRequest, ReplicaTimeout, SessileError
from sessile.sessions.hints import WhenBusy

_MAX_FRAME_BYTES = 64 * 2**20
_OPEN_S = 10.0
_CLOSE_S = 2.0


def session_headers(session: str, when_busy: WhenBusy | None) -> dict[str, str]:
    """What names the session in a request, and says what is to become of it while another turn of
    the session runs; raises `InvalidRequest` for an id that cannot."""
    if not (session.isascii() and session.isprintable() and session.strip()):
        raise InvalidRequest("a session's id is printable ASCII text", param="session")
    headers = {"X-Session-ID": session}
    return headers if when_busy is None else {**headers, "X-Sessile-When-Busy": when_busy}


def _not_opened(address: Address, error: Exception) -> SessileError:
    """Why there is no connection: the router said no, or nobody is there."""
    if isinstance(error, InvalidStatus):
        return read_error(error.response.status_code, bytes(error.response.body or b""))
    return unreachable(address.url, error)


class Lost(ConnectionError):
    """The connection ended; whether what was sent runs is not known here. Callers never see it."""


def _lost(error: ConnectionClosed) -> Lost:
    told = error.rcvd.reason if error.rcvd and error.rcvd.reason else "without a reason"
    return Lost(f"the router closed the connection during the turn ({told})")


class AsyncSocket:
    """One session's connection.

    While it is connected it is in `connected`, so that its client can close it even if its
    session's handle is gone. `was_open` says that the router was there once.
    """

    def __init__(
        self, address: Address, session: str, when_busy: WhenBusy | None, timeout_s: float,
        connected: "set[AsyncSocket]",
    ) -> None:  # fmt: skip
        self._connected = connected
        self._address = address
        self._session = session
        self._when_busy = when_busy
        self._timeout_s = timeout_s
        self._connection: websockets.asyncio.client.ClientConnection | None = None
        self._detaches = False
        self.was_open = False

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and self._connection.state is State.OPEN

    def another(self) -> "AsyncSocket":
        """One of the same session, not connected yet."""
        made = AsyncSocket(
            self._address, self._session, self._when_busy, self._timeout_s, self._connected
        )
        made.was_open = self.was_open
        return made

    async def send(self, frame: str, *, detach: bool) -> None:
        """Send on the open connection, or on a new one. Turns of one that is to `detach` go on
        without it."""
        connection = self._connection
        if connection is not None and self.is_open and self._detaches == detach:
            try:
                return await connection.send(frame)
            except ConnectionClosed:
                pass  # it dropped since the last turn: the same as having been closed
        await self.drop()
        self._connection = connection = await self._open(detach)
        self._detaches = detach
        self._connected.add(self)
        self.was_open = True
        try:
            await connection.send(frame)
        except ConnectionClosed as error:
            raise _lost(error) from error

    async def say(self, frame: str) -> None:
        """Send on the open connection; one that is not open is noticed by who listens."""
        if self._connection is not None:
            try:
                await self._connection.send(frame)
            except ConnectionClosed:
                return

    async def receive(self) -> str | bytes:
        """The next frame; raises `Lost` where the connection is, `ReplicaTimeout` in silence."""
        if self._connection is None:
            raise Lost("the connection was closed during the turn")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._connection.recv()
        except TimeoutError as error:
            raise ReplicaTimeout(f"no event of the turn came for {self._timeout_s:g} s") from error
        except ConnectionClosed as error:
            raise _lost(error) from error

    async def drop(self) -> None:
        """Close the connection, if there is one; the next `send` opens another."""
        connection, self._connection = self._connection, None
        self._connected.discard(self)
        if connection is not None:
            await connection.close()

    async def abandon(self) -> None:
        """End the connection at once, amid a turn: a farewell would wait behind its events."""
        if self._connection is not None:
            self._connection.transport.abort()
            await self.drop()

    async def _open(self, detach: bool) -> websockets.asyncio.client.ClientConnection:
        headers = {**self._address.headers(), **session_headers(self._session, self._when_busy)}
        if detach:
            headers["X-Sessile-On-Disconnect"] = "detach"
        try:
            return await websockets.asyncio.client.connect(
                self._address.websocket_url, additional_headers=headers, **_OPTIONS
            )
        except (OSError, InvalidHandshake, EOFError) as error:
            raise _not_opened(self._address, error) from error


_OPTIONS: dict[str, Any] = {
    "compression": None,
    "open_timeout": _OPEN_S,
    "close_timeout": _CLOSE_S,
    "max_size": _MAX_FRAME_BYTES,
}
