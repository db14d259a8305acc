"""HTTP/1.1 over one socket to a replica: asyncio and httptools.

This is a hot path: every token of every turn passes here, so the parser is llhttp in C and a read
is one future.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol, cast

import httptools
import msgspec

from sessile.errors import ReplicaTimeout, ReplicaUnreachable, StreamBroken

_HIGH_WATER_BYTES = 256 * 1024  # NOTE: past this the socket is not read: the client sets the pace


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Longest waits, in seconds: to connect, for the answer's first byte, between two bytes."""

    connect_s: float
    first_byte_s: float
    idle_s: float


class Owner(Protocol):
    """Whose connection it is: told when it is idle again, and when it is gone."""

    url: str

    def release(self, connection: "Connection") -> None: ...

    def lost(self, connection: "Connection") -> None: ...


class UpstreamResponse:
    """A replica's answer, read as it comes. Closing it before its end stops the request."""

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, connection: "Connection", status: int, headers: dict[bytes, bytes]) -> None:
        self._connection: Connection | None = connection
        self.status = status
        self.headers = headers

    async def read(self) -> bytes:
        """All bytes that have come since the last read, at least one; `b""` at the end.

        Raises `StreamBroken` if the replica goes away first, `ReplicaTimeout` if it goes silent.
        """
        if self._connection is None:
            return b""
        chunk = await self._connection.read()
        if not chunk:
            self._connection = None
        return chunk

    @property
    def whole(self) -> bool:
        """Whether the answer has ended and all of it has been read."""
        return self._connection is None or self._connection.whole

    def close(self) -> None:
        """Hang up unless the answer has ended; never waits."""
        if self._connection is not None:
            self._connection.finish()
            self._connection = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    async def __aenter__(self) -> "UpstreamResponse":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class Connection(asyncio.Protocol):
    """One socket and its parser, carrying one request at a time.

    The parser's callbacks (`on_*`) run inside `data_received`. `_waiter` is the one future that a
    reader may be waiting on; whatever happens next resolves it.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._error: Exception | None = None
        self._reset()

    def _reset(self) -> None:
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._headers: dict[bytes, bytes] = {}
        self._head_done = False
        self._done = False
        self._keep = False
        self._heard_at = 0.0
        self._idle_s = 0.0

    @property
    def usable(self) -> bool:
        return self._error is None and self._transport is not None

    @property
    def whole(self) -> bool:
        return self._done and not self._chunks

    async def exchange(self, request: bytes, timeouts: Timeouts) -> UpstreamResponse:
        """Send `request`, wait for the head. On any failure the connection is gone."""
        if self._transport is None or self._error is not None:
            raise ReplicaUnreachable(f"{self._owner.url} closed the connection")
        self._heard_at = self.loop.time()
        self._idle_s = timeouts.first_byte_s
        self._watch(self._idle_s)
        self._transport.write(request)
        try:
            while not self._head_done:
                await self._change()
        except StreamBroken as error:
            raise ReplicaUnreachable(str(error)) from error
        except BaseException:  # a time-out or a cancellation: the request must not go on
            self.abort()
            raise
        self._idle_s = timeouts.idle_s
        return UpstreamResponse(self, self._parser.get_status_code(), self._headers)

    async def read(self) -> bytes:
        while not self._chunks:
            if self._done:
                self.finish()
                return b""
            await self._change()
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def finish(self) -> None:
        """Back to the pool if the answer has ended and may be followed by another, else closed."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._done and self._keep and self.usable:
            if self._paused and self._transport is not None:
                self._transport.resume_reading()
            self._reset()
            self._parser = httptools.HttpResponseParser(self)
            self._owner.release(self)
        else:
            self.abort()

    def abort(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._transport is not None:
            self._transport.abort()

    def _change(self) -> "asyncio.Future[None]":
        """Done when something has come; raises why nothing will."""
        if self._error is not None:
            raise self._error
        self._waiter = self.loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Whoever waits is told so; nothing more comes."""
        if self._error is None:
            self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._error)

    def _watch(self, delay_s: float) -> None:
        self._watchdog = self.loop.call_later(delay_s, self._check)

    def _check(self) -> None:
        """One timer a stream, re-armed for what is left: cheaper than one a read."""
        silent_s = self.loop.time() - self._heard_at
        if silent_s < self._idle_s or self._paused:
            self._watch(max(self._idle_s - silent_s, 0.05))
            return
        self._watchdog = None
        self.fail(ReplicaTimeout(f"{self._owner.url} said nothing for {silent_s:.0f} s"))
        self.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(StreamBroken(f"{self._owner.url} did not answer in HTTP/1.1: {error}"))
            self.abort()
            return
        self._wake()

    def eof_received(self) -> None:
        if self._head_done and not self._done and b"content-length" not in self._headers:
            chunked = b"chunked" in self._headers.get(b"transfer-encoding", b"")
            self._done = not chunked  # a body that ends with the connection

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._keep = False
        self._owner.lost(self)
        if self._done:
            self._wake()
        else:
            why = f"{self._owner.url} closed the connection before its answer ended"
            self.fail(StreamBroken(why))

    # -- httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > _HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() // 100 == 1:
            self._head_done = False  # 100 Continue: the real head follows
            return
        self._done = True
        self._keep = self._parser.should_keep_alive()
