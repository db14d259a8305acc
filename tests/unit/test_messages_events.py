"""The events of a message, from chunks as engines send them, put together by Anthropic's SDK."""

import json
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from sessile.api.messages_body import Asked
from sessile.api.messages_events import MessageStream
from sessile.errors import Overloaded, ReplicaRefused, StreamBroken

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 8},
}


def chunk(finish: str | None = None, *, usage: Any = None, **fields: Any) -> dict[str, Any]:
    """One chunk: `fields` are the delta's."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"choices": [choice] if fields or finish else [], "usage": usage}


def called(index: int, arguments: str, name: str | None = None, id: str | None = None) -> Any:
    """A chunk with a piece of a call."""
    function = {"name": name, "arguments": arguments}
    return chunk(tool_calls=[{"index": index, "id": id, "function": function}])


def play(*chunks: dict[str, Any], **asked: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a stream and its whole message, which the SDK's own types and its own putting
    together agree on."""
    asked = {"model": "m", "stream": True, "document": {}, **asked}
    stream = MessageStream("msg_1", Asked(**asked))
    events = stream.start()
    for one in chunks:
        stream.feed(b"data: " + json.dumps(one).encode() + b"\n\n", events)
    events += stream.finish()
    told = [json.loads(event.body) for event in events]
    assert [event.type for event in events] == [one["type"] for one in told]
    snapshot = None
    buffers: dict[int, bytes] = {}
    for one in told:
        if one["type"] != "ping":
            event = EVENT.validate_python(one, strict=True)
            snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)
    message = json.loads(json.dumps(stream.message))
    Message.model_validate(message, strict=True)
    assert snapshot is not None
    assert snapshot.to_dict(mode="json") == Message.model_validate(message).to_dict(mode="json")
    return told, message


def types(events: list[dict[str, Any]]) -> list[str]:
    """The events' types, with what is begun or told."""
    return [
        " ".join(
            [
                e["type"],
                *(e[k]["type"] for k in ("content_block", "delta") if "type" in e.get(k, {})),
            ]
        )
        for e in events
    ]


def test_text():
    """The whole sequence of a reply of text, and what it took."""
    events, message = play(
        chunk(role="assistant", content=""),
        chunk(content="Hel"),
        chunk(content="lo"),
        chunk("stop"),
        chunk(usage=USAGE),
    )
    assert types(events) == [
        "message_start",
        "ping",
        "content_block_start text",
        "content_block_delta text_delta",
        "content_block_delta text_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert message["content"] == [{"type": "text", "text": "Hello"}]
    assert (message["id"], message["stop_reason"], message["stop_sequence"]) == (
        "msg_1", "end_turn", None,
    )  # fmt: skip
    assert events[0]["message"]["content"] == [] and events[0]["message"]["stop_reason"] is None
    usage = message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (2, 8)
    assert usage["output_tokens"] == events[-2]["usage"]["output_tokens"] == 3


def test_parallel_calls():
    """Each is a block of its own, one after the other; arguments in pieces."""
    events, message = play(
        chunk(content="Let me see."),
        called(0, "", "weather", "t1"),
        called(0, '{"city": '),
        called(0, '"Oslo"}'),
        called(1, '{"city": "Rome"}', "weather", "t2"),
        chunk("tool_calls"),
    )
    assert [e["index"] for e in events if e["type"] == "content_block_start"] == [0, 1, 2]
    assert message["content"] == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "t2", "name": "weather", "input": {"city": "Rome"}},
    ]
    assert message["stop_reason"] == "tool_use"


def test_calls_that_share_an_index():
    """Are told apart by their ids."""
    _, message = play(
        called(0, "{}", "a", "t1"), called(0, '{"x": 1}', "b", "t2"), chunk("tool_calls")
    )
    assert [block["name"] for block in message["content"]] == ["a", "b"]


@pytest.mark.parametrize("other", [0, 1])
def test_one_call_at_a_time_is_held(other):
    """What an engine calls beside the first is no block."""
    told, message = play(
        called(0, "{}", "f", "one"),
        called(other, "{", "g", "two"),
        called(other, "}"),
        chunk("tool_calls"),
        document={"parallel_tool_calls": False},
    )
    assert [(block["id"], block["input"]) for block in message["content"]] == [("one", {})]
    assert message["stop_reason"] == "tool_use"


def test_a_call_without_an_id_is_given_one():
    """The client must be able to name it."""
    _, message = play(called(0, "", "a"), called(0, "{}"), called(1, "{}", "b"), chunk("stop"))
    ids = [block["id"] for block in message["content"]]
    assert len(set(ids)) == 2 and all(one.startswith("toolu_") for one in ids)
    assert message["stop_reason"] == "tool_use"  # whatever the engine calls it


def test_a_piece_of_no_call_is_refused():
    """What cannot be told right is not told at all."""
    with pytest.raises(ReplicaRefused, match="not under way"):
        play(called(0, "", "a", "t1"), called(1, "{}", "b", "t2"), called(0, "{}"), chunk("stop"))


@pytest.mark.parametrize("arguments", ['{"city": "Os', "[1]", "null"])
def test_arguments_that_are_no_object(arguments):
    """The streamed pieces are what the engine sent; the whole message says that they are none."""
    stream = MessageStream("msg_1", Asked(model="m", stream=True, document={}))
    events = stream.start()
    for one in (called(0, arguments, "a", "t1"), chunk("length")):
        stream.feed_chunk(json.dumps(one).encode(), events)
    stream.finish()
    assert stream.message["content"][0]["input"] == {"INVALID_JSON": arguments}
    assert stream.message["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking(name):
    """A block before the text, with a signature, which names the turn."""
    events, message = play(
        chunk(**{name: "Hm"}), chunk(**{name: "."}), chunk(content="Yes"), chunk("stop")
    )
    assert types(events)[2:7] == [
        "content_block_start thinking",
        "content_block_delta thinking_delta",
        "content_block_delta thinking_delta",
        "content_block_delta signature_delta",
        "content_block_stop",
    ]
    assert message["content"][0] == {"type": "thinking", "thinking": "Hm.", "signature": "msg_1"}


def test_thinking_may_be_left_out():
    """Its block and signature stay, its text does not."""
    events, message = play(
        chunk(reasoning="Hm."), chunk(content="Yes"), chunk("stop"), hides_thinking=True
    )
    assert message["content"][0] == {"type": "thinking", "thinking": "", "signature": "msg_1"}
    assert "Hm." not in json.dumps(events)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("something new", "end_turn"),
    ],
)
def test_stop_reasons(finish, reason):
    """Each engine's word for it."""
    assert play(chunk(content="x"), chunk(finish))[1]["stop_reason"] == reason


@pytest.mark.parametrize("name", ["stop_reason", "matched_stop"])
def test_a_stop_sequence_is_told_where_the_engine_tells_it(name):
    """vLLM and SGLang do; a token's number is none."""
    last = chunk("stop")
    last["choices"][0][name] = "END"
    message = play(chunk(content="x"), last, stops=("END",))[1]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    last["choices"][0][name] = 2
    message = play(chunk(content="x"), last, stops=("END",))[1]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


def test_an_empty_reply_has_no_blocks():
    """As the API gives it."""
    events, message = play(chunk("stop"), chunk(usage=USAGE))
    assert message["content"] == []
    assert types(events) == ["message_start", "ping", "message_delta", "message_stop"]


def test_a_refusal_is_text():
    """Some engines send it apart."""
    assert play(chunk(refusal="No."), chunk("stop"))[1]["content"][0]["text"] == "No."


def test_what_only_fills_the_cache_says_nothing():
    """The token that the engine had to make is not told."""
    message = play(chunk(content="x"), chunk("length"), chunk(usage=USAGE), silent=True)[1]
    assert message["content"] == [] and message["stop_reason"] == "max_tokens"
    assert message["usage"]["cache_read_input_tokens"] == 8


# -- usage


def test_what_is_not_reported_of_the_cache_is_null():
    """Not zero: nobody knows."""
    usage = play(chunk("stop"), chunk(usage={"prompt_tokens": 10, "completion_tokens": 1}))[1][
        "usage"
    ]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (10, None)


def test_the_parts_of_a_prompt_add_up():
    """Read from the cache, written to it, and the rest, as vLLM reports them; and the thoughts."""
    reported = {
        "prompt_tokens": 282,
        "completion_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 32, "created_cache_tokens": 224},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    usage = play(chunk("stop"), chunk(usage=reported))[1]["usage"]
    parts = [usage[f"{kind}input_tokens"] for kind in ("", "cache_read_", "cache_creation_")]
    assert parts == [26, 32, 224]
    assert usage["output_tokens_details"] == {"thinking_tokens": 5}


def test_no_usage_at_all():
    """The types have no word for it."""
    usage = play(chunk("stop"))[1]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (0, 0)


# -- answers that were not streamed, and failures


def test_a_whole_completion():
    """Some engines answer in one piece, whatever was asked."""
    call = {"id": "t1", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    said = {"role": "assistant", "content": "Hi", "tool_calls": [call]}
    whole = {
        "choices": [{"index": 0, "message": said, "finish_reason": "tool_calls"}],
        "usage": USAGE,
    }
    message = play(whole)[1]
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([chunk(content="x")], StreamBroken),
        ([chunk(content="x"), chunk("abort")], ReplicaRefused),
        ([{"error": {"message": "out of memory"}}], ReplicaRefused),
        ([{"error": "x"}], ReplicaRefused),
        ([{"choices": 7}], ReplicaRefused),
    ],
)
def test_a_stream_that_fails(chunks, error):
    """Is not taken for whole."""
    with pytest.raises(error):
        play(*chunks)


def test_a_failure_is_the_last_event():
    """In the API's shape, and nothing that was open is closed."""
    stream = MessageStream("msg_1", Asked(model="m", stream=True, document={}))
    events = stream.start()
    stream.feed_chunk(json.dumps(chunk(content="x")).encode(), events)
    (event,) = stream.fail(Overloaded("full"))
    assert event.type == "error"
    assert json.loads(event.body) == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "full"},
        "request_id": "msg_1",
    }
