"""What the router reads out of the answers of real engines: usage, messages and refusals."""

import json
import math

import pytest
from anthropic.types import Message

from messages_told import message_of
from recorded_engines import exchanges, replies, usage_of
from sessile.api.wire import engine_error
from sessile.engines.kinds import engine
from sessile.errors import InvalidRequest, ModelNotFound, NotSupported, PromptTooLong
from sessile.fold import fold
from sessile.messages_chunks import MessagesChunks
from sessile.relay import UsageRelay, events, read_reply
from sessile.router.engine import Usage


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
        stream = message_of(reply)
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
