"""The router before replicas that publish KV events over real ZeroMQ sockets."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import msgspec
import pytest
import uvicorn
import zmq
import zmq.asyncio
from starlette.types import Receive, Scope, Send

import sessile.router.kv_feed
from sessile.app import App, create_app
from sessile.router.blocks import BlockTree
from sessile.router.replica import ReplicaSpec
from sessile.settings import Settings

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
        while (tree := self.tree_of(name)) is None or not true(tree):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        return tree


Start = Callable[[Replica | Ranks], Awaitable[Router]]
Publish = Callable[[], Awaitable[Publisher]]


@pytest.fixture
async def publish() -> AsyncIterator[Publish]:
    """Makes feeds that have not published anything."""
    context = zmq.asyncio.Context()
    made = []

    async def publish() -> Publisher:
        publisher = Publisher(context)
        await publisher.start()
        made.append(publisher)
        return publisher

    yield publish
    for publisher in made:
        await publisher.stop()
    context.destroy(linger=0)


@pytest.fixture
async def publisher(publish: Publish) -> Publisher:
    """One such feed."""
    return await publish()


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts routers, which look at their replica often."""
    async with AsyncExitStack() as stack:

        async def start(replica: Replica | Ranks) -> Router:
            url = await stack.enter_async_context(_served(replica))
            settings = Settings(router={"probe_interval_s": 0.05})  # type: ignore[arg-type]
            app = create_app(settings, specs=[ReplicaSpec(id="r", engine=replica.kind, url=url)])
            await stack.enter_async_context(app.running())
            return Router(app)

        yield start


@asynccontextmanager
async def _served(replica: Replica | Ranks) -> AsyncIterator[str]:
    config = uvicorn.Config(replica, port=0, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


async def test_what_was_published_before_is_replayed_and_then_it_listens(
    publisher: Publisher, start: Start
) -> None:
    """A router that starts beside a busy engine knows at once what each session holds."""
    await publisher.publish(CLEARED)
    await publisher.publish(stored(1, 2, 3, session="a"))
    router = await start(Replica(publisher))
    tree = await router.until(lambda tree: tree.whole)
    assert (tree.held_tokens("a"), tree.held_tokens("b"), publisher.replays) == (3 * SIZE, 0, [0])
    await publisher.publish(stored(4, parent=3, session="b"), stored(5, parent=4, session="b"))
    await router.until(lambda tree: tree.held_tokens("b") == 5 * SIZE)
    await publisher.publish({"type": "BlockRemoved", "block_hashes": [5], "medium": "GPU"})
    await router.until(lambda tree: tree.held_tokens("b") == 4 * SIZE)


async def test_all_that_an_engine_keeps_is_replayed(publisher: Publisher, start: Start) -> None:
    """As many messages as SGLang and vLLM keep; what does not fit ZeroMQ's queue is dropped by
    the publisher, and asked for again."""
    publisher.drops = 3000
    for key in range(1, 10_001):
        await publisher.publish(stored(key, session=f"s{key}"), heard=False)
    router = await start(Replica(publisher))
    tree = await router.until(lambda tree: tree.blocks == 10_000)
    assert (tree.whole, tree.held_tokens("s10000"), publisher.replays[0]) == (True, SIZE, 0)
    assert 3 <= len(publisher.replays) <= 20


async def test_an_engine_that_has_published_nothing_is_known_to_hold_nothing(
    publisher: Publisher, start: Start
) -> None:
    """An empty replay tells that too, and the admin API shows it."""
    router = await start(Replica(publisher))
    await router.until(lambda tree: tree.whole)
    transport = httpx2.ASGITransport(app=router.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://router") as http:
        (shown,) = (await http.get("/sessile/v1/replicas")).json()["replicas"]
    assert shown["kv"] == {"blocks": 0, "tokens": 0, "whole": True, "sessions": 0}


async def test_a_gap_is_replayed(publisher: Publisher, start: Start) -> None:
    """Messages that were lost on the way are asked for, and nothing is applied twice."""
    router = await start(Replica(publisher))
    await router.until(lambda tree: tree.whole)
    await publisher.publish(stored(1, session="a"))
    await publisher.publish(stored(2, 3, parent=1, session="a"), heard=False)
    await publisher.publish({"type": "BlockRemoved", "block_hashes": [3]}, heard=False)
    await publisher.publish(stored(7, session="b"))
    tree = await router.until(lambda tree: tree.held_tokens("b") == SIZE)
    assert (tree.held_tokens("a"), tree.blocks, tree.whole) == (2 * SIZE, 3, True)
    assert publisher.replays[-1] in (0, 1)  # 0 where the first message came before the socket did


async def test_a_gap_that_cannot_be_replayed_makes_sessions_unknown(
    publisher: Publisher, start: Start
) -> None:
    """What was known before the loss may be gone since; what is told after it is known again."""
    await publisher.publish(stored(1, session="a"))
    router = await start(Replica(publisher))
    await router.until(lambda tree: tree.whole)
    await publisher.publish(stored(2, parent=1, session="a"), heard=False, kept=False)
    while (tree := router.tree) is not None and tree.whole:
        await publisher.publish(stored(7, session="b"))
        await asyncio.sleep(0.05)
    tree = await router.until(lambda tree: tree.held_tokens("b") == SIZE)
    assert (tree.held_tokens("a"), tree.held_tokens("c")) == (None, None)
    await publisher.publish(CLEARED)
    tree = await router.until(lambda tree: tree.whole)
    assert tree.held_tokens("a") == 0


async def test_a_restarted_engine_holds_nothing(publisher: Publisher, start: Start) -> None:
    """A new incarnation has a new tree; its feed counts from 0 again at the same address."""
    replica = Replica(publisher)
    await publisher.publish(stored(1, session="a"))
    router = await start(replica)
    before = await router.until(lambda tree: tree.held_tokens("a") == SIZE)
    await publisher.stop()
    await publisher.start()
    await publisher.publish(stored(2, 3, session="b"))
    replica.seed = 2
    after = await router.until(lambda tree: tree.held_tokens("b") == 2 * SIZE)
    assert after is not before or after.whole
    await router.until(lambda tree: tree is not before and tree.whole)
    assert router.tree is not None and router.tree.held_tokens("a") == 0


async def test_a_restart_is_seen_in_the_feed_before_any_probe(
    publisher: Publisher, start: Start
) -> None:
    """Numbers that fall back are a publisher that began anew: the old blocks are forgotten."""
    await publisher.publish(CLEARED)
    router = await start(Replica(publisher))
    tree = await router.until(lambda tree: tree.whole)
    while not tree.held_tokens("a"):  # until the subscription has reached the publisher
        await publisher.publish(stored(1, session="a"))
        await asyncio.sleep(0.02)
    await publisher.stop()
    await publisher.start()
    while not tree.held_tokens("b"):
        await publisher.publish(stored(2, session="b"))
        await asyncio.sleep(0.02)
    assert (tree is router.tree, tree.held_tokens("a"), tree.whole) == (True, 0, True)


async def test_a_feed_without_replays_is_whole_only_after_a_clearing(
    publisher: Publisher, start: Start
) -> None:
    """Without a replay endpoint the past is unknown, unless the engine says that it is empty."""
    await publisher.publish(stored(1, session="a"))
    router = await start(Replica(publisher, replays=False))
    tree = await router.until(lambda _: True)
    while not tree.held_tokens("b"):
        await publisher.publish(stored(2, session="b"))
        await asyncio.sleep(0.02)
    assert (tree.whole, tree.held_tokens("a")) == (False, None)
    await publisher.publish(CLEARED)
    await router.until(lambda tree: tree.whole)


async def test_a_feed_that_is_away_leaves_the_replica_in_service(
    publisher: Publisher, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers: the tree is unknown; once somebody does, it becomes whole."""
    monkeypatch.setattr(sessile.router.kv_feed, "_REPLAY_S", 0.1)
    monkeypatch.setattr(sessile.router.kv_feed, "_RETRY_S", 0.1)
    await publisher.stop()
    router = await start(Replica(publisher))
    tree = await router.until(lambda _: True)
    await asyncio.sleep(0.3)
    assert (tree.whole, router.app.pool.get("r").state) == (False, "ready")
    await publisher.start()
    await publisher.publish(stored(1, session="a"))
    await router.until(lambda tree: tree.whole and tree.held_tokens("a") == SIZE)


async def test_a_message_that_cannot_be_read_is_a_loss(publisher: Publisher, start: Start) -> None:
    """The feed goes on after it, but what it said is not known."""
    router = await start(Replica(publisher))
    await router.until(lambda tree: tree.whole)
    await publisher.publish({"type": "BlockStored", "block_hashes": "?"})
    while (tree := router.tree) is not None and tree.held_tokens("a") is not SIZE:
        await publisher.publish(stored(1, session="a"))
        await asyncio.sleep(0.02)
    assert router.tree is not None and not router.tree.whole


async def test_each_rank_of_a_server_holds_what_its_own_feed_tells(
    publish: Publish, start: Start
) -> None:
    """Whatever the order in which the server lists them."""
    first, second = await publish(), await publish()
    await first.publish(stored(1, session="a"))
    await second.publish(stored(1, 2, session="b"))
    router = await start(Ranks(first, second))
    zero = await router.until(lambda tree: tree.whole, "r@0")
    one = await router.until(lambda tree: tree.whole, "r@1")
    assert (zero.held_tokens("a"), zero.held_tokens("b")) == (SIZE, 0)
    assert (one.held_tokens("a"), one.held_tokens("b")) == (0, 2 * SIZE)
    await first.publish(CLEARED)
    await router.until(lambda tree: tree.held_tokens("a") == 0, "r@0")
    assert one.held_tokens("b") == 2 * SIZE and router.app.pool.find("r") is None


async def test_a_replica_without_a_feed_has_no_tree(start: Start) -> None:
    """It is served like any other."""
    router = await start(Replica(None))
    while router.app.pool.get("r").state != "ready":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert router.tree is None
