"""What is read back from the events of a response that was cut off."""

from typing import Any

import msgspec
import pytest

from sessile.api.responses_body import read_request
from sessile.api.responses_events import ResponseStream
from sessile.api.responses_told import read_told
from sessile.api.responses_tools import Called
from sessile.errors import StreamBroken

CHUNKS = (
    {"reasoning_content": "hm"},
    {"content": "Hel"},
    {"content": "lo"},
    {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
)


def stream() -> ResponseStream:
    asked = read_request({"model": "m", "input": "x"})
    return ResponseStream({**asked.response, "id": "resp_1"})


def chunk(**choice: Any) -> bytes:
    return b"data: " + msgspec.json.encode({"choices": [{"index": 0, **choice}]}) + b"\n\n"


@pytest.mark.parametrize("count", range(len(CHUNKS) + 1))
def test_it_is_what_a_failed_response_holds(count: int) -> None:
    """Wherever the stream is cut: the items are those that a failure there would have told."""
    made = stream()
    events = made.start()
    for delta in CHUNKS[:count]:
        made.feed(chunk(delta=delta), events)
    told = read_told(event.body for event in events)
    made.fail(StreamBroken("cut"), 1.0)
    assert told.output == made.response["output"]
    assert told.created and told.begun and told.whole and told.next == len(events)


def test_a_text_can_go_on_while_it_is_open() -> None:
    """Only where it is all that was told, and has not come to its end."""
    made = stream()
    events = made.start()
    found = []
    for delta in ({"content": "Hel"}, {"content": "lo"}, {}, {"reasoning_content": "x"}):
        made.feed(chunk(delta=delta), events)
        found.append(read_told(event.body for event in events).text)
    assert found == ["Hel", "Hello", "Hello", None]
    assert read_told(event.body for event in stream().start()).text is None


def test_a_stream_goes_on_within_a_text() -> None:
    """The events behind a cut are those of a stream that was not cut."""
    whole, first = stream(), stream()
    one, two = whole.start(), first.start()
    for delta in ({"content": "Hel"}, {"content": "lo"}):
        whole.feed(chunk(delta=delta), one)
    first.feed(chunk(delta={"content": "Hel"}), two)
    told = read_told(event.body for event in two)
    asked = read_request({"model": "m", "input": "x"})
    response = {**asked.response, "id": "resp_1", "output": told.output}
    second = ResponseStream(response, sequence=told.next, begun=told.begun)
    second.take_up(told.text or "")
    two += second.start()
    second.feed(chunk(delta={"content": "lo"}), two)
    for made, events in ((whole, one), (second, two)):
        made.feed(chunk(delta={}, finish_reason="stop"), events)
        events += made.finish(1.0)
    assert one == two


def test_calls_are_read_back_too() -> None:
    """A custom tool's input and an MCP tool's arguments, as far as they were told."""
    made = stream()
    made.called = {"sh": Called("custom", "sh"), "add": Called("mcp", "add", "s")}
    events = made.start()
    for index, (name, arguments) in enumerate((("sh", '{"input":"ls'), ("add", '{"a":'))):
        call = {"index": index, "id": f"c{index}", "function": {"name": name}}
        made.feed(chunk(delta={"tool_calls": [call]}), events)
        more = {"index": index, "function": {"arguments": arguments}}
        made.feed(chunk(delta={"tool_calls": [more]}), events)
    custom, mcp = read_told(event.body for event in events).output
    assert (custom["input"], custom["status"]) == ("ls", "incomplete")
    assert (mcp["arguments"], mcp["status"]) == ('{"a":', "incomplete")


def test_a_response_that_only_waits_has_told_nothing() -> None:
    """Created and queued are no output."""
    told = read_told(event.body for event in stream().accept())
    assert told.created and not told.begun and not told.output and told.next == 2


def test_a_hole_is_noticed() -> None:
    """Events that are missing, at the start or in the middle, are not made up."""
    made = stream()
    events = made.start()
    for delta in CHUNKS:
        made.feed(chunk(delta=delta), events)
    for missing in range(len(events) - 1):
        left = [event.body for n, event in enumerate(events) if n != missing]
        assert not read_told(left).whole
    assert not read_told([event.body for event in events[6:]]).whole


def test_a_stream_that_goes_on_tells_only_what_is_left() -> None:
    """Behind the events that were told, under the next number."""
    asked = read_request({"model": "m", "input": "x"})
    for sequence, begun, kinds in (
        (0, False, ["response.created", "response.in_progress"]),
        (2, False, ["response.in_progress"]),
        (3, True, []),
    ):
        made = ResponseStream({**asked.response, "id": "r"}, sequence=sequence, begun=begun)
        events = made.start()
        assert [event.type for event in events] == kinds
        made.feed(chunk(delta={"content": "a"}), events)
        first = msgspec.json.decode(events[0].body)
        assert first["sequence_number"] == sequence
