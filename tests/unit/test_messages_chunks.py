"""An engine's own Messages events, as the chat chunks that a turn is read from."""

import json
from typing import Any

import pytest

from sessile.carry_on import failure, read_told
from sessile.messages_chunks import MessagesChunks, begins
from sessile.relay import UsageRelay, events

START = {
    "type": "message_start",
    "message": {"id": "x", "model": "m", "usage": {"input_tokens": 7, "output_tokens": 0}},
}
STOP = {"type": "message_stop"}


def sse(*told: dict[str, Any]) -> bytes:
    """The events as they go over the wire."""
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in told)


def chunks(*told: dict[str, Any]) -> list[dict[str, Any]]:
    """What the events are read as."""
    return list(events(MessagesChunks().feed(sse(*told))))


def start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **part: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **part}}


def end(reason: str | None, sequence: str | None = None, **usage: Any) -> dict[str, Any]:
    said = {"stop_reason": reason, "stop_sequence": sequence}
    return {"type": "message_delta", "delta": said, "usage": usage}


def deltas(*told: dict[str, Any]) -> list[dict[str, Any]]:
    return [choice["delta"] for body in chunks(*told) for choice in body["choices"]]


def test_blocks_become_deltas():
    """Thoughts, text and calls, the calls numbered among themselves; signatures say nothing."""
    assert deltas(
        start(0, type="thinking", thinking=""),
        delta(0, "thinking_delta", thinking="Hm."),
        delta(0, "signature_delta", signature="s"),
        start(1, type="text", text="He"),
        delta(1, "text_delta", text="llo"),
        start(2, type="tool_use", id="a", name="f", input={}),
        delta(2, "input_json_delta", partial_json='{"x":'),
        delta(2, "input_json_delta", partial_json="1}"),
        start(3, type="tool_use", id="b", name="g", input={}),
    ) == [
        {"reasoning_content": "Hm."},
        {"content": "He"},
        {"content": "llo"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "a",
                    "type": "function",
                    "function": {"name": "f", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "b",
                    "type": "function",
                    "function": {"name": "g", "arguments": ""},
                }
            ]
        },
    ]


def test_what_is_no_news_is_no_chunk():
    """A ping, the end of a block, and events that nobody knows yet."""
    assert chunks({"type": "ping"}, {"type": "content_block_stop", "index": 0}, {"type": "x"}) == []


def test_the_first_chunk_names_the_answer():
    """And so do those after it."""
    first, second = chunks(START, delta(0, "text_delta", text="Hi"))
    assert {(c["id"], c["model"], c["object"]) for c in (first, second)} == {
        ("x", "m", "chat.completion.chunk")
    }


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("stop_sequence", "stop"),
        ("refusal", "content_filter"),
        (None, "abort"),
    ],
)
def test_why_it_ended(reason, finish):
    """By the names that chats have for it; no reason is that of an answer that was stopped."""
    told = chunks(end(reason, "END" if reason == "stop_sequence" else None))
    (choice,) = told[0]["choices"]
    assert choice["finish_reason"] == finish
    assert choice.get("stop_reason") == ("END" if reason == "stop_sequence" else None)


@pytest.mark.parametrize(
    ("before", "after", "prompt", "details"),
    [
        ({}, {"output_tokens": 3}, 7, None),  # SGLang
        ({"cache_read_input_tokens": 64}, {"output_tokens": 3}, 71, {"cached_tokens": 64}),
        (
            {},
            {
                "input_tokens": 1,
                "output_tokens": 3,
                "cache_read_input_tokens": 4,
                "cache_creation_input_tokens": 2,
            },
            7,
            {"cached_tokens": 4, "created_cache_tokens": 2},
        ),  # vLLM
        ({}, {"output_tokens": 3, "cache_read_input_tokens": None}, 7, None),
    ],
)
def test_the_counts_are_of_the_whole_prompt(before, after, prompt, details):
    """Messages tells the prompt in parts, some of it at the start and some at the end."""
    begun = {**START, "message": {"usage": {"input_tokens": 7, "output_tokens": 0, **before}}}
    usage = chunks(begun, end("end_turn", **after))[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, 3)
    assert usage["total_tokens"] == prompt + 3
    assert usage.get("prompt_tokens_details") == details


def test_nothing_found_cached_is_told_of_an_engine_that_counts():
    """SGLang leaves the count out then."""
    told = MessagesChunks(counts_cached=True).feed(sse(START, end("end_turn", output_tokens=1)))
    assert list(events(told))[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_the_end_is_the_end_of_a_chat():
    """As the relay sees it, which knows the counts then."""
    relay = UsageRelay(relay_usage=True)
    relay.feed(MessagesChunks().feed(sse(START, end("end_turn", output_tokens=1), STOP)))
    assert relay.done and relay.usage_body["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize(
    ("kind", "lost"),
    [("api_error", True), ("overloaded_error", True), ("invalid_request_error", False)],
)
def test_an_error_is_one_that_another_engine_might_not_make(kind, lost):
    """Unless the request is at fault."""
    said = {"type": "error", "error": {"type": kind, "message": "no"}}
    assert failure(MessagesChunks().feed(sse(said))) == ("no" if lost else None)


def test_a_refusal_in_the_stream_is_told_from_an_answer():
    """Not before its second event."""
    refusal = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    assert begins(b"") is begins(sse(START)) is begins(sse(START, {"type": "ping"})) is None
    assert begins(sse(START, refusal, STOP)) is False
    assert begins(sse(START, start(0, type="text", text=""))) is True
    assert begins(sse(START, end("max_tokens"))) is True


def test_a_stream_comes_in_pieces():
    """Cut anywhere, it is the same; what is half there waits."""
    whole = sse(START, delta(0, "text_delta", text="Grüße"), end("end_turn"), STOP)
    once = MessagesChunks().feed(whole)
    reader = MessagesChunks()
    assert b"".join(reader.feed(bytes([byte])) for byte in whole) == once
    assert read_told(once).text == "Grüße"


def test_garbage_stays_garbage():
    """It is its reader who judges it."""
    assert MessagesChunks().feed(b"data: {not json\n\n") == b"data: {not json\n\n"
