"""The state machine from chat chunks to Responses events, checked against OpenAI's own models."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from response_events import USAGE, call, checked, delta, machine, run, sse, types
from sessile.api.responses_calls import mcp_call
from sessile.api.responses_events import ResponseStream
from sessile.sealed import unseal


def test_text_is_told_from_created_to_completed():
    """A text reply opens one message with one part, and ends with the whole of it and its usage."""
    stream = machine()
    told = run(
        stream, delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"),
        delta("stop"), USAGE,
    )  # fmt: skip
    assert types(told) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    response = told[-1]["response"]
    assert response["status"] == "completed" and response["completed_at"] == 9
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert response["output"][0]["status"] == "completed"
    assert response["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 16,
    }
    assert stream.ended and stream.response["output"] == response["output"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_an_item_of_its_own(field):
    """Reasoning, under either name, is an item before the message and is closed by it."""
    told = run(machine(), delta(**{field: "hm, "}), delta(**{field: "so"}), delta(content="42"),
               delta("stop"))  # fmt: skip
    thought, message = told[-1]["response"]["output"]
    assert thought["type"] == "reasoning" and thought["summary"] == []
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm, so"}]
    assert message["content"][0]["text"] == "42"
    assert types(told).index("reasoning_text.done") < types(told).index("output_text.delta")


def test_reasoning_is_sealed_where_it_is_asked_for():
    """What was thought comes out as text, and sealed."""
    asked = machine()
    told = run(
        ResponseStream(asked.response, seals=True),
        delta(reasoning_content="h"), delta(reasoning_content="m"), delta(content="1"),
        delta("stop"),
    )  # fmt: skip
    item = told[-1]["response"]["output"][0]
    assert unseal("reasoning", item["encrypted_content"], "x") == ["hm"]


def test_a_refusal_is_a_part_of_the_message():
    """Text and then a refusal are two parts of one message."""
    told = run(machine(), delta(content="I "), delta(refusal="cannot"), delta("stop"))
    (message,) = told[-1]["response"]["output"]
    assert [part["type"] for part in message["content"]] == ["output_text", "refusal"]


def test_logprobs_stand_in_delta_done_and_item():
    """Log-probabilities come with their delta and are kept, with bytes if there were none."""
    entry = {"token": "Hé", "logprob": -0.5, "bytes": None,
             "top_logprobs": [{"token": "H", "logprob": -1.0, "bytes": [72]}]}  # fmt: skip
    told = run(machine(top_logprobs=1), delta(content="Hé", logprobs={"content": [entry]}),
               delta("stop"))  # fmt: skip
    by_type = {body["type"]: body for body in told}
    assert by_type["response.output_text.delta"]["logprobs"][0]["logprob"] == -0.5
    kept = told[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert kept == by_type["response.output_text.done"]["logprobs"]
    assert kept[0]["bytes"] == [72, 195, 169]


def test_a_whole_completion_is_read_like_a_stream():
    """An engine that answers a stream with one JSON object is understood too."""
    stream = machine()
    events = stream.start()
    message = {"role": "assistant", "content": "Hi", "tool_calls": [call(None, id="c", name="f"),
               call(None, id="d", name="g", arguments="{}")]}  # fmt: skip
    body = {**USAGE, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    stream.feed_chunk(msgspec.json.encode(body), events)
    told = checked([*events, *stream.finish(1.0)])
    assert [item["type"] for item in told[-1]["response"]["output"]] == [
        "message", "function_call", "function_call",
    ]  # fmt: skip


def test_an_empty_reply_is_an_empty_message():
    """A model that says nothing has still said one message, so that the roles alternate."""
    (message,) = run(machine(), delta("stop"))[-1]["response"]["output"]
    assert message["content"][0]["text"] == ""


def test_the_stream_id_is_echoed_in_every_event():
    """What a client calls the stream stands in each event of it."""
    told = run(machine("lane"), delta(content="a"), delta("stop"))
    assert {body["stream_id"] for body in told} == {"lane"}


def test_a_response_tells_its_request():
    """The object that is told holds the request's own tools, format and limits, strictly valid."""
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    form = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    told = run(
        machine(tools=[tool], tool_choice={"type": "function", "name": "f"}, text={"format": form},
                max_output_tokens=5, temperature=0.5, metadata={"a": "b"}, instructions="Be brief.",
                reasoning={"effort": "low"}, previous_response_id="resp_1", user="u"),
        delta(content="{}"), delta("stop"),
    )  # fmt: skip
    response = told[-1]["response"]
    assert response["tools"] == [tool] and response["text"] == {"format": form}
    assert response["previous_response_id"] == "resp_1" and response["metadata"] == {"a": "b"}


def test_items_of_the_routers_own_are_told_whole():
    """A list of tools, a failed one, an approved call and a compaction each have their events."""
    stream = machine()
    events = stream.start()
    listing = {"type": "mcp_list_tools", "server_label": "calc", "tools": []}
    approved = {**mcp_call("mcp_1", "calc", "add", "{}"), "status": "completed", "output": "3"}
    for item in (
        {**listing, "id": "mcpl_1", "error": None},
        {**listing, "id": "mcpl_2", "error": "gone"},
        {**approved, "approval_request_id": "mcpr_1"},
        {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"},
    ):
        stream.place(item, events)
    stream.feed(sse(delta(content="Hi"), delta("stop")), events)
    told = checked(events + stream.finish(9.5))
    kinds = types(told)
    assert "mcp_list_tools.completed" in kinds and "mcp_list_tools.failed" in kinds
    assert "mcp_call.completed" in kinds and "compaction.compacting" in kinds
    assert [item["type"] for item in told[-1]["response"]["output"]] == [
        "mcp_list_tools", "mcp_list_tools", "mcp_call", "compaction", "message",
    ]  # fmt: skip


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["content", "reasoning_content", "refusal"]), st.text()),
            st.tuples(st.integers(0, 3), st.text()),
        ),
        max_size=20,
    ),
    st.sampled_from(["stop", "tool_calls", "length", None]),
)
def test_no_text_is_lost_whatever_the_order(pieces, finish):
    """Deltas in any order give a valid sequence, and every character comes out once."""
    seen: set[int] = set()
    chunks = []
    for kind, text in pieces:
        if isinstance(kind, str):
            chunks.append(delta(**{kind: text}))
        else:
            first = {} if kind in seen else {"id": f"c{kind}", "name": "f"}
            seen.add(kind)
            chunks.append(delta(tool_calls=[call(kind, arguments=text, **first)]))
    told = run(machine(), *chunks, delta(finish))
    output = told[-1]["response"]["output"]
    parts = [part for item in output for part in item.get("content", ())]
    for kind, part_type, key in (
        ("content", "output_text", "text"),
        ("reasoning_content", "reasoning_text", "text"),
        ("refusal", "refusal", "refusal"),
    ):
        sent = "".join(text for name, text in pieces if name == kind)
        assert "".join(part[key] for part in parts if part["type"] == part_type) == sent
    for index in seen:
        sent = "".join(text for name, text in pieces if name == index)
        (item,) = [item for item in output if item.get("call_id") == f"c{index}"]
        assert item["arguments"] == sent
