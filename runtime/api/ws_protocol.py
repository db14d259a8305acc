"""Uvicorn's WebSocket, which here can also get rid of a client that does not read, and be sent
through without a coroutine.

Nothing of a request is decided here. Uvicorn waits for room before it sends anything, a close
frame included, and a socket whose buffer never empties is never closed: such a client would keep
its connection for as long as it likes.
"""

from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection, made by uvicorn. The application finds it in its scope, among the extensions,
    as the `line` of "sessile.line"."""

    async def run_asgi(self) -> None:
        self.scope["extensions"]["sessile.line"] = {"line": self}
        await super().run_asgi()

    @property
    def roomy(self) -> bool:
        """Whether the client reads as fast as it is told."""
        return self.writable.is_set()

    def put(self, texts: Sequence[bytes]) -> None:
        """Send text frames in one write, behind whatever is buffered: who sends much looks first
        whether there is room. Raises `ConnectionResetError` where nothing can be sent any more."""
        conn = self.conn
        closing = self.disconnected or self.transport.is_closing()
        if closing or conn.state is not State.OPEN:
            raise ConnectionResetError("the connection is closed")
        for text in texts:
            conn.send_text(text)
        self.transport.write(b"".join(conn.data_to_send()))

    async def send(self, message: Any) -> None:
        """As uvicorn's; a close frame goes behind what is buffered without waiting for room."""
        if message["type"] == "websocket.close":
            self.writable.set()
        await super().send(message)
        if message["type"] == "websocket.close":
            self._abort_later()

    def keepalive_timeout(self) -> None:
        """A client that answers no ping is gone, whatever is still buffered for it."""
        super().keepalive_timeout()
        self._abort_later()

    def _abort_later(self) -> None:
        if self.transport is not None:
            self.loop.call_later(self.close_timeout, self.transport.abort)
