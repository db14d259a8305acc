"""The router before replicas that publish KV events over real ZeroMQ sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
import zmq
import zmq.asyncio

import sessile.router.kv_feed
from kv_publisher import CLEARED, SIZE, Publisher, Ranks, Replica, Router, stored
from sessile.app import create_app
from sessile.router.engine import FeedSource
from sessile.router.replica import ReplicaSpec
from sessile.settings import Settings

Start = Callable[..., Awaitable[Router]]
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
async def start(serve: Any) -> AsyncIterator[Start]:
    """Starts routers, which look at their replica often."""
    async with AsyncExitStack() as stack:

        async def start(replica: Replica | Ranks, launched: FeedSource | None = None) -> Router:
            _, url = await serve(replica)
            settings = Settings(router={"probe_interval_s": 0.05})  # type: ignore[arg-type]
            spec = ReplicaSpec(id="r", engine=replica.kind, url=url, feed=launched)
            app = create_app(settings, specs=[spec])
            await stack.enter_async_context(app.running())
            return Router(app)

        yield start


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


async def test_what_was_lost_last_is_replayed_in_a_silence(
    publisher: Publisher, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later message shows that it is missing."""
    monkeypatch.setattr(sessile.router.kv_feed, "_RETRY_S", 0.1)
    router = await start(Replica(publisher))
    tree = await router.until(lambda tree: tree.whole)
    while not tree.held_tokens("a"):  # until the subscription has reached the publisher
        await publisher.publish(stored(1, session="a"))
        await asyncio.sleep(0.02)
    await publisher.publish(stored(2, session="b"), heard=False)
    tree = await router.until(lambda tree: tree.held_tokens("b") == SIZE)
    assert tree.whole


async def test_of_a_publisher_that_nobody_hears_nothing_is_known(
    publisher: Publisher, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a vLLM that connects to its address: replays alone would tell what it holds too late."""
    monkeypatch.setattr(sessile.router.kv_feed, "_RETRY_S", 0.1)
    router = await start(Replica(publisher))
    await router.until(lambda tree: tree.whole)
    await publisher.publish(stored(1, session="a"), heard=False)
    tree = await router.until(lambda tree: not tree.whole)
    await publisher.publish(stored(2, session="b"), heard=False)
    await asyncio.sleep(0.3)
    assert (tree.held_tokens("a"), tree.held_tokens("b"), tree.blocks) == (None, None, 0)


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


@pytest.mark.parametrize("told", ["all but its replays", "nothing"])
async def test_a_launcher_knows_of_a_feed_what_an_older_engine_does_not_tell(
    publisher: Publisher, start: Start, told: str
) -> None:
    """What was published before is replayed as from an engine that tells where."""
    await publisher.publish(stored(1, session="a"))
    launched = FeedSource(
        endpoint=f"tcp://127.0.0.1:{publisher.port}",
        replay=f"tcp://127.0.0.1:{publisher.replay_port}",
    )
    replica = Ranks() if told == "nothing" else Replica(publisher, replays=False)
    router = await start(replica, launched)
    tree = await router.until(lambda tree: tree.whole)
    assert (tree.held_tokens("a"), publisher.replays) == (SIZE, [0])


async def test_an_engine_that_tells_another_feed_is_believed(
    publish: Publish, start: Start
) -> None:
    """Its launcher may have been overruled."""
    first, second = await publish(), await publish()
    await first.publish(stored(1, session="a"))
    launched = FeedSource(
        endpoint=f"tcp://127.0.0.1:{second.port}",
        replay=f"tcp://127.0.0.1:{second.replay_port}",
    )
    router = await start(Replica(first), launched)
    await router.until(lambda tree: tree.whole and tree.held_tokens("a") == SIZE)
    assert not second.replays


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
