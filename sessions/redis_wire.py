"""What batches of commands go over: a connection to one server, or the client of a Cluster.

A connection is spoken to in bytes: a batch is packed in C, goes out in one write, and is answered
once the last of its replies has been parsed, in C too. The client library, with its streams and its
limits on each reply, costs several times as much; it says what a URL means, and serves the Cluster.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import redis.exceptions
from hiredis import ProtocolError, Reader, pack_command
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import (
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
)

from sessile.errors import SettingsError

Command = tuple[Any, ...]
Sent = Callable[[], None]
"""Called when a batch has been handed to the system, which sends it whatever becomes of us."""
T = TypeVar("T")

_MORE = object()
_REFUSALS: dict[str, type[redis.exceptions.RedisError]] = {
    "CLUSTERDOWN": ClusterDownError,
    "LOADING": BusyLoadingError,
    "MASTERDOWN": MasterDownError,
    "NOAUTH": AuthenticationError,
    "NOSCRIPT": NoScriptError,
    "READONLY": ReadOnlyError,
    "WRONGPASS": AuthenticationError,
}


class Wire(Protocol):
    """What a batch goes over. A reply that is an error stands in the list as an exception. An
    exchange that is not over in time raises `TimeoutError`."""

    async def connect(self) -> None: ...

    async def exchange(
        self, commands: Sequence[Command], sent: Sent | None = None
    ) -> list[Any]: ...

    async def disconnect(self) -> None: ...


def make_wire(url: str, timeout_s: float) -> Wire:
    """What goes to the server, or the Cluster, of that URL. Raises `SettingsError`."""
    parts = urlsplit(url)
    scheme = parts.scheme
    if scheme == "redis-cluster":
        return Cluster("redis" + url.removeprefix("redis-cluster"), timeout_s)
    if scheme not in ("redis", "rediss", "unix") or (scheme == "unix" and not parts.path):
        raise SettingsError(
            f"store.url is none of redis://HOST:PORT, rediss://HOST:PORT, unix:///PATH and "
            f"redis-cluster://HOST:PORT, but begins with {scheme!r}"
        )
    try:
        return Single(url, timeout_s)
    except ValueError as error:
        raise SettingsError(f"store.url cannot be used: {error}") from error


async def in_time(timeout_s: float, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Raises `TimeoutError` when it is late.

    The limit is set in two halves: if this process itself has stalled, what has arrived in the
    meantime is read before the second half runs out.
    """
    loop = asyncio.get_running_loop()
    half_s = timeout_s / 2
    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(half_s, lambda: limit.reschedule(loop.time() + half_s))
        try:
            return await work
        finally:
            timer.cancel()


class Single:
    """One server. `_server` is what the URL says of it, and never connects."""

    def __init__(self, url: str, timeout_s: float) -> None:
        options: dict[str, Any] = dict(parse_url(url))
        make = options.pop("connection_class", Connection)
        self._server: Connection = make(**options)
        self._timeout_s = timeout_s
        self._line: _Line | None = None

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        line, server = _Line(self._timeout_s), self._server
        if isinstance(server, UnixDomainSocketConnection):
            await loop.create_unix_connection(lambda: line, server.path)
        else:
            tls = server.ssl_context.get() if isinstance(server, SSLConnection) else None
            await loop.create_connection(lambda: line, server.host, server.port, ssl=tls)
        self._line = line
        for reply in await self.exchange(self._greeting()):
            if isinstance(reply, Exception):
                raise reply

    def _greeting(self) -> list[Command]:
        server = self._server
        commands: list[Command] = []
        if server.username or server.password:
            commands.append(("AUTH", server.username or "default", server.password or ""))
        if server.client_name:
            commands.append(("CLIENT", "SETNAME", server.client_name))
        if server.db:
            commands.append(("SELECT", server.db))
        return commands

    async def exchange(self, commands: Sequence[Command], sent: Sent | None = None) -> list[Any]:
        if self._line is None:
            raise ConnectionError("not connected")
        try:
            packed = [pack_command(command) for command in commands]
        except (TypeError, ValueError):
            return await self._exchange_what_packs(commands)
        data = packed[0] if len(packed) == 1 else b"".join(packed)
        return await self._line.exchange(data, len(packed), sent) if packed else []

    async def _exchange_what_packs(self, commands: Sequence[Command]) -> list[Any]:
        """A command that has no bytes (a lone surrogate in an id, say) fails; the others travel."""
        replies: list[Any] = [None] * len(commands)
        good: list[int] = []
        for n, command in enumerate(commands):
            try:
                pack_command(command)
                good.append(n)
            except (TypeError, ValueError) as error:
                replies[n] = error
        for n, reply in zip(good, await self.exchange([commands[n] for n in good]), strict=True):
            replies[n] = reply
        return replies

    async def disconnect(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.abort()


class _Line(asyncio.Protocol):
    """One connection, gone with its first failure. One batch at a time is on its way."""

    def __init__(self, timeout_s: float) -> None:
        self._half_s = timeout_s / 2
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(protocolError=ProtocolError, replyError=_refusal, notEnoughData=_MORE)
        self._transport: asyncio.Transport | None = None
        self._replies: list[Any] = []
        self._wanted = 0
        self._answer: asyncio.Future[list[Any]] | None = None
        self._full = False
        self._sent: Sent | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # what is not held here has been sent

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionError(str(exc) if exc else "the server closed the connection"))

    async def exchange(self, data: bytes, count: int, sent: Sent | None) -> list[Any]:
        """The replies to `count` commands. Raises `OSError` and `TimeoutError`."""
        if self._transport is None:
            raise ConnectionError("the server closed the connection")
        self._wanted, self._replies = count, []
        answer: asyncio.Future[list[Any]] = self._loop.create_future()
        self._answer = answer
        timer = self._loop.call_later(self._half_s, self._half_over, answer)
        self._transport.write(data)
        if not self._full and sent is not None:
            sent()
        elif self._full:
            self._sent = sent
        try:
            return await answer
        finally:
            timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _MORE:
                self._replies.append(reply)
        except ProtocolError as error:
            self._fail(ConnectionError(f"the server sent what is no reply: {error}"))
            return
        answer = self._answer
        if answer is not None and len(self._replies) >= self._wanted and not answer.done():
            answer.set_result(self._replies)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        sent, self._sent = self._sent, None
        if sent is not None:
            sent()

    def abort(self) -> None:
        """Let go of it, whatever is on its way."""
        if self._transport is not None:
            self._transport.abort()

    def _half_over(self, answer: "asyncio.Future[list[Any]]") -> None:
        """Wait for the second half: if this process itself has stalled, what has arrived in the
        meantime is read before that runs out."""
        self._loop.call_later(self._half_s, self._over, answer)

    def _over(self, answer: "asyncio.Future[list[Any]]") -> None:
        if not answer.done():
            answer.set_exception(TimeoutError("no reply came in time"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


def _refusal(message: str) -> Exception:
    """An error that the server replies with, as the client library has it."""
    return _REFUSALS.get(message.split(" ", 1)[0], ResponseError)(message)


class Cluster:
    """A Redis Cluster, through the client that knows its slots."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._client: RedisCluster | None = None

    async def connect(self) -> None:
        # No tries of the client's own: the batch's time-out and the breaker decide.
        self._client = RedisCluster.from_url(self._url, retry=Retry(NoBackoff(), 0))
        self._client.set_response_callback("SET", _as_it_is)  # its own knows no NX with GET
        await self._client.initialize()

    async def exchange(self, commands: Sequence[Command], sent: Sent | None = None) -> list[Any]:
        if self._client is None:
            raise ConnectionError("not connected")
        pipeline = self._client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        replies = await in_time(self._timeout_s, pipeline.execute(raise_on_error=False))
        return list(replies)

    async def disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _as_it_is(response: Any, **kwargs: Any) -> Any:
    return response
