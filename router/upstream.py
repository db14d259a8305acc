"""The way to one replica: a pool of kept-alive connections.

It decides nothing of routing; a failure is told as a `ReplicaError`, and whoever opened the stream
chooses what to do.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from sessile.errors import (
    ReplicaRefused,
    ReplicaTimeout,
    ReplicaUnreachable,
    SettingsError,
    StreamBroken,
)
from sessile.router.connection import Connection, Timeouts, UpstreamResponse
from sessile.router.engine import Call, Headers, Reply

_IDLE_KEPT_S = 4.0  # uvicorn closes an idle connection after 5 s; leave before it does
_IDLE_KEPT = 128


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
        self._idle: deque[tuple[float, Connection]] = deque()
        self._open: set[Connection] = set()
        self._idle_kept_s = idle_kept_s
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(
        self, method: str, path: str, body: bytes = b"", headers: Headers = ()
    ) -> UpstreamResponse:
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
    ) -> tuple[UpstreamResponse, bytes]:
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
            connection.fail(ReplicaTimeout(f"{self.url}: {why}"))
            connection.abort()

    def _request(self, method: str, path: str, body: bytes, headers: Headers) -> bytes:
        extra = b"".join([b"%b: %b\r\n" % header for header in headers])
        return (
            b"%b %b%b HTTP/1.1\r\nhost: %b\r\naccept: */*\r\n%b"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (method.encode(), self._prefix, path.encode(), self._netloc, extra, len(body), body)
        )

    def _take_idle(self) -> Connection | None:
        now = time.monotonic()
        while self._idle:
            since, connection = self._idle.pop()
            if now - since < self._idle_kept_s and connection.usable:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            raise ReplicaUnreachable(
                f"{self.url} did not accept a connection within {self._timeouts.connect_s:g} s"
            ) from error
        except OSError as error:
            raise ReplicaUnreachable(f"{self.url} is not reachable: {error}") from error
        self._open.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """It may carry another request; kept for a while, unless enough are."""
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

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        self._open.discard(connection)
        # An idle connection that the replica closes is found unusable when it is taken.
