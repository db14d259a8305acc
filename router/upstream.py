"""HTTP/1.1 to one replica: a pool of kept-alive connections on asyncio and httptools.

This is a hot path: every token of every turn passes here, so the parser is llhttp in C and a read
is one future. It decides nothing of routing; a failure is told as a `ReplicaError`, and whoever
opened the stream chooses what to do.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec

from sessile.errors import (
    ReplicaRefused,
    ReplicaTimeout,
    ReplicaUnreachable,
    SettingsError,
    StreamBroken,
)
from sessile.router.engine import Call, Headers, Reply

_HIGH_WATER_BYTES = 256 * 1024  # NOTE: past this the socket is not read: the client sets the pace
_IDLE_KEPT_S = 4.0  # uvicorn closes an idle connection after 5 s; leave before it does
_IDLE_KEPT = 128


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Longest waits, in seconds: to connect, for the answer's first byte, between two bytes."""

    connect_s: float
    first_byte_s: float
    idle_s: float


class Upstream:
    """The connections to one replica. Lives as long as the replica is in the pool."""

    def __init__(self, url: str, timeouts: Timeouts, *, idle_kept_s: float = _IDLE_KEPT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"a replica's URL is http://HOST:PORT, not {url!r}")
        try:
            port = parts.port
        except ValueError as error:
            raise SettingsError(f"the port of {url!r} is not a port") from error
        self.url = url
        self._host = parts.hostname
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/").encode()
        self._netloc = parts.netloc.rpartition("@")[2].encode()
        self._timeouts = timeouts
        self._idle: deque[tuple[float, _Connection]] = deque()
        self._open: set[_Connection] = set()
        self._idle_kept_s = idle_kept_s
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(
        self, method: str, path: str, body: bytes = b"", headers: Headers = ()
    ) -> "UpstreamResponse":
        """Send a request and wait for the head of its answer.

        A kept connection that turns out to be closed is replaced once, silently. Raises
        `ReplicaUnreachable` or `ReplicaTimeout`. Cancelling it aborts the request.
        """
        request = self._request(method, path, body, headers)
        while True:
            connection = self._take_idle()
            reused = connection is not None
            if connection is None:
                connection = await self._connect()
            try:
                return await connection.exchange(request, self._timeouts)
            except ReplicaUnreachable:
                if not reused:
                    raise

    async def begin(
        self, path: str, body: bytes, refused: Callable[[int], bool], headers: Headers = ()
    ) -> tuple["UpstreamResponse", bytes]:
        """POST, and wait for the first bytes of the answer, which come beside it.

        Raises `ReplicaRefused` for a status that is `refused`, `StreamBroken`, and what `open`
        raises; whatever is raised, a cancellation too, the replica is to stop.
        """
        response = await self.open("POST", path, body, headers)
        try:
            if refused(response.status):
                raise ReplicaRefused(f"{self.url} answered {response.status}")
            return response, await response.read()
        except BaseException:  # cancelled too, as is said above
            response.close()
            raise

    async def call(self, call: Call, timeout_s: float, headers: Headers = ()) -> Reply:
        """One whole exchange, for probes and aborts: the body is read to its end."""
        try:
            async with asyncio.timeout(timeout_s):
                async with await self.open(call.method, call.path, call.body, headers) as response:
                    return Reply(response.status, b"".join([chunk async for chunk in response]))
        except TimeoutError as error:
            raise ReplicaTimeout(f"{self.url}{call.path} took over {timeout_s:g} s") from error
        except StreamBroken as error:
            raise ReplicaUnreachable(str(error)) from error

    @property
    def streams(self) -> int:
        """Requests whose answer has not ended."""
        return len(self._open) - len(self._idle)

    async def aclose(self) -> None:
        """Close every connection; answers still open break."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        await asyncio.sleep(0)  # the transports tell their protocols in the next tick

    def give_up(self, why: str) -> None:
        """Wait for nothing any more that is under way: each answer ends with `ReplicaTimeout`."""
        for connection in list(self._open):
            connection._fail(ReplicaTimeout(f"{self.url}: {why}"))
            connection.abort()

    def _request(self, method: str, path: str, body: bytes, headers: Headers) -> bytes:
        extra = b"".join([b"%b: %b\r\n" % header for header in headers])
        return (
            b"%b %b%b HTTP/1.1\r\nhost: %b\r\naccept: */*\r\n%b"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (method.encode(), self._prefix, path.encode(), self._netloc, extra, len(body), body)
        )

    def _take_idle(self) -> "_Connection | None":
        now = time.monotonic()
        while self._idle:
            since, connection = self._idle.pop()
            if now - since < self._idle_kept_s and connection.usable:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            raise ReplicaUnreachable(
                f"{self.url} did not accept a connection within {self._timeouts.connect_s:g} s"
            ) from error
        except OSError as error:
            raise ReplicaUnreachable(f"{self.url} is not reachable: {error}") from error
        self._open.add(connection)
        return connection

    def _release(self, connection: "_Connection") -> None:
        if len(self._idle) < _IDLE_KEPT:
            self._idle.append((time.monotonic(), connection))
            if self._sweeper is None:
                self._sweeper = connection.loop.call_later(self._idle_kept_s, self._sweep)
        else:
            connection.abort()

    def _sweep(self) -> None:
        """Close what nobody has taken again for too long: one timer, while anything is idle."""
        now = time.monotonic()
        while self._idle and self._idle[0][0] + self._idle_kept_s <= now:
            self._idle.popleft()[1].abort()
        self._sweeper = None
        if self._idle:
            since, connection = self._idle[0]
            wait_s = since + self._idle_kept_s - now
            self._sweeper = connection.loop.call_later(wait_s, self._sweep)

    def _lost(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        # An idle connection that the replica closes is found unusable when it is taken.


class UpstreamResponse:
    """A replica's answer, read as it comes. Closing it before its end stops the request."""

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, connection: "_Connection", status: int, headers: dict[bytes, bytes]) -> None:
        self._connection: _Connection | None = connection
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


class _Connection(asyncio.Protocol):
    """One socket and its parser, carrying one request at a time.

    The parser's callbacks (`on_*`) run inside `data_received`. `_waiter` is the one future that a
    reader may be waiting on; whatever happens next resolves it.
    """

    def __init__(self, owner: Upstream) -> None:
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
            self._owner._release(self)
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

    def _fail(self, error: Exception) -> None:
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
        self._fail(ReplicaTimeout(f"{self._owner.url} said nothing for {silent_s:.0f} s"))
        self.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(StreamBroken(f"{self._owner.url} did not answer in HTTP/1.1: {error}"))
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
        self._owner._lost(self)
        if self._done:
            self._wake()
        else:
            why = f"{self._owner.url} closed the connection before its answer ended"
            self._fail(StreamBroken(why))

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
