"""How commands travel to Redis: batched, bounded in time, and held off while it is away.

All commands of one tick of the loop, and all that come while a batch is on its way, go out as the
next batch: one write, one round trip. A failure of any batch opens the breaker: every call raises
`StoreUnavailable` at once, until a trial in the background has succeeded.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any

import redis.exceptions
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)

from sessile.errors import StoreUnavailable
from sessile.sessions.redis_wire import Cluster, Command, Sent, in_time, make_wire

log = logging.getLogger("sessile.store")

_MOST_QUEUED = 10_000
_MOST_AT_ONCE = 1_000  # so that a burst is not one batch too long for the time-out
_LINGER_S = 0.005  # what nobody waits for is held this long, so that turns share a round trip
_FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
_AWAY = (  # replies that speak of the server, not of the command
    redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, ReadOnlyError,
    ClusterDownError, MasterDownError, RedisClusterException,
)  # fmt: skip

_Group = tuple[Sequence[Command], "asyncio.Future[list[Any]]", Sent | None]
Write = Callable[[], Sequence[Command]]
"""Makes the commands of one write."""


class Script:
    """One Lua script, called by its digest; a server that has lost it is taught it again."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = sha1(source.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], *args: Any) -> Command:
        """The call, as one command."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


class RedisLink:
    """The batches, the breaker and the queue. Owned by one `RedisStore`, on one loop."""

    def __init__(
        self, url: str, scripts: Sequence[Script], *, timeout_s: float, retry_after_s: float
    ) -> None:
        self._wire = make_wire(url, timeout_s)
        self.is_cluster = isinstance(self._wire, Cluster)
        self._scripts = {script.sha: script for script in scripts}
        self._timeout_s = timeout_s
        self._retry_after_s = retry_after_s
        self._waiting: list[tuple[Command, asyncio.Future[Any]]] = []
        self._together: list[_Group] = []
        self._queued: list[Write] = []
        self._due = asyncio.Event()
        self._linger: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.available = False
        self.available_since = 0.0
        self.lost_writes = 0

    async def open(self) -> None:
        """Connect, within the time-out; a server that cannot be reached is tried again later."""
        await self._try_connect()
        if not self.available:
            log.warning("store is away, turns go on without it")
        self._task = asyncio.create_task(self._pump(), name="redis link")

    async def aclose(self) -> None:
        """Send what is queued, within a time-out, then let go. Nothing is left running."""
        self._closing = True
        self._due.set()
        if self._linger is not None:
            self._linger.cancel()
        if self._task is not None:
            if self.available:
                await asyncio.wait([self._task], timeout=2 * self._timeout_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.available = False
        self._fail(StoreUnavailable("the session store is closed"))
        await self._disconnect()

    async def run(self, command: Command) -> Any:
        """The command's reply. Raises `StoreUnavailable`."""
        return await self._submit(command)

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, in order, of commands that travel together."""
        futures = [self._submit(command) for command in commands]
        try:
            return [await future for future in futures]  # at a quarter of what `gather` costs
        except BaseException:
            for future in futures:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # those that nobody asks would be complained of
            raise

    async def run_together(
        self, commands: Sequence[Command], sent: Sent | None = None
    ) -> list[Any]:
        """As `run_all`, for many commands that one task waits for: much cheaper a command. Raises
        `StoreUnavailable` also where only one of them is refused."""
        self._check()
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._together.append((commands, future, sent))
        self._due.set()
        return await future

    def queue(self, write: Write) -> None:
        """Send one write's commands soon; nobody waits. They are made when they are sent, many at
        once, which costs half. Counted in `lost_writes` if they cannot be made or sent."""
        if not self.available or self._closing or len(self._queued) >= _MOST_QUEUED:
            self.lost_writes += 1  # not logged: the breaker's opening was, and there are many
            return
        self._queued.append(write)
        if self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(_LINGER_S, self._due.set)

    def _check(self) -> None:
        if not self.available or self._closing:
            raise StoreUnavailable("the session store does not answer")

    def _submit(self, command: Command) -> "asyncio.Future[Any]":
        self._check()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        self._due.set()
        return future

    async def _pump(self) -> None:
        """The one task of the link: a batch at a time, or, with the breaker open, trials."""
        while True:
            if not self.available:
                if self._closing:
                    return
                await asyncio.sleep(self._retry_after_s)
                await self._try_connect()
                continue
            if self._closing and not (self._waiting or self._together or self._queued):
                return
            await self._due.wait()
            self._due.clear()
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            waiting, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
            queued, self._queued = self._queued[:_MOST_AT_ONCE], self._queued[_MOST_AT_ONCE:]
            together, self._together = self._together[:1], self._together[1:]
            if self._waiting or self._together or self._queued or self._closing:
                self._due.set()
            if waiting or together or queued:
                await self._send(waiting, together, queued)

    async def _send(
        self,
        waiting: list[tuple[Command, "asyncio.Future[Any]"]],
        together: "list[_Group]",
        queued: list[Write],
    ) -> None:
        commands = [command for command, _ in waiting]
        sent = None
        for group, _, told in together:  # one at most
            commands += group
            sent = told
        writes = [self._made(write) for write in queued]
        for write in writes:
            commands += write
        try:
            replies = await self._exchange(commands, sent)
        except Exception as error:  # whatever a client library raises, the one task must go on
            if not isinstance(error, _FAILURES):
                log.exception("store failed in a way that was not foreseen")
            reason = str(error) or type(error).__name__
            self._together = together + self._together
            self._available_no_more(waiting, queued, reason)
            await self._disconnect()
            return
        for (_, future), reply in zip(waiting, replies, strict=False):
            if future.done():
                continue
            if isinstance(reply, Exception):
                future.set_exception(StoreUnavailable(f"the session store refused: {reply}"))
            else:
                future.set_result(reply)
        end = len(waiting)
        for group, answer, _ in together:
            start, end = end, end + len(group)
            _answer(answer, replies[start:end])
        for write in writes:
            start, end = end, end + len(write)
            refused = [reply for reply in replies[start:end] if isinstance(reply, Exception)]
            if refused:
                self.lost_writes += 1
                log.warning("store refused a write why=%r", str(refused[0]))

    def _made(self, write: Write) -> Sequence[Command]:
        try:
            return write()
        except Exception:  # the caller's turn is over, nobody is left to be told
            log.exception("write could not be encoded")
            self.lost_writes += 1
            return ()

    async def _exchange(self, commands: list[Command], sent: Sent | None = None) -> list[Any]:
        """One round trip; a second one for scripts that the server does not know."""
        replies = await self._wire.exchange(commands, sent)
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            full = [
                ("EVAL", self._scripts[commands[n][1]].source, *commands[n][2:]) for n in unknown
            ]
            for n, reply in zip(unknown, await self._wire.exchange(full), strict=True):
                replies[n] = reply
        for reply in replies:
            if isinstance(reply, _AWAY):
                raise reply
        return replies

    async def _try_connect(self) -> None:
        try:
            await in_time(self._timeout_s, self._greet())
        except Exception as error:  # as in `_send`
            if not isinstance(error, _FAILURES):
                log.exception("store failed in a way that was not foreseen")
            log.debug("store is still away why=%r", str(error))
            await self._disconnect()
            return
        self.available = True
        self.available_since = time.monotonic()
        log.info("store answers")

    async def _greet(self) -> None:
        await self._wire.connect()
        await self._exchange([("GET", "sessile:{hello}")])

    def _available_no_more(
        self,
        waiting: list[tuple[Command, "asyncio.Future[Any]"]],
        queued: list[Write],
        reason: str,
    ) -> None:
        """Open the breaker: what was under way and what waits behind it has failed."""
        self.available = False
        self._waiting = waiting + self._waiting
        self._queued = queued + self._queued
        lost = len(self._queued)
        self._fail(StoreUnavailable(f"the session store failed: {reason}"))
        log.warning("store is away, turns go on without it why=%r lost_writes=%d", reason, lost)

    def _fail(self, error: StoreUnavailable) -> None:
        waiting, self._waiting = self._waiting, []
        together, self._together = self._together, []
        self.lost_writes += len(self._queued)
        self._queued.clear()
        futures: list[asyncio.Future[Any]] = [future for _, future in waiting]
        futures += [future for _, future, _ in together]
        for future in futures:
            if not future.done():
                future.set_exception(error)

    async def _disconnect(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._wire.disconnect()
        except _FAILURES as error:
            log.debug("store connection did not close cleanly why=%r", str(error))


def _answer(future: "asyncio.Future[list[Any]]", replies: list[Any]) -> None:
    """Give a group its replies, or the first refusal among them."""
    if future.done():
        return
    refused = next((reply for reply in replies if isinstance(reply, Exception)), None)
    if refused is None:
        future.set_result(replies)
    else:
        future.set_exception(StoreUnavailable(f"the session store refused: {refused}"))
