"""Where engines publish their KV events, and what a real feed tells."""

import json
from typing import Any

import pytest

from recorded_engines import recorded, replies
from sessile.engines.kinds import engine
from sessile.errors import ReplicaRefused
from sessile.router.blocks import BlockTree
from sessile.router.engine import Call, FeedSource, Reply
from sessile.router.kv_events import Feed, read_batch


def test_the_feed_is_found_where_the_engine_has_one(kind: str) -> None:
    """SGLang tells it among its arguments; an engine without KV events is not asked."""
    adapter = engine(kind)
    if kind in ("llamacpp", "openai"):
        assert adapter.feed_calls() == adapter.read_feed((), "gpu1") == ()
    elif kind == "sglang":
        asked = {
            c.path: r
            for c, r in zip(adapter.identity_calls(), replies(kind, "identity"), strict=True)
        }
        answers = tuple(asked[call.path] for call in adapter.feed_calls())
        assert adapter.read_feed(answers, "gpu1") == (
            FeedSource(endpoint="tcp://127.0.0.1:15800", replay="tcp://127.0.0.1:15900"),
        )
    else:
        assert adapter.feed_calls() == (Call("GET", "/kv_event_sources"),)


def test_each_rank_of_an_sglang_publishes_on_a_port_of_its_own() -> None:
    """The ports count up from the base; a wildcard is the host that the replica is reached at."""
    told = {
        "publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 5557, "topic": "kv",
        "dp_size": 2, "replay_endpoint_port_base": None,
    }  # fmt: skip
    assert sglang_feed(told) == (
        FeedSource(endpoint="tcp://gpu1:5557", topic="kv"),
        FeedSource(endpoint="tcp://gpu1:5558", topic="kv", rank=1),
    )
    for without in (None, {}, {**told, "publisher": "null"}, {**told, "endpoint_port_base": None}):
        assert sglang_feed(without) == ()


def sglang_feed(told: Any) -> tuple[FeedSource, ...]:
    """What is read from an SGLang that tells this of its KV events."""
    reply = Reply(200, json.dumps({"kv_events": told}).encode())
    return engine("sglang").read_feed((reply,), "gpu1")


def test_a_vllm_lists_the_sources_of_its_ranks() -> None:
    """In a bare array, under `sources`, or by rank as 0.32 does; those that only its own machine
    can reach are left."""
    adapter = engine("vllm")
    listed = [
        {"data_parallel_rank": 0, "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://[::]:5657",
         "topic": "kv-events"},
        {"data_parallel_rank": 1, "endpoint": "tcp://10.0.0.7:5558", "replay_endpoint": None,
         "topic": ""},
        {"data_parallel_rank": 2, "endpoint": "inproc://events"},
    ]  # fmt: skip
    found = (
        FeedSource(endpoint="tcp://[::1]:5557", replay="tcp://[::1]:5657", topic="kv-events"),
        FeedSource(endpoint="tcp://10.0.0.7:5558", rank=1),
    )
    by_rank = {str(rank): source for rank, source in enumerate(listed)}
    for body in (listed, {"sources": listed}, by_rank):
        assert adapter.read_feed((Reply(200, json.dumps(body).encode()),), "[::1]") == found
    assert adapter.read_feed((Reply(404, b'{"detail":"Not Found"}'),), "gpu1") == ()
    for body in (b'{"sources": 3}', b"[3]"):
        with pytest.raises(ReplicaRefused, match="its /kv_event_sources"):
            adapter.read_feed((Reply(200, body),), "gpu1")


def test_a_unix_socket_is_one_of_this_machine() -> None:
    """Another's cannot be reached, and is left out."""
    body = b'{"0": {"endpoint": "ipc://@kv", "replay_endpoint": "tcp://127.0.0.1:5657"}}'
    adapter = engine("vllm")
    (source,) = adapter.read_feed((Reply(200, body),), "127.0.0.1")
    assert source == FeedSource(endpoint="ipc://@kv", replay="tcp://127.0.0.1:5657")
    assert adapter.read_feed((Reply(200, body),), "gpu1") == ()


def test_a_page_that_lists_no_feeds_is_refused(garbage: Reply) -> None:
    """Whatever it is."""
    with pytest.raises(ReplicaRefused, match="its /kv_event_sources"):
        engine("vllm").read_feed((garbage,), "gpu1")


def test_the_feed_of_a_real_sglang_tells_what_a_session_holds() -> None:
    """After each turn of a session, all of it but what fills no block, without a tokenizer."""
    document = recorded("sglang", "kv_events")
    feed, tree = Feed(), BlockTree()
    held = []
    for message in document["messages"]:
        payload = bytes.fromhex(message["payload"])
        assert feed.live(message["seq"], payload) == "apply"
        tree.apply(read_batch(payload))
        held.append(tree.held_tokens("recorded"))
    assert (tree.whole, tree.held_tokens("nobody")) == (True, 0)
    for turn in document["turns"]:
        told = held[turn["messages"] - 1]
        assert told is not None and 0 < turn["tokens"] - told <= 16
