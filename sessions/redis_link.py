"""How commands travel to Redis: batched, bounded in time, and held off while it is away.

All commands of one tick of the loop, and all that come while a batch is on its way, go out as the
next batch: one write, one round trip. A failure of any batch opens the breaker: every call raises
`StoreUnavailable` at once, until a trial in the background has succeeded.
"""

import asyncio
import logging
from collections.abc import Sequence
from hashlib import sha1
from typing import Any, Protocol
from urllib.parse import urlsplit

from hiredis import pack_command
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import Connection, parse_url
from redis.exceptions import NoScriptError, RedisError, ResponseError

from sessile.errors import SettingsError, StoreUnavailable

log = logging.getLogger("sessile.store")

Command = tuple[Any, ...]
_MOST_QUEUED = 20_000
_LINGER_S = 0.005  # what nobody waits for is held this long, so that turns share a round trip
_FAILURES = (RedisError, OSError, TimeoutError)


class Script:
    """One Lua script, called by its digest; a server that has lost it is taught it again."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = sha1(source.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], *args: Any) -> Command:
        """The call, as one command."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


class Wire(Protocol):
    """What a batch goes over. A reply that is an error stands in the list as an exception."""

    async def connect(self) -> None: ...

    async def exchange(self, commands: Sequence[Command]) -> list[Any]: ...

    async def disconnect(self) -> None: ...


class RedisLink:
    """The batches, the breaker and the queue. Owned by one `RedisStore`, on one loop."""

    def __init__(
        self, url: str, scripts: Sequence[Script], *, timeout_s: float, retry_after_s: float
    ) -> None:
        self._wire = _wire(url)
        self._scripts = {script.sha: script for script in scripts}
        self._timeout_s = timeout_s
        self._retry_after_s = retry_after_s
        self._waiting: list[tuple[Command, asyncio.Future[Any]]] = []
        self._queued: list[Command] = []
        self._due = asyncio.Event()
        self._linger: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.available = False
        self.lost_writes = 0

    async def open(self) -> None:
        """Connect, within the time-out; a server that cannot be reached is tried again later."""
        await self._try_connect()
        self._task = asyncio.create_task(self._pump(), name="redis link")

    async def aclose(self) -> None:
        """Send what is queued, then let go. Nothing is left running."""
        self._closing = True
        self._due.set()
        if self._linger is not None:
            self._linger.cancel()
        if self._task is not None:
            if not self.available:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail(StoreUnavailable("the store is closed"))
        self.available = False
        await self._disconnect()

    async def run(self, command: Command) -> Any:
        """The command's reply. Raises `StoreUnavailable`."""
        return await self._submit(command)

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, in order, of commands that travel together."""
        futures = [self._submit(command) for command in commands]
        return list(await asyncio.gather(*futures))

    def queue(self, commands: Sequence[Command]) -> None:
        """Send them soon; nobody waits. Counted in `lost_writes` if they cannot be sent."""
        if not self.available or len(self._queued) > _MOST_QUEUED:
            self.lost_writes += 1
            return
        self._queued += commands
        if self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(_LINGER_S, self._due.set)

    def _submit(self, command: Command) -> "asyncio.Future[Any]":
        if not self.available:
            raise StoreUnavailable("the session store does not answer")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        self._due.set()
        return future

    async def _pump(self) -> None:
        """The one task of the link: a batch at a time, or, with the breaker open, trials."""
        while True:
            if not self.available:
                await asyncio.sleep(self._retry_after_s)
                await self._try_connect()
                continue
            await self._due.wait()
            self._due.clear()
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            waiting, self._waiting = self._waiting, []
            queued, self._queued = self._queued, []
            if waiting or queued:
                await self._send(waiting, queued)
            elif self._closing:
                return

    async def _send(
        self, waiting: list[tuple[Command, "asyncio.Future[Any]"]], queued: list[Command]
    ) -> None:
        commands = [command for command, _ in waiting] + queued
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await self._exchange(commands)
        except _FAILURES as error:
            self.lost_writes += len(queued)
            reason = str(error) or type(error).__name__
            lost = StoreUnavailable(f"the session store failed: {reason}")
            for _, future in waiting:
                if not future.done():
                    future.set_exception(lost)
            await self._break(reason)
            return
        for (_, future), reply in zip(waiting, replies, strict=False):
            if future.done():
                continue
            if isinstance(reply, Exception):
                future.set_exception(StoreUnavailable(f"the session store refused: {reply}"))
            else:
                future.set_result(reply)
        for reply in replies[len(waiting) :]:
            if isinstance(reply, Exception):
                self.lost_writes += 1
                log.warning("store refused a write why=%r", str(reply))

    async def _exchange(self, commands: list[Command]) -> list[Any]:
        """One round trip; a second one for scripts that the server does not know."""
        replies = await self._wire.exchange(commands)
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            full = [
                ("EVAL", self._scripts[commands[n][1]].source, *commands[n][2:]) for n in unknown
            ]
            for n, reply in zip(unknown, await self._wire.exchange(full), strict=True):
                replies[n] = reply
        for reply in replies:
            if isinstance(reply, ResponseError) and str(reply).startswith(("LOADING", "READONLY")):
                raise reply
        return replies

    async def _try_connect(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._wire.connect()
                await self._exchange([("PING",)])
        except _FAILURES as error:
            log.debug("store is still away why=%r", str(error))
            await self._disconnect()
            return
        self.available = True
        log.info("store answers")

    async def _break(self, reason: str) -> None:
        self.available = False
        log.warning("store is away, turns go on without it why=%r", reason)
        self._fail(StoreUnavailable("the session store does not answer"))
        await self._disconnect()

    def _fail(self, error: StoreUnavailable) -> None:
        waiting, self._waiting = self._waiting, []
        self.lost_writes += len(self._queued)
        self._queued.clear()
        for _, future in waiting:
            if not future.done():
                future.set_exception(error)

    async def _disconnect(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._wire.disconnect()
        except _FAILURES as error:
            log.debug("store connection did not close cleanly why=%r", str(error))


class _Single:
    """One connection to one server, its batches packed in C: the client object above it, with its
    retries, pools and Python packing, costs four times as much a command."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = dict(parse_url(url))
        make = options.pop("connection_class", Connection)
        options["socket_timeout"] = None  # the whole batch has one time-out, not each reply
        self._connection: Connection = make(**options)

    async def connect(self) -> None:
        await self._connection.connect()

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        packed = b"".join([pack_command(command) for command in commands])
        await connection.send_packed_command(packed, check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies

    async def disconnect(self) -> None:
        await self._connection.disconnect(nowait=True)


class _Cluster:
    """A Redis Cluster, through the client that knows its slots."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: RedisCluster | None = None

    async def connect(self) -> None:
        self._client = RedisCluster.from_url(self._url)
        await self._client.initialize()

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        assert self._client is not None
        pipeline = self._client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))

    async def disconnect(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _wire(url: str) -> Wire:
    scheme = urlsplit(url).scheme
    if scheme == "redis-cluster":
        return _Cluster("redis" + url.removeprefix("redis-cluster"))
    if scheme not in ("redis", "rediss", "unix"):
        raise SettingsError(
            f"store.url: {url!r} is not redis://HOST:PORT, rediss://, unix:///PATH "
            "or redis-cluster://HOST:PORT"
        )
    try:
        return _Single(url)
    except ValueError as error:
        raise SettingsError(f"store.url: {url!r}: {error}") from error
