"""Servers of several data-parallel ranks, each read as a replica of its own."""

import json
import re

import pytest

from recorded_engines import NOW, replies, started_with, usage_of
from sessile.engines.kinds import engine
from sessile.errors import ReplicaRefused
from sessile.router.engine import FeedSource, Reply

RANKED = ["sglang", "vllm"]


def test_load_is_summed_over_data_parallel_ranks() -> None:
    """What is asked of a whole server: the requests of its ranks and their room add up."""
    (reply,) = replies("sglang", "load_busy")
    body = json.loads(reply.body)
    body["loads"] *= 2
    one = engine("sglang").read_load((reply,), NOW)
    two = engine("sglang").read_load((Reply(200, json.dumps(body).encode()),), NOW)
    assert two.running == 2
    assert one.capacity_tokens is not None and two.capacity_tokens == 2 * one.capacity_tokens


@pytest.mark.parametrize("kind", RANKED)
def test_the_ranks_of_a_real_server_are_counted_and_told_apart(kind: str) -> None:
    """The load of a turn is seen at the rank that runs it, and the ranks' room adds up to the
    whole's."""
    whole = engine(kind)
    assert whole.read_identity(replies(kind, "ranks_identity")).ranks == 2
    assert whole.read_identity(replies(kind, "identity")).ranks == 1
    told = replies(kind, "ranks_load")
    loads = [whole.at_rank(rank).read_load(told, NOW) for rank in (0, 1)]
    assert [load.running for load in loads] == [0, 1] and whole.read_load(told, NOW).running == 1
    rooms = [load.capacity_tokens or 0 for load in loads]
    assert rooms[0] == rooms[1] > 0 and sum(rooms) == whole.read_load(told, NOW).capacity_tokens


@pytest.mark.parametrize("kind", RANKED)
def test_each_rank_of_a_real_server_has_a_feed_of_its_own(kind: str) -> None:
    """Those of the ranks are those of the whole."""
    whole, told = engine(kind), replies(kind, "ranks_feed")
    feeds = [whole.at_rank(rank).read_feed(told, "gpu1") for rank in (0, 1)]
    assert [[source.rank for source in feed] for feed in feeds] == [[0], [1]]
    assert {source for feed in feeds for source in feed} == {*whole.read_feed(told, "gpu1")}


@pytest.mark.parametrize("kind", RANKED)
def test_a_request_goes_to_the_rank_that_it_names(kind: str) -> None:
    """The same prompt, sent to each of two ranks twice: each has computed it once."""
    cached = [usage_of(engine(kind), reply).cached_tokens for reply in replies(kind, "ranks_turns")]
    assert cached[:2] == [0, 0] and cached[2] == cached[3] and (cached[2] or 0) > 200
    assert engine(kind).headers("s") == ()
    assert engine(kind).at_rank(1).headers("s") == ((b"x-data-parallel-rank", b"1"),)


def test_an_sglang_of_attention_groups_has_as_many_ranks() -> None:
    """Where the groups are counted apart from the replicas, one of the two is one."""
    for told, ranks in (({"dp_size": 1, "attn_dp_size": 8}, 8), ({"dp_size": 4}, 4), ({}, 1)):
        assert engine("sglang").read_identity(started_with(**told)).ranks == ranks


def test_the_room_of_a_vllm_s_rank_is_not_that_of_all() -> None:
    """It labels each with the blocks of both; one without ranks has as much in a rank's memory."""
    (told,) = replies("vllm", "ranks_load")
    assert re.search(rb'engine="1".*num_gpu_blocks="2912"', told.body)
    alone = engine("vllm").read_load(replies("vllm", "load_idle"), NOW)
    without = Reply(200, told.body.replace(b"kv_cache_size_tokens", b"something"))
    for reply in (told, without):
        rank = engine("vllm").at_rank(1).read_load((reply,), NOW)
        assert rank.capacity_tokens == alone.capacity_tokens == 46592


def test_a_vllm_that_runs_some_ranks_of_a_deployment_counts_its_own_from_0() -> None:
    """Its metrics and its feeds name them as the whole does."""
    metrics = "".join(
        f'vllm:cache_config_info{{engine="{name}",kv_cache_size_tokens="{name}"}} 1.0\n'
        f'vllm:num_requests_running{{engine="{name}"}} {name}\n'
        for name in (9, 10, 11, 8)
    )
    sources = {str(n): {"endpoint": f"tcp://*:{5550 + n}"} for n in (9, 10, 11, 8)}
    vllm = engine("vllm")
    for rank, name in enumerate((8, 9, 10, 11)):
        load = vllm.at_rank(rank).read_load((Reply(200, metrics.encode()),), NOW)
        assert (load.running, load.capacity_tokens) == (name, name)
        feed = vllm.at_rank(rank).read_feed((Reply(200, json.dumps(sources).encode()),), "gpu1")
        assert feed == (FeedSource(endpoint=f"tcp://gpu1:{5550 + name}", rank=name),)
    with pytest.raises(ReplicaRefused, match="rank 4"):
        vllm.at_rank(4).read_load((Reply(200, metrics.encode()),), NOW)


def test_a_vllm_of_several_api_servers_warns_that_restarts_go_unseen() -> None:
    """Its metrics are those of all of them, and tell no start."""
    models, version, metrics = replies("vllm", "ranks_identity")
    assert engine("vllm").read_identity((models, version, metrics)).warning is None
    without = metrics.body.replace(b"process_start_time_seconds", b"something")
    found = engine("vllm").read_identity((models, version, Reply(200, without)))
    assert found.incarnation is None and "--api-server-count 1" in str(found.warning)
