"""Engines whose KV events a test publishes, and a router that hears them."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from starlette.types import Receive, Scope, Send

from sessile.app import App
from sessile.router.blocks import BlockTree

SIZE = 16
CLEARED = {"type": "AllBlocksCleared"}


def stored(*keys: int, parent: int | None = None, session: str | None = None) -> dict[str, Any]:
    """One event of a run of blocks."""
    event = {
        "type": "BlockStored",
        "block_hashes": keys,
        "parent_block_hash": parent,
        "token_ids": list(range(SIZE * len(keys))),
        "block_size": SIZE,
        "lora_id": None,
        "medium": "GPU",
    }
    return event if session is None else {**event, "session_id": session}


class Publisher:
    """What an engine publishes: PUB, and ROUTER for replays, as SGLang and vLLM do it."""

    def __init__(self, context: zmq.asyncio.Context) -> None:
        self._context = context
        self.port = self.replay_port = 0
        self.kept: list[tuple[bytes, bytes]] = []
        self.replays: list[int] = []
        self.drops: int | None = None  # all of a replay between so many messages and its last
        self._seq = 0

    async def start(self) -> None:
        """Begin to publish, from 0, where it did before."""
        self._seq = 0
        self.kept.clear()
        self._pub, self.port = await self._bound(zmq.PUB, self.port)
        self._router, self.replay_port = await self._bound(zmq.ROUTER, self.replay_port)
        self._serving = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """End, as with its engine."""
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._pub.close(linger=0)
        self._router.close(linger=0)

    async def publish(self, *events: Any, heard: bool = True, kept: bool = True) -> None:
        """One message; not `heard`, it is lost on the way."""
        seq, payload = (
            self._seq.to_bytes(8, "big"),
            msgspec.msgpack.encode([time.time(), events, 0]),
        )
        self._seq += 1
        if kept:
            self.kept.append((seq, payload))
        if heard:
            await self._pub.send_multipart([b"", seq, payload])

    async def _bound(self, kind: int, port: int) -> tuple[zmq.asyncio.Socket, int]:
        socket = self._context.socket(kind)
        while True:
            try:
                socket.bind(f"tcp://127.0.0.1:{port or '*'}")
            except zmq.ZMQError:  # its last socket there is still closing
                await asyncio.sleep(0.01)
            else:
                return socket, int(socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    async def _serve(self) -> None:
        while True:
            who, _, start = await self._router.recv_multipart()
            self.replays.append(int.from_bytes(start, "big"))
            asked = [message for message in self.kept if message[0] >= start]
            for seq, payload in [*asked[: self.drops], *asked[-1:]]:
                await self._router.send_multipart([who, b"", b"", seq, payload])
            await self._router.send_multipart([who, b"", b"", b"\xff" * 8, b""])


class Replica:
    """The pages of an SGLang with a feed; `seed` changes at each start."""

    kind = "sglang"

    def __init__(self, feed: Publisher | None, *, replays: bool = True) -> None:
        self.feed = feed
        self.seed = 1
        self._replays = replays

    def _kv_events(self) -> dict[str, Any] | None:
        if self.feed is None:
            return None
        return {
            "publisher": "zmq",
            "endpoint_host": "*",
            "endpoint_port_base": self.feed.port,
            "topic": "",
            "block_size": SIZE,
            "dp_size": 1,
            "replay_endpoint_port_base": self.feed.replay_port if self._replays else None,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pages: dict[str, Any] = {
            "/ready": {},
            "/v1/models": {"data": [{"id": "m"}]},
            "/v1/loads": {"loads": []},
            "/server_info": {"random_seed": self.seed, "kv_events": self._kv_events()},
        }
        if scope["type"] == "http":
            head = {"type": "http.response.start", "status": 200, "headers": []}
            body = msgspec.json.encode(pages[scope["path"]])
            await send(head)
            await send({"type": "http.response.body", "body": body})


class Ranks:
    """The pages of a vLLM of so many ranks, each with a feed, listed the last one first."""

    kind = "vllm"

    def __init__(self, *feeds: Publisher) -> None:
        self._feeds = feeds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        ranks = range(len(self._feeds))
        metrics = [f'vllm:num_requests_running{{engine="{rank}"}} 0.0\n' for rank in ranks]
        sources = {
            str(rank): {
                "endpoint": f"tcp://*:{self._feeds[rank].port}",
                "replay_endpoint": f"tcp://*:{self._feeds[rank].replay_port}",
            }
            for rank in reversed(ranks)
        }
        pages = {
            "/health": b"",
            "/v1/models": msgspec.json.encode({"data": [{"id": "m"}]}),
            "/version": msgspec.json.encode({"version": "0.32.0"}),
            "/metrics": "".join(["process_start_time_seconds 1.0\n", *metrics]).encode(),
            "/kv_event_sources": msgspec.json.encode(sources),
        }
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": pages[scope["path"]]})


class Router:
    """A running router before one such replica."""

    def __init__(self, app: App) -> None:
        self.app = app

    @property
    def tree(self) -> BlockTree | None:
        """What the router knows of the replica's blocks."""
        return self.tree_of("r")

    def tree_of(self, name: str) -> BlockTree | None:
        """What it knows of a replica's, if that is there."""
        replica = self.app.pool.find(name)
        return replica.outlook.tree if replica is not None else None

    async def until(self, true: Callable[[BlockTree], bool], name: str = "r") -> BlockTree:
        """Wait until the tree is there, and is as it must become."""
        while (tree := self.tree_of(name)) is None or not true(tree):  # noqa: ASYNC110 - no event to set
            await asyncio.sleep(0.01)
        return tree
