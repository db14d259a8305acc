"""What is read back from the events of a response that was cut off."""

from typing import Any

import msgspec
import pytest

from sessile.api.responses_body import read_request
from sessile.api.responses_events import ResponseStream
from sessile.api.responses_told import read_told
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
