"""The state machine from chat chunks to Responses events, checked against OpenAI's own models."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from sessile.api.responses_body import read_request
from sessile.api.responses_calls import mcp_call
from sessile.api.responses_events import ResponseStream
from sessile.api.responses_sequence import Event
from sessile.api.responses_tools import Called
from sessile.errors import Overloaded, PromptTooLong, ReplicaRefused, StreamBroken
from sessile.sealed import unseal

_EVENT = TypeAdapter(ResponseStreamEvent)
_TERMINAL = {"response.completed", "response.incomplete", "response.failed"}


def machine(stream_id: str | None = None, **fields: object) -> ResponseStream:
    asked = read_request({"model": "m", "input": "hi", **fields})
    return ResponseStream({**asked.response, "id": "resp_ab12", "created_at": 7}, stream_id)


def sse(*chunks: object) -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks)


def delta(finish: str | None = None, logprobs: object = None, **fields: object) -> dict:
    return {
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish, "logprobs": logprobs}]
    }


def call(index: int | None, **fields: object) -> dict:
    known = {"name": fields.pop("name", None), "arguments": fields.pop("arguments", None)}
    return {**({} if index is None else {"index": index}), "function": known, **fields}


USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 2},
    },
}


def run(stream: ResponseStream, *chunks: object) -> list[dict]:
    events = stream.start()
    stream.feed(sse(*chunks) + b"data: [DONE]\n\n", events)
    return checked(events + stream.finish(9.5))


def checked(events: list[Event]) -> list[dict]:
    """The events decoded, each valid for OpenAI's models, in sequence, with one last word."""
    told = [msgspec.json.decode(event.body) for event in events]
    for event, body in zip(events, told, strict=True):
        parsed = _EVENT.validate_json(event.body, strict=True)
        assert parsed.type == event.type == body["type"]
        if "response" in body:
            Response.model_validate_json(msgspec.json.encode(body["response"]), strict=True)
    assert [body["sequence_number"] for body in told] == list(range(len(told)))
    assert [body["type"] in _TERMINAL for body in told] == [False] * (len(told) - 1) + [True]
    return told


def types(told: list[dict]) -> list[str]:
    return [body["type"].removeprefix("response.") for body in told]


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


def test_calls_keep_their_pieces_apart():
    """Two calls of one reply, their arguments in pieces and interleaved, come out whole."""
    told = run(
        machine(),
        delta(content="Looking."),
        delta(tool_calls=[call(0, id="call_a", name="look", arguments="")]),
        delta(tool_calls=[call(0, arguments='{"x"')]),
        delta(tool_calls=[call(1, id="call_b", name="find", arguments='{"y"')]),
        delta(tool_calls=[call(0, arguments=":1}"), call(1, arguments=":2}")]),
        delta("tool_calls"),
    )
    text, first, second = told[-1]["response"]["output"]
    assert text["content"][0]["text"] == "Looking."
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_a", "look", '{"x":1}')
    assert (second["call_id"], second["name"]) == ("call_b", "find")
    assert second["arguments"] == '{"y":2}'
    assert types(told).count("function_call_arguments.delta") == 4
    assert types(told).index("output_item.done") < types(told).index(
        "function_call_arguments.delta"
    )


def test_calls_that_share_an_index_are_told_apart_by_id():
    """An engine that gives each call the same index still makes two calls."""
    told = run(
        machine(),
        delta(tool_calls=[call(0, id="one", name="f", arguments="{}")]),
        delta(tool_calls=[call(0, id="two", name="f", arguments="{}")]),
        delta("tool_calls"),
    )
    assert [item["call_id"] for item in told[-1]["response"]["output"]] == ["one", "two"]


@pytest.mark.parametrize("other", [0, 1])
def test_one_call_at_a_time_is_held(other):
    """What an engine calls beside the first is told nobody, in whatever order the pieces come; the
    next answer of the engine may call again."""
    stream = machine(parallel_tool_calls=False)
    late = [call(0, arguments="}")] if other else []
    told = run(
        stream,
        delta(tool_calls=[call(0, id="one", name="f", arguments="{" if other else "{}")]),
        delta(tool_calls=[call(other, id="two", name="g", arguments="{"), *late]),
        delta(tool_calls=[call(other, arguments="}")]),
        delta("tool_calls"),
    )
    (item,) = told[-1]["response"]["output"]
    assert (item["call_id"], item["name"], item["arguments"]) == ("one", "f", "{}")
    assert not any("two" in json.dumps(event) for event in told)


def test_one_call_at_a_time_may_be_one_after_the_other():
    """Each of the engine's answers for one response has a first call."""
    stream = machine(parallel_tool_calls=False)
    events = stream.start()
    for name in ("one", "two"):
        chunk = delta("tool_calls", tool_calls=[call(0, id=name, name="t", arguments="{}")])
        stream.called = {"t": Called("mcp", "t", "s")}
        stream.feed(sse(chunk), events)
        for item in stream.pause(events):
            item |= {"output": "42", "error": None, "status": "completed"}
            stream.settle(item, events)
        stream.go_on()
    assert [item["type"] for item in stream.response["output"]] == ["mcp_call", "mcp_call"]


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


@pytest.mark.parametrize(
    ("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_a_cut_reply_is_incomplete(reason, why):
    """A reply that was cut ends incomplete, says why, and marks its last item."""
    told = run(machine(), delta(content="Once"), delta(reason))
    response = told[-1]["response"]
    assert told[-1]["type"] == "response.incomplete"
    assert response["incomplete_details"] == {"reason": why}
    assert response["output"][-1]["status"] == "incomplete"


def test_a_stream_without_a_finish_reason_has_failed():
    """An answer that just stops is not taken for a whole one, and keeps what was sent."""
    told = run(machine(), delta(content="On"))
    assert told[-1]["type"] == "response.failed"
    error = told[-1]["response"]["error"]
    assert error["code"] == "server_error" and error["type"] == "stream_broken"
    assert told[-1]["response"]["output"][0]["status"] == "incomplete"
    assert types(told)[-2] == "output_text.delta"


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_engine_that_stopped_the_turn_has_failed_it(reason):
    """SGLang's finish reason for an aborted request is a failure."""
    assert run(machine(), delta(reason))[-1]["type"] == "response.failed"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StreamBroken("gone"), "server_error"),
        (Overloaded("full"), "rate_limit_exceeded"),
        (PromptTooLong("long"), "invalid_prompt"),
    ],
)
def test_a_failure_is_told_once(error, code):
    """After a failure nothing more is said, whatever else happens."""
    stream = machine()
    events = stream.start()
    stream.feed(sse(delta(content="a")), events)
    events += stream.fail(error, 9.0)
    events += stream.fail(error, 9.0) + stream.finish(9.0)
    stream.feed(sse(delta(content="b")), events)
    assert checked(events)[-1]["response"]["error"]["code"] == code


@pytest.mark.parametrize("data", [b"data: {oops\n\n", b'data: {"choices": 3}\n\n', b"data: 1\n\n",
                                  b'data: {"error": {"message": "out of memory"}}\n\n',
                                  b'data: {"error": "out of memory"}\n\n'])  # fmt: skip
def test_garbage_and_errors_in_the_stream_are_the_engines_fault(data):
    """A chunk that is none, or tells an error, raises for the caller to fail the response with."""
    with pytest.raises(ReplicaRefused):
        machine().feed(data, [])


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


MCP = Called("mcp", "add", "calc")


def called(stream: ResponseStream, **names: Called) -> ResponseStream:
    return ResponseStream(stream.response, None, names)


@given(st.text(), st.integers(1, 7), st.booleans())
def test_a_custom_tools_input_is_told_as_it_comes(text, size, ascii_only):
    """The deltas of the one string in its arguments add up to the input, wherever they are cut."""
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    pieces = [arguments[n : n + size] for n in range(0, len(arguments), size)]
    told = run(
        called(machine(), sh=Called("custom", "sh")),
        delta(tool_calls=[call(0, id="c", name="sh", arguments="")]),
        *(delta(tool_calls=[call(0, arguments=piece)]) for piece in pieces),
        delta("tool_calls"),
    )
    (item,) = told[-1]["response"]["output"]
    assert (item["type"], item["call_id"], item["input"]) == ("custom_tool_call", "c", text)
    kinds = types(told)
    deltas = [b["delta"] for b in told if b["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == text
    assert kinds[-3:] == ["custom_tool_call_input.done", "output_item.done", "completed"]


@pytest.mark.parametrize(
    ("arguments", "input"),
    [
        ("ls -l", "ls -l"),
        ('"ls"', "ls"),
        ('{"cmd": 1}', '{"cmd": 1}'),
        ('{"input": "a', '{"input": "a'),
    ],
)
def test_arguments_that_are_no_input_are_the_input(arguments, input):
    """What a model wrote in another form is given to the client as it stands."""
    told = run(
        called(machine(), sh=Called("custom", "sh")),
        delta(tool_calls=[call(0, id="c", name="sh", arguments=arguments)]), delta("tool_calls"),
    )  # fmt: skip
    assert told[-1]["response"]["output"][0]["input"] == input


def test_an_mcp_call_is_run_and_the_engine_called_again():
    """Its events go on with its result, and those of the next engine call; the usage is of both."""
    stream = called(machine(), calc__add=MCP)
    events = stream.start()
    stream.feed(
        sse(delta(tool_calls=[call(0, id="x", name="calc__add", arguments='{"a":1}')]),
            delta("tool_calls"), USAGE), events,
    )  # fmt: skip
    (item,) = stream.pause(events)
    assert (item["server_label"], item["name"], item["status"]) == ("calc", "add", "calling")
    assert not stream.waits
    item |= {"output": "1", "error": None, "status": "completed"}
    stream.settle(item, events)
    stream.go_on()
    stream.feed(sse(delta(content="One."), delta("stop"), USAGE), events)
    assert stream.pause(events) == []
    told = checked(events + stream.finish(9.5))
    assert types(told)[2:8] == [
        "output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta",
        "mcp_call_arguments.done", "mcp_call.completed", "output_item.done",
    ]  # fmt: skip
    response = told[-1]["response"]
    assert [item["type"] for item in response["output"]] == ["mcp_call", "message"]
    assert response["usage"]["total_tokens"] == 32
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 16


def test_a_call_to_be_approved_ends_the_response():
    """It is an approval request, with its arguments, and there is nothing to run."""
    stream = called(machine(), calc__add=Called("mcp", "add", "calc", asks=True))
    events = stream.start()
    stream.feed(
        sse(delta(tool_calls=[call(0, id="x", name="calc__add", arguments="{}")]),
            delta("tool_calls")), events,
    )  # fmt: skip
    assert stream.pause(events) == [] and stream.waits
    told = checked(events + stream.finish(9.5))
    (item,) = told[-1]["response"]["output"]
    assert (item["type"], item["arguments"]) == ("mcp_approval_request", "{}")
    assert types(told)[2:] == ["output_item.added", "output_item.done", "completed"]


def test_a_cut_call_is_not_run():
    """A call whose arguments reached the limit is incomplete, and so is the response."""
    stream = called(machine(), calc__add=MCP)
    events = stream.start()
    stream.feed(
        sse(delta(tool_calls=[call(0, id="x", name="calc__add", arguments='{"a')]),
            delta("length")), events,
    )  # fmt: skip
    assert stream.pause(events) == []
    told = checked(events + stream.finish(9.5))
    assert told[-1]["response"]["status"] == "incomplete"
    assert told[-1]["response"]["output"][0]["status"] == "incomplete"


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
