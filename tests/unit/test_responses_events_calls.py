"""The calls of a response: the client's own, custom ones, and those that the router runs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from response_events import USAGE, call, checked, delta, machine, run, sse, types
from sessile.api.responses_events import ResponseStream
from sessile.api.responses_tools import Called

MCP = Called("mcp", "add", "calc")


def called(stream: ResponseStream, **names: Called) -> ResponseStream:
    return ResponseStream(stream.response, None, names)


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
