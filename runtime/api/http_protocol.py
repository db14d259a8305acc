"""Uvicorn's HTTP, which here sends an answer's head and its first bytes in one write.

Nothing of a request is decided here. A write to a socket is the dearest step of a small answer, and
uvicorn makes one for the head alone.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = b"HTTP/1.1 "


class HttpProtocol(HttpToolsProtocol):
    """One connection, made by uvicorn."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = _HeadHolder(transport, self.loop)  # type: ignore[assignment]

    def handle_websocket_upgrade(self) -> None:
        """The connection goes on in another protocol, on the bare transport."""
        self.transport = self.transport._transport  # type: ignore[attr-defined]
        super().handle_websocket_upgrade()


class _HeadHolder:
    """A transport that keeps a head back until more is written, one tick of the loop at most."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._write = transport.write
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._write(head + data)
        elif data.startswith(_HEAD):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
