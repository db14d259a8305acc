"""Listens to the KV events of the replicas that publish them, and keeps each one's block tree.

One task a replica: it asks where the feed is, has what was published already replayed, then takes
what comes. A feed that is away, or lies about its form, costs its replica nothing but the
knowledge: the tree is not whole then.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Literal, cast
from urllib.parse import urlsplit

import zmq

from sessile.errors import ReplicaError, ReplicaRefused
from sessile.router.blocks import BlockTree
from sessile.router.engine import FeedSource
from sessile.router.kv_events import Feed, Take, read_batch
from sessile.router.pool import Pool
from sessile.router.replica import Replica

log = logging.getLogger("sessile.kv_feed")

_Context = zmq.Context[zmq.Socket[bytes]]

_GATHER_S = 0.02  # how late we may know: what comes within it is taken together
_AT_ONCE = 64
_QUEUED = 10_000  # messages held for us; beyond it they are lost, and replayed
_REPLAY_S = 10.0  # without a word from a replay
_RETRY_S = 10.0
_HEARTBEAT_S, _SILENT_S = 10, 30  # finds a peer that vanished without closing its connection
_NOBLOCK = int(zmq.NOBLOCK)
_END = 2**64 - 1  # the sequence number -1


class _Inbox:
    """What arrives on one socket, taken many messages at a time, since to wake up is dear, but not
    so many that the event loop would wait.

    Not `zmq.asyncio`: it wakes the loop for each message, also while we let them gather.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._behind = False

    async def take(self, timeout_s: float) -> list[tuple[int, bytes]]:
        """Sequence numbers and payloads; none if none comes in time."""
        if self._behind:
            await asyncio.sleep(0)
            if messages := self._waiting():
                return messages
        if await self._arrival(timeout_s):
            await asyncio.sleep(_GATHER_S)
        return self._waiting()

    async def _arrival(self, timeout_s: float) -> bool:
        loop, file = asyncio.get_running_loop(), cast(int, self._socket.get(zmq.FD))
        until = loop.time() + timeout_s
        # NOTE: the file tells that something happened, not what; to ask for EVENTS re-arms it.
        while not cast(int, self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            happened = asyncio.Event()
            loop.add_reader(file, happened.set)
            try:
                async with asyncio.timeout_at(until):
                    await happened.wait()
            except TimeoutError:
                return False
            finally:
                loop.remove_reader(file)
        return True

    def _waiting(self) -> list[tuple[int, bytes]]:
        receive, messages = self._socket.recv, list[tuple[int, bytes]]()
        with suppress(zmq.Again):
            while len(messages) < _AT_ONCE:
                # The topic, the number and the payload; in a replay an empty frame before them.
                _, seq, payload = receive(_NOBLOCK), receive(_NOBLOCK), receive(_NOBLOCK)
                while self._socket.get(zmq.RCVMORE):
                    seq, payload = payload, receive(_NOBLOCK)
                messages.append((int.from_bytes(seq, "big"), payload))
        self._behind = len(messages) == _AT_ONCE
        return messages


class Listener:
    """The subscription to one publisher. Made by `Feeds`, ends with its task."""

    def __init__(
        self,
        replica: str,
        source: FeedSource,
        tree: BlockTree,
        context: _Context,
    ) -> None:
        self._replica = replica
        self._source = source
        self._tree = tree
        self._context = context
        self._feed = Feed()
        self._retry_at: float | None = None
        self._deaf = False  # what is published there does not come here

    async def run(self) -> None:
        """Listen until cancelled."""
        socket = self._context.socket(zmq.SUB)
        try:
            socket.set(zmq.RCVHWM, _QUEUED)
            socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_S * 1000)
            socket.set(zmq.HEARTBEAT_TIMEOUT, _SILENT_S * 1000)
            socket.subscribe(self._source.topic)
            socket.connect(self._source.endpoint)
            await self._replay(0)
            inbox = _Inbox(socket)
            while True:
                messages = await inbox.take(_RETRY_S)
                for seq, payload in messages:
                    if self._feed.live(seq, payload) == "apply":
                        self._apply(seq, payload)
                    else:
                        await self._catch_up(seq, payload)
                if self._retry_at is not None and _now() >= self._retry_at:
                    await self._replay(0)
                elif not messages and not self._deaf:
                    await self._look()
        finally:
            socket.close(linger=0)

    async def _look(self) -> None:
        """Whether a publisher that is silent has published: what was lost last shows by no gap. One
        of which nothing was ever heard is one that nobody can hear: of what it holds we would learn
        too late."""
        before = self._feed.next
        await self._replay(max(before - 1, 0))
        if self._feed.next > before and not self._feed.heard:
            self._deaf = True
            self._lose(self._feed.next, f"what it publishes does not reach {self._source.endpoint}")

    async def _catch_up(self, seq: int, payload: bytes) -> None:
        """Take a message that is not the one awaited."""
        take = self._feed.take(seq, payload)
        if take == "gap":
            await self._replay(max(self._feed.next - 1, 0))
            take = self._take(seq, payload)
        if take == "apply":
            self._apply(seq, payload)

    async def _replay(self, start: int) -> None:
        """Apply what the publisher still has from `start` on. Where nobody answers it is given up,
        and tried again later, from 0."""
        if self._source.replay is None:
            return
        while (end := await self._ask(self._source.replay, start)) in ("anew", "again"):
            start = self._feed.next
        if end == "silence" and self._retry_at is None:
            log.warning("kv events were not replayed replica=%s endpoint=%s", self._replica,
                        self._source.replay)  # fmt: skip
        self._retry_at = _now() + _RETRY_S if end == "silence" else None

    async def _ask(self, endpoint: str, start: int) -> Literal["end", "again", "anew", "silence"]:
        """One replay, on a socket of its own: nothing of it can turn up in the next."""
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.set(zmq.RCVHWM, 0)
            socket.connect(endpoint)
            socket.send_multipart([b"", start.to_bytes(8, "big")])
            return await self._read_replay(_Inbox(socket), start)
        finally:
            socket.close(linger=0)

    async def _read_replay(
        self, inbox: _Inbox, start: int
    ) -> Literal["end", "again", "anew", "silence"]:
        """Ask `again` for what is missing behind what came: a publisher drops, unseen, what does
        not fit into its queue. What is missing before it is gone."""
        begun = False
        awaited = self._feed.next
        while messages := await inbox.take(_REPLAY_S):
            if not begun and start == 0:
                self._feed.skip_to(0)
            for seq, payload in messages:
                if seq == _END:
                    if self._feed.next == 0:
                        self._tree.cleared(self._source.rank)  # nothing was ever published
                    return "end"
                if begun and seq > self._feed.next:
                    return "again"
                begun = True
                take = self._take(seq, payload)
                if take == "anew":
                    return "anew"
                if take == "apply":
                    self._apply(seq, payload)
        return "again" if self._feed.next > awaited else "silence"

    def _take(self, seq: int, payload: bytes) -> Take:
        """Take a message; what lies before it and was not replayed is lost."""
        take = self._feed.take(seq, payload)
        if take != "gap":
            return take
        self._lose(seq, f"messages {self._feed.next} to {seq - 1} are gone")
        return self._feed.take(seq, payload)

    def _apply(self, seq: int, payload: bytes) -> None:
        if seq == 0:
            self._tree.cleared(self._source.rank)
        try:
            self._tree.apply(read_batch(payload), self._source.rank)
        except ReplicaRefused as error:
            self._lose(seq + 1, error.message)

    def _lose(self, seq: int, why: str) -> None:
        self._feed.skip_to(seq)
        self._tree.lost(self._source.rank)
        log.warning("kv events were lost replica=%s rank=%d why=%r", self._replica,
                    self._source.rank, why)  # fmt: skip


class Feeds:
    """One task for each replica whose engine may publish, begun again at each incarnation."""

    def __init__(self, pool: Pool, *, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._context: _Context | None = None  # once there is a feed: it has threads
        self._tasks: dict[Replica, asyncio.Task[None]] = {}
        self._incarnations: dict[Replica, str | None] = {}

    def sync(self) -> None:
        """Follow the pool; called on every change of it."""
        present = set(self._pool)
        for replica in list(self._tasks):
            if replica not in present or replica.incarnation != self._incarnations[replica]:
                self._tasks.pop(replica).cancel()
                replica.outlook.tree = None
        for replica in present - self._tasks.keys():
            if replica.state == "ready" and replica.engine.feed_calls():
                self._incarnations[replica] = replica.incarnation
                task = asyncio.create_task(self._follow(replica), name=f"kv feed {replica.id}")
                task.add_done_callback(_report)
                self._tasks[replica] = task

    async def aclose(self) -> None:
        """End every subscription."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    async def _follow(self, replica: Replica) -> None:
        sources = await self._sources(replica)
        if not sources:
            return
        tree = replica.outlook.tree = BlockTree(source.rank for source in sources)
        log.info("kv events found replica=%s endpoints=%s", replica.id,
                 ",".join(source.endpoint for source in sources))  # fmt: skip
        context = self._context = self._context or zmq.Context()
        async with asyncio.TaskGroup() as group:
            for source in sources:
                group.create_task(Listener(replica.id, source, tree, context).run())

    async def _sources(self, replica: Replica) -> tuple[FeedSource, ...]:
        """Where the replica publishes, by itself and by its launcher; asked until it answers."""
        engine, host = replica.engine, urlsplit(replica.spec.url).hostname or ""
        while True:
            try:
                calls = engine.feed_calls()
                replies = [await replica.upstream.call(c, self._timeout_s) for c in calls]
                told = engine.read_feed(tuple(replies), f"[{host}]" if ":" in host else host)
                return _completed(told, replica.spec.feed)
            except ReplicaRefused as error:
                log.warning("kv events not found replica=%s why=%r", replica.id, error.message)
                return ()
            except ReplicaError:
                await asyncio.sleep(_RETRY_S)


def _completed(told: tuple[FeedSource, ...], launched: FeedSource | None) -> tuple[FeedSource, ...]:
    """What a replica tells, with what its launcher knows where its engine is too old to tell it:
    SGLang 0.5.17 has no word of its replays, vLLM 0.24 none of its feed."""
    if launched is None:
        return told
    return tuple(
        launched if source.endpoint == launched.endpoint and source.replay is None else source
        for source in told or (launched,)
    )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _report(task: asyncio.Task[None]) -> None:
    """A feed ends by itself only where there is none: any other end must not pass unseen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("kv feed failed task=%r", task.get_name(), exc_info=error)
