"""A session's WebSocket, in a thread's way and in a loop's: opened at need, and again after a drop.

A frame that could not be sent is sent on a new connection, since the router has not seen it. A
connection that drops after that is an error: whether the turn ran is then not known here.
"""

import asyncio
import socket
from contextlib import suppress
from typing import Any

import websockets.asyncio.client
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.protocol import State

from sessile.client.address import Address
from sessile.client.calls import read_error, unreachable
from sessile.errors import InvalidRequest, ReplicaTimeout, SessileError, StreamBroken

_MAX_FRAME_BYTES = 64 * 2**20
_OPEN_S = 10.0
_CLOSE_S = 2.0


def _options(address: Address, session: str) -> dict[str, Any]:
    if not (session.isascii() and session.isprintable() and session.strip()):
        raise InvalidRequest("a session's id is printable ASCII text", param="session")
    return {
        "additional_headers": {**address.headers(), "X-Session-ID": session},
        "compression": None,
        "open_timeout": _OPEN_S,
        "close_timeout": _CLOSE_S,
        "max_size": _MAX_FRAME_BYTES,
    }


def _not_opened(address: Address, error: Exception) -> SessileError:
    """Why there is no connection: the router said no, or nobody is there."""
    if isinstance(error, InvalidStatus):
        return read_error(error.response.status_code, bytes(error.response.body or b""))
    return unreachable(address.url, error)


def _lost(error: ConnectionClosed) -> SessileError:
    """The connection ended inside a turn."""
    told = error.rcvd.reason if error.rcvd and error.rcvd.reason else "without a reason"
    return StreamBroken(
        f"the router closed the connection during the turn ({told}); send it again to repeat it"
    )


def _silent(timeout_s: float) -> SessileError:
    return ReplicaTimeout(f"no event of the turn came for {timeout_s:g} s")


class Socket:
    """One session's connection, for threads.

    While it is connected it is in `connected`, so that its client can close it even if its
    session's handle is gone.
    """

    def __init__(
        self, address: Address, session: str, timeout_s: float, connected: "set[Socket]"
    ) -> None:
        self._connected = connected
        self._address = address
        self._session = session
        self._timeout_s = timeout_s
        self._connection: websockets.sync.client.ClientConnection | None = None

    def send(self, frame: str) -> None:
        """Send on the open connection, or on a new one."""
        connection = self._connection
        if connection is not None and connection.state is State.OPEN:
            try:
                return connection.send(frame)
            except ConnectionClosed:
                pass  # it dropped since the last turn: the same as having been closed
        self.drop()
        self._connection = self._open()
        self._connected.add(self)
        try:
            self._connection.send(frame)
        except ConnectionClosed as error:
            raise _lost(error) from error

    def receive(self) -> str | bytes:
        """The next frame."""
        assert self._connection is not None
        try:
            return self._connection.recv(timeout=self._timeout_s)
        except TimeoutError as error:
            raise _silent(self._timeout_s) from error
        except ConnectionClosed as error:
            raise _lost(error) from error

    def drop(self) -> None:
        """Close the connection, if there is one; the next `send` opens another."""
        connection, self._connection = self._connection, None
        self._connected.discard(self)
        if connection is not None:
            connection.close()

    def abandon(self) -> None:
        """End the connection at once, amid a turn: a farewell would wait behind its events."""
        if self._connection is not None:
            with suppress(OSError):  # it is closed already
                self._connection.socket.shutdown(socket.SHUT_RDWR)
            self.drop()

    def _open(self) -> websockets.sync.client.ClientConnection:
        options = _options(self._address, self._session)
        try:
            return websockets.sync.client.connect(self._address.websocket_url, **options)
        except (OSError, InvalidHandshake, EOFError) as error:
            raise _not_opened(self._address, error) from error


class AsyncSocket:
    """One session's connection, for an event loop.

    While it is connected it is in `connected`, so that its client can close it even if its
    session's handle is gone.
    """

    def __init__(
        self, address: Address, session: str, timeout_s: float, connected: "set[AsyncSocket]"
    ) -> None:
        self._connected = connected
        self._address = address
        self._session = session
        self._timeout_s = timeout_s
        self._connection: websockets.asyncio.client.ClientConnection | None = None

    async def send(self, frame: str) -> None:
        """Send on the open connection, or on a new one."""
        connection = self._connection
        if connection is not None and connection.state is State.OPEN:
            try:
                return await connection.send(frame)
            except ConnectionClosed:
                pass  # it dropped since the last turn: the same as having been closed
        await self.drop()
        self._connection = await self._open()
        self._connected.add(self)
        try:
            await self._connection.send(frame)
        except ConnectionClosed as error:
            raise _lost(error) from error

    async def receive(self) -> str | bytes:
        """The next frame."""
        assert self._connection is not None
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._connection.recv()
        except TimeoutError as error:
            raise _silent(self._timeout_s) from error
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

    async def _open(self) -> websockets.asyncio.client.ClientConnection:
        options = _options(self._address, self._session)
        try:
            return await websockets.asyncio.client.connect(self._address.websocket_url, **options)
        except (OSError, InvalidHandshake, EOFError) as error:
            raise _not_opened(self._address, error) from error
