"""Every adapter, on what real engines answered; `record.py` says what, and records it anew."""

import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from sessile.api.messages_body import Asked
from sessile.api.messages_events import MessageStream
from sessile.api.wire import engine_error
from sessile.engines.kinds import engine, engines
from sessile.errors import (
    InvalidRequest,
    ModelNotFound,
    NotSupported,
    PromptTooLong,
    ReplicaRefused,
    ReplicaUnreachable,
)
from sessile.fold import fold
from sessile.messages_chunks import MessagesChunks
from sessile.pool_settings import EngineKind
from sessile.relay import UsageRelay, events, read_reply
from sessile.router.blocks import BlockTree
from sessile.router.engine import Call, Engine, FeedSource, Reply, Steps, Usage
from sessile.router.kv_events import Feed, read_batch

RECORDED = Path(__file__).with_name("recorded")
KINDS = ["sglang", "vllm", "llamacpp", "openai"]
RANKED = ["sglang", "vllm"]
COUNTING = ["sglang", "llamacpp"]  # those whose counts were recorded
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
NOW = 1000.0


class Exchange(NamedTuple):
    """One recorded request and its answer."""

    sent: dict[str, Any]
    reply: Reply


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of engine in turn."""
    return str(request.param)


def exchanges(kind: str, case: str) -> list[Exchange]:
    """A recorded case; its JSON answers are encoded anew, its text is as it came."""
    document = json.loads((RECORDED / kind / f"{case}.json").read_text())
    found = []
    for e in document["exchanges"]:
        text = json.dumps(e["json"]) if "json" in e else "\n".join(e["lines"])
        found.append(Exchange(e["sent"], Reply(e["status"], text.encode())))
    return found


def replies(kind: str, case: str) -> tuple[Reply, ...]:
    """The answers of a recorded case."""
    return tuple(e.reply for e in exchanges(kind, case))


def usage_of(adapter: Engine, reply: Reply, *, pieces: int = 1) -> Usage:
    """What the router reads out of an answer, streamed or not, that comes in `pieces`."""
    if not reply.body.startswith(b"data:"):
        body = json.loads(reply.body)
    else:
        relay = UsageRelay(relay_usage=False)
        size = math.ceil(len(reply.body) / pieces)
        for start in range(0, len(reply.body), size):
            relay.feed(reply.body[start : start + size])
        assert relay.usage_body is not None
        body = relay.usage_body
    return adapter.read_usage(body["usage"], body)


def test_there_is_an_adapter_of_each_kind_and_of_no_other() -> None:
    """The adapter is found by its kind, always the same one; a wrong kind names the right ones."""
    assert set(engines()) == {*get_args(EngineKind)} >= set(KINDS)
    assert all(engine(kind) is engine(kind) and engine(kind).kind == kind for kind in engines())
    with pytest.raises(InvalidRequest, match="'sgl' is not an engine; there are: sglang, vllm"):
        engine("sgl")


def test_a_replica_says_what_it_serves(kind: str) -> None:
    """Models, context and version come from the engine's own pages."""
    identity = engine(kind).read_identity(replies(kind, "identity"))
    assert identity.models == ("smollm2",)
    told = {"sglang": (8192, "0.5.23"), "vllm": (4096, "0.32.0"), "llamacpp": (8192, None)}
    assert (identity.context_tokens, identity.version) == told.get(kind, (None, None))


def test_the_incarnation_is_one_for_all_who_ask_and_another_after_a_restart(kind: str) -> None:
    """Two routers read the same incarnation, and a restart changes it; or there is none."""
    adapter = engine(kind)
    first, again = (adapter.read_identity(replies(kind, "identity")) for _ in range(2))
    assert first.incarnation == again.incarnation
    if kind == "openai":
        assert first.incarnation is None
    else:
        restarted = adapter.read_identity(replies(kind, "identity_restarted"))
        assert restarted.models == first.models
        assert None not in (first.incarnation, restarted.incarnation)
        assert first.incarnation != restarted.incarnation


def test_a_ready_replica_is_told_from_one_that_loads_or_leaves(kind: str) -> None:
    """The recorded health is one of a ready replica; 503 is one that takes no requests."""
    adapter = engine(kind)
    adapter.read_health(*replies(kind, "health"))
    with pytest.raises(ReplicaUnreachable, match="answered 503"):
        adapter.read_health(Reply(503, b""))


def test_an_sglang_without_a_readiness_page_is_taken_as_ready() -> None:
    """An older SGLang answers 404 to /ready; its identity then says whether it is up."""
    engine("sglang").read_health(Reply(404, b'{"detail":"Not Found"}'))


def test_load_follows_what_runs(kind: str) -> None:
    """Idle, one request running, and after its client hung up; unknown is never zero."""
    adapter = engine(kind)
    idle, busy, after = (
        adapter.read_load(replies(kind, f"load_{when}"), NOW)
        for when in ("idle", "busy", "after_hangup")
    )
    assert idle.at == busy.at == NOW
    if kind == "openai":
        assert (idle.running, idle.waiting, busy.running, after.running) == (None,) * 4
        return
    assert [(load.running, load.waiting) for load in (idle, busy, after)] == [
        (0, 0),
        (1, 0),
        (0, 0),
    ]
    if kind == "llamacpp":
        assert (busy.slots, busy.capacity_tokens) == (2, None)
    else:
        assert busy.capacity_tokens is not None and busy.used_tokens is not None
        assert 0 < busy.used_tokens < busy.capacity_tokens


def test_load_pages_that_are_switched_off_leave_the_load_unknown() -> None:
    """llama.cpp serves /metrics and /slots only if told to, and old SGLangs have no /v1/loads."""
    off = Reply(501, b'{"error":{"code":501,"message":"This server does not support it."}}')
    slots, metrics = replies("llamacpp", "load_busy")
    adapter = engine("llamacpp")
    assert adapter.read_load((off, off), NOW).running is None
    only_slots = adapter.read_load((slots, off), NOW)
    assert (only_slots.running, only_slots.waiting, only_slots.slots) == (1, None, 2)
    only_metrics = adapter.read_load((off, metrics), NOW)
    assert (only_metrics.running, only_metrics.waiting, only_metrics.slots) == (1, 0, None)
    assert engine("sglang").read_load((Reply(404, b""),), NOW).running is None


def test_load_is_summed_over_data_parallel_ranks() -> None:
    """What is asked of a whole server: the requests of its ranks and their room add up."""
    (reply,) = replies("sglang", "load_busy")
    body = json.loads(reply.body)
    body["loads"] *= 2
    one = engine("sglang").read_load((reply,), NOW)
    two = engine("sglang").read_load((Reply(200, json.dumps(body).encode()),), NOW)
    assert two.running == 2
    assert one.capacity_tokens is not None and two.capacity_tokens == 2 * one.capacity_tokens


def test_a_sleeping_vllm_is_refused() -> None:
    """vLLM put to sleep calls itself healthy and lets requests hang; its metrics tell."""
    awake = b'sleep_state="awake"} 1.0'
    metrics = replies("vllm", "load_idle")[0]
    assert awake in metrics.body
    asleep = Reply(200, metrics.body.replace(awake, b'sleep_state="awake"} 0.0'))
    models, version, _ = replies("vllm", "identity")
    with pytest.raises(ReplicaRefused, match="put to sleep"):
        engine("vllm").read_load((asleep,), NOW)
    with pytest.raises(ReplicaRefused, match="put to sleep"):
        engine("vllm").read_identity((models, version, asleep))


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_the_second_turn_reports_what_it_found_in_the_cache(kind: str, pieces: int) -> None:
    """Cached tokens are none or few at first, and nearly all of the first turn at the second."""
    adapter = engine(kind)
    for first, second in (("chat", "chat_second_turn"), ("stream", "stream_second_turn")):
        cold = usage_of(adapter, *replies(kind, first), pieces=pieces)
        warm = usage_of(adapter, *replies(kind, second), pieces=pieces)
        assert cold.prompt_tokens and cold.cached_tokens is not None
        assert cold.completion_tokens == 8
        assert cold.cached_tokens < cold.prompt_tokens / 10
        assert warm.cached_tokens and warm.cached_tokens > cold.prompt_tokens * 0.8


def test_usage_that_is_not_reported_is_unknown(kind: str) -> None:
    """SGLang and vLLM tell cached tokens only when started to; without it there is no number."""
    adapter = engine(kind)
    bare = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}
    assert adapter.read_usage(bare, {}) == Usage(5, 2, None)
    assert adapter.read_usage({"prompt_tokens": True, "completion_tokens": -1}, {}) == Usage()


def test_llamacpp_tells_a_hit_in_its_timings_too() -> None:
    """An older llama.cpp has no prompt_tokens_details; `timings.cache_n` says the same."""
    body = json.loads(replies("llamacpp", "chat_second_turn")[0].body)
    told = engine("llamacpp").read_usage(body["usage"], body)
    del body["usage"]["prompt_tokens_details"]
    assert engine("llamacpp").read_usage(body["usage"], body) == told


def test_only_the_usage_chunk_is_withheld(kind: str) -> None:
    """A client that did not ask for usage gets every other event of the stream as it came."""
    (reply,) = replies(kind, "stream")
    relayed = UsageRelay(relay_usage=False).feed(reply.body)
    kept = [e for e in reply.body.split(b"\n\n") if b'"prompt_tokens"' not in e]
    assert relayed == b"\n\n".join(kept)
    assert relayed.endswith(b"data: [DONE]\n\n")
    assert UsageRelay(relay_usage=True).feed(reply.body) == reply.body


def test_a_stream_adds_up_to_a_message(kind: str) -> None:
    """The assistant's message that lineage is computed from comes out of a real stream."""
    (reply,) = replies(kind, "stream")
    message = read_reply(events(reply.body))
    assert message is not None and message["content"].strip()
    if kind in ("sglang", "vllm"):  # SmolLM2's own template, which llama.cpp uses, knows no tools
        (called,) = replies(kind, "tool_call_stream")
        message = read_reply(events(called.body))
        assert message is not None
        assert [c["function"]["name"] for c in message["tool_calls"]] == ["read_file"]


def test_a_real_stream_becomes_a_message(kind: str) -> None:
    """Anthropic's types take every event, and the whole; the usage adds up to the prompt."""
    for case in ("stream", "stream_second_turn", "tool_call_stream"):
        ((_, reply),) = exchanges(kind, case)
        stream = MessageStream("msg_1", Asked(model="m", stream=True, document={}))
        told = stream.start()
        stream.feed(reply.body, told)
        told += stream.finish()
        for event in told:
            if event.type != "ping":
                EVENT.validate_json(event.body)
        Message.model_validate_json(json.dumps(stream.message), strict=True)
        body = [e for e in events(reply.body) if e.get("usage")][-1]
        usage = stream.message["usage"]
        parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        assert sum(usage[part] or 0 for part in parts) == body["usage"]["prompt_tokens"]
        if case == "stream_second_turn":
            assert usage["cache_read_input_tokens"] > 100
        if case == "tool_call_stream" and kind in ("sglang", "vllm"):
            (block,) = stream.message["content"]
            assert block["type"] == "tool_use" and block["name"] == "read_file"


@pytest.mark.parametrize(
    ("engine_kind", "case"),
    [
        ("sglang", "messages_stream"),
        ("sglang", "messages_call_stream"),
        ("vllm", "messages_stream"),
        ("vllm", "messages_call_stream"),
        ("llamacpp", "messages_stream"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_messages_of_their_own_add_up_to_what_the_chat_says(
    engine_kind: str, case: str, pieces: int
) -> None:
    """However the bytes come: the same reply, finish and counts, with an end that says so."""
    own, chat = (exchange.reply for exchange in exchanges(engine_kind, case))
    reader, chunks = MessagesChunks(counts_cached=True), b""
    size = math.ceil(len(own.body) / pieces)
    for start in range(0, len(own.body), size):
        chunks += reader.feed(own.body[start : start + size])
    assert chunks.endswith(b"data: [DONE]\n\n")
    told, meant = (fold(events(stream))[1] for stream in (chunks, chat.body))
    assert read_reply([told]) == read_reply([meant])
    assert told["choices"][0]["finish_reason"] == meant["choices"][0]["finish_reason"]
    adapter = engine(engine_kind)
    used, due = (adapter.read_usage(body["usage"], body) for body in (told, meant))
    assert used.prompt_tokens == due.prompt_tokens
    assert used.completion_tokens == due.completion_tokens
    assert used.cached_tokens is not None  # llama.cpp knows no salts: its chat came second


@pytest.mark.parametrize("kind", COUNTING)
def test_a_count_is_what_a_turn_takes(kind: str) -> None:
    """The adapter's call was answered with the very number that a completion then reported."""
    (counted, turn) = exchanges(kind, "count")
    call = engine(kind).count_call(counted.sent)
    assert call is not None and json.loads(call.body) == counted.sent
    used = json.loads(turn.reply.body)["usage"]["prompt_tokens"]
    assert engine(kind).read_count(counted.reply) == used > 200


def test_what_a_tokenizer_would_not_count_exactly_is_not_asked_of_it(kind: str) -> None:
    """Images, and an effort that a template may render, are counted by a turn; llama.cpp renders
    both. A replica without the call, or one that answers nonsense, gives no count."""
    adapter = engine(kind)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    hello = {"role": "user", "content": "Say hello."}
    for asked in (
        {"messages": [{"role": "user", "content": [image]}]},
        {"messages": [hello], "reasoning_effort": "low"},
    ):
        assert (adapter.count_call({"model": "m", **asked}) is None) is (kind != "llamacpp")
    call = adapter.count_call({"model": "m", "messages": [hello], "max_tokens": 9})
    assert (call is None) is (kind == "openai")
    assert adapter.read_count(Reply(404, b"")) is None
    assert adapter.read_count(Reply(200, b'{"count": 7}')) == 7
    with pytest.raises(ReplicaRefused):
        adapter.read_count(Reply(200, b'{"count": "many"}'))


def test_the_fields_that_are_added_were_taken(kind: str) -> None:
    """Chat, completions, several choices and tool calls were answered with the fields in them."""
    adapter = engine(kind)
    for case in ("chat", "stream", "completion", "two_choices_stream", "tool_call_stream"):
        ((sent, reply),) = exchanges(kind, case)
        assert reply.status == 200
        added = adapter.fields(turn="t", session="s", salt="x").keys()
        assert added <= sent.keys()
    assert ("cache_salt" in added) is (kind in ("sglang", "vllm"))
    assert adapter.fields(turn="t", session=None, salt=None).keys() <= added


def test_a_chosen_request_id_comes_back() -> None:
    """SGLang answers under the turn's id, vLLM under it with a prefix."""
    for kind, field, prefix in (("sglang", "rid", ""), ("vllm", "request_id", "chatcmpl-")):
        ((sent, reply),) = exchanges(kind, "chat")
        assert json.loads(reply.body)["id"] == prefix + sent[field]


def test_abort_names_the_turn_or_is_left_to_the_connection(kind: str) -> None:
    """SGLang is told, by the turn's id; the others stop when the connection closes."""
    call = engine(kind).abort_call("turn_9")
    if kind != "sglang":
        assert call is None
        return
    assert call == Call("POST", "/abort_request", b'{"rid":"turn_9"}')
    (asked, aborted) = exchanges(kind, "abort")
    assert asked.reply.status == 200 and asked.sent["rid"] == aborted.sent["rid"]
    finished = [c["finish_reason"] for e in events(aborted.reply.body) for c in e["choices"]]
    assert finished[-1] == "abort"
    assert aborted.reply.body.endswith(b"data: [DONE]\n\n")


def test_the_engines_refusals_become_our_errors(kind: str) -> None:
    """A prompt too long, a body without messages, a model unknown, no embeddings: each its class,
    with the engine's own sentence."""
    (too_long,), (empty,) = replies(kind, "too_long"), replies(kind, "no_messages")
    error = engine_error(too_long.status, too_long.body)
    assert isinstance(error, PromptTooLong) and "token" in error.message
    error = engine_error(empty.status, empty.body)
    assert isinstance(error, InvalidRequest) and "messages" in error.message
    (unknown,) = replies(kind, "unknown_model")
    if kind == "vllm":  # the others answer with the model that they have
        assert isinstance(engine_error(unknown.status, unknown.body), ModelNotFound)
    else:
        assert unknown.status == 200
    (embedded,) = replies(kind, "embeddings")
    error = engine_error(embedded.status, embedded.body)
    if kind == "sglang":
        assert isinstance(error, InvalidRequest) and "embedding" in error.message
    elif kind != "vllm":  # which answers a bare 404 unless it serves an embedding model
        assert isinstance(error, NotSupported) and "embeddings" in error.message


def test_garbage_is_refused_and_nothing_else_is_raised(kind: str, refuses: Any) -> None:
    """Whichever page of a replica is not what it should be, the replica is refused."""
    refuses(engine(kind), replies(kind, "identity"), replies(kind, "load_idle"))


@pytest.mark.parametrize(
    "listed",
    [b"{}", b'{"data": 3}', b'{"data": []}', b'{"data": [{"id": 7}, "smollm2", {}]}'],
)
def test_a_list_of_models_that_names_none_is_refused(kind: str, listed: bytes) -> None:
    """A replica that serves no model that can be asked for is not up."""
    others = replies(kind, "identity")[1:]
    with pytest.raises(ReplicaRefused, match="/v1/models"):
        engine(kind).read_identity((Reply(200, listed), *others))


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


def test_a_page_that_lists_no_feeds_is_refused(garbage: Reply) -> None:
    """Whatever it is."""
    with pytest.raises(ReplicaRefused, match="its /kv_event_sources"):
        engine("vllm").read_feed((garbage,), "gpu1")


def test_the_feed_of_a_real_sglang_tells_what_a_session_holds() -> None:
    """After each turn of a session, all of it but what fills no block, without a tokenizer."""
    document = json.loads((RECORDED / "sglang" / "kv_events.json").read_text())
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


def test_only_an_sglang_that_was_started_to_hold_sessions_is_told_to_release_them(
    kind: str,
) -> None:
    """Its own page says whether it does; by default no engine does."""
    adapter = engine(kind)
    identity = adapter.read_identity(replies(kind, "identity"))
    assert not identity.holds_sessions and adapter.release_call("s", identity) is None
    assert identity.names_sessions is (kind == "sglang")
    if kind == "sglang":
        assert not adapter.read_identity(started_with(kv_events=None)).names_sessions
        holding = adapter.read_identity(started_with(enable_session_radix_cache=True))
        call = adapter.release_call("team/s", holding)
        assert call is not None and call.path == "/close_session"
        assert json.loads(call.body) == {"session_id": "team/s"}


@pytest.mark.parametrize(("low_first", "sent"), [(False, -3), (True, 3)])
def test_a_priority_is_sent_where_it_orders(kind: str, low_first: bool, sent: int) -> None:
    """0 is the most urgent whichever way the replica counts; nobody else is sent one."""
    adapter = engine(kind)
    found = adapter.order(3, adapter.read_identity(replies(kind, "identity")))
    assert found == ({"priority": 3} if kind == "vllm" else {})
    if kind == "sglang":
        ordering = adapter.read_identity(
            started_with(
                enable_priority_scheduling=True, schedule_low_priority_values_first=low_first
            )
        )
        assert adapter.order(3, ordering) == {"priority": sent}


@pytest.mark.parametrize("version", ["0.31.1", "0.9", "dev", None])
def test_a_vllm_that_may_refuse_a_priority_is_sent_none(version: str | None) -> None:
    """Or that does not say which it is."""
    models, _, metrics = replies("vllm", "identity")
    told = (models, Reply(200, json.dumps({"version": version}).encode()), metrics)
    assert engine("vllm").order(3, engine("vllm").read_identity(told)) == {}


def started_with(**arguments: object) -> tuple[Reply, ...]:
    """The pages of the recorded SGLang, as if it had been started with these arguments."""
    models, info = replies("sglang", "identity")
    return models, Reply(200, json.dumps({**json.loads(info.body), **arguments}).encode())


def test_llama_cpp_carries_a_prompt_from_slot_to_slot() -> None:
    """It is saved from the slot that it is found in, and restored where nothing is lost by it."""
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    steps = engine("llamacpp").carry("/v1/chat/completions", chat, "s.kv")
    assert steps is not None
    save, restore = (
        walk(each, {"/apply-template": {"prompt": "<hi>"}, "/completion": {"id_slot": 1}})
        for each in steps
    )
    assert save == [
        ("/apply-template", chat),
        ("/completion", {"prompt": "<hi>", "n_predict": 0}),
        ("/slots/1?action=save", {"filename": "s.kv"}),
    ]
    assert [path for path, _ in restore] == ["/completion", "/slots/1?action=restore"]
    assert restore[-1][1] == {"filename": "s.kv"}
    for others in set(KINDS) - {"llamacpp"}:
        assert engine(others).carry("/v1/chat/completions", chat, "s.kv") is None


@pytest.mark.parametrize(
    "told", [{"/apply-template": {}}, {"/apply-template": {"prompt": "p"}, "/completion": {}}]
)
def test_what_llama_cpp_does_not_say_ends_the_carrying(told: dict[str, Any]) -> None:
    """No prompt, or no slot: there is nothing to save."""
    steps = engine("llamacpp").carry("/v1/chat/completions", {"messages": []}, "s.kv")
    assert steps is not None
    with pytest.raises(ReplicaRefused):
        walk(steps[0], told)


def walk(steps: Steps, told: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The calls, each answered by what is told of its path."""
    made = []
    with contextlib.suppress(StopIteration):
        call = next(steps)
        while True:
            made.append((call.path, json.loads(call.body)))
            call = steps.send(Reply(200, json.dumps(told.get(call.path, {})).encode()))
    return made
