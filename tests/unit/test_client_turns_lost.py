"""A turn of the SDK whose events, or whose connection, are lost on the way."""

from typing import Any

import msgspec
import pytest

from client_turns import add, call_item, completed, conversation, created, delta, event, sent
from sessile import errors
from sessile.client.events import TextDelta, ToolCall, ToolResult
from sessile.client.tools import read_tools
from sessile.client.turns import Turn


def test_a_request_is_repeated_word_for_word_under_its_key() -> None:
    """Whatever was said meanwhile; each round has a key of its own."""
    turn = Turn(conversation(tools=read_tools([add])), "sum", {})
    first = turn.frame()
    turn.steer("Quick.")
    assert turn.lost() == [] and turn.frame() == first
    turn.receive(created("r1"))
    turn.receive(call_item("c1"))
    turn.receive(completed("r1"))
    turn.answer([ToolResult("c1", "add", "3")])
    second = sent(turn)
    assert second["idempotency_key"] != msgspec.json.decode(first)["idempotency_key"]
    assert [item.get("content") for item in second["input"]] == [None, "Quick."]


def test_events_that_were_heard_are_not_told_again() -> None:
    """A replay that begins too early doubles nothing."""
    turn = Turn(conversation(), "x", {})
    turn.frame()
    told = [created("r1"), delta("a"), delta("b"), delta("c"), completed("r1", "abc")]
    said = [said for event in told[:3] for said in turn.receive(event)]
    assert (turn.response, turn.lost()) == ("r1", [])
    said += [said for event in told for said in turn.receive(event)]
    assert said == [TextDelta("a"), TextDelta("b"), TextDelta("c")]
    assert turn.outcome is not None and turn.outcome.text == "abc"


def test_what_another_router_numbers_anew_is_not_said_twice() -> None:
    """The client had heard more than was kept: the text goes on behind it."""
    turn = Turn(conversation(), "x", {})
    turn.frame()

    def numbered(number: int, type: str, **fields: Any) -> bytes:
        return msgspec.json.encode({"type": type, **fields, "sequence_number": number})

    first = [numbered(0, "response.created", response={"id": "r1"})]
    first += [numbered(n, "response.output_text.delta", delta=f"w{n} ") for n in range(1, 6)]
    for told in first:
        turn.receive(told)
    assert (turn.lost(), turn.after) == ([], -1)
    again = [*first[:4], numbered(4, "response.sessile.continued")]
    again += [numbered(n + 1, "response.output_text.delta", delta=f"w{n} ") for n in (4, 5, 6, 7)]
    said = [said for told in again for said in turn.receive(told)]
    assert said == [TextDelta("w6 "), TextDelta("w7 ")]
    assert turn.lost() == [] and [s for told in again for s in turn.receive(told)] == []
    turn.receive(numbered(9, "response.completed", response={"id": "r1", "status": "completed"}))
    assert turn.outcome is not None and turn.outcome.text == "w1 w2 w3 w4 w5 w6 w7 "


def test_a_turn_of_which_too_much_was_lost_is_an_error() -> None:
    """Nothing is guessed where no event is the one that was heard."""
    turn = Turn(conversation(), "x", {})
    turn.frame()
    turn.receive(created("r1"))
    for n in range(100):
        turn.receive(delta(f"w{n}", sequence_number=1000 + n))
    assert turn.after == 1099 - 64
    with pytest.raises(errors.StreamBroken, match="knows less"):
        turn.receive(delta("other", sequence_number=1036))


def test_what_was_not_kept_comes_with_the_whole_response() -> None:
    """After a hole nothing is told out of order, and at the end nothing is missing."""
    turn = Turn(conversation(tools=read_tools([add])), "x", {})
    turn.frame()
    told = [created("r1"), delta("a"), event("sessile.gap", first=2, last=3), delta("d")]
    assert [said for event in told for said in turn.receive(event)] == [TextDelta("a")]
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
    text = [{"type": "output_text", "text": "abcd"}]
    output = [{"type": "message", "content": text}, call]
    whole = turn.receive(completed("r1", output=output))
    assert whole == [TextDelta("bcd"), ToolCall("c1", "add", "{}")]
    assert turn.answered and [call.id for call in turn.calls] == ["c1"]


def test_a_connection_that_is_too_old_is_no_error_of_the_turn() -> None:
    """It has begun nothing: the same request is for another connection."""
    turn = Turn(conversation(), "x", {})
    first = turn.frame()
    old = {"code": "websocket_connection_limit_reached", "message": "too old"}
    assert turn.receive(event("error", error=old)) == [] and turn.stale and turn.receiving
    assert turn.frame() == first and not turn.stale
