"""Uvicorn's WebSocket, which here can also get rid of a client that does not read.

Nothing of a request is decided here. Uvicorn waits for room before it sends anything, a close
frame included, and a socket whose buffer never empties is never closed: such a client would keep
its connection for as long as it likes.
"""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection, made by uvicorn."""

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
