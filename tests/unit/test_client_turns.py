"""A turn over the Responses WebSocket, event by event, with no socket."""

import pytest

from client_turns import add, call_item, completed, conversation, created, delta, event, sent
from sessile import errors
from sessile.client.events import TextDelta, ToolCall, ToolResult
from sessile.client.tools import read_tools
from sessile.client.turns import Turn
from sessile.router.engine import Usage


def test_each_turn_sends_only_what_is_new() -> None:
    """The second turn names the first one's response, and carries its own text alone."""
    talk = conversation(system="Be brief.")
    first = Turn(talk, "one", {"temperature": 0})
    frame = sent(first)
    assert frame.pop("idempotency_key") == first.key
    assert frame == {
        "type": "response.create",
        "model": "m",
        "temperature": 0,
        "instructions": "Be brief.",
        "input": [{"type": "message", "role": "user", "content": "one"}],
    }
    assert first.receive(event("response.created", response={"id": "r1"})) == []
    assert first.receive(event("response.output_text.delta", delta="ok")) == [TextDelta("ok")]
    assert first.receiving and not first.finished
    assert first.receive(completed("r1", "ok")) == []
    assert first.outcome is not None and not first.receiving
    assert (first.outcome.text, first.outcome.usage) == ("ok", Usage(10, 2, 8))
    second = sent(Turn(talk, [{"type": "message", "role": "user", "content": []}], {}))
    assert second["previous_response_id"] == "r1"
    assert second["input"] == [{"type": "message", "role": "user", "content": []}]


def test_calls_are_answered_in_the_same_turn() -> None:
    """Parallel calls come as events, their results are the next frame, and the usage adds up."""
    talk = conversation(tools=read_tools([add]))
    turn = Turn(talk, "sum", {})
    assert sent(turn)["tools"][0]["name"] == "add"
    for id in ("c1", "c2"):
        assert turn.receive(call_item(id)) == [ToolCall(id, "add", '{"a":1,"b":2}')]
    turn.receive(completed("r1"))
    assert not turn.finished and [call.id for call in turn.calls] == ["c1", "c2"]
    assert talk.head is None
    results = [ToolResult(call.id, call.name, "3") for call in turn.calls]
    assert turn.answer(results) == results
    again = sent(turn)
    assert again["previous_response_id"] == "r1"
    assert again["input"] == [
        {"type": "function_call_output", "call_id": id, "output": "3"} for id in ("c1", "c2")
    ]
    turn.receive(completed("r2", "3 and 3"))
    assert turn.outcome is not None and talk.head == "r2"
    assert turn.outcome.usage == Usage(20, 4, 16)
    assert [call.id for call in turn.outcome.tool_calls] == ["c1", "c2"]


def test_rounds_are_bounded_and_no_call_is_left_unanswered() -> None:
    """After the last round the model may not call; the next turn then says so."""
    talk = conversation(tools=read_tools([add]), max_rounds=1)
    turn = Turn(talk, "sum", {})
    assert "tool_choice" not in sent(turn)
    turn.receive(call_item("c1"))
    turn.receive(completed("r1"))
    turn.answer([ToolResult("c1", "add", "3")])
    assert sent(turn)["tool_choice"] == "none"
    turn.receive(call_item("c2"))
    turn.receive(completed("r2"))
    assert turn.finished
    following = sent(Turn(talk, "go on", {}))["input"]
    assert following[0]["type"] == "function_call_output" and following[0]["call_id"] == "c2"
    assert following[1]["content"] == "go on"


def test_a_turn_cut_short_says_why() -> None:
    """An incomplete response ends the turn with its reason, even amid calls."""
    turn = Turn(conversation(tools=read_tools([add])), "x", {})
    turn.frame()
    turn.receive(call_item("c1"))
    details = {"reason": "max_output_tokens"}
    turn.receive(completed("r1", "ab", status="incomplete", incomplete_details=details))
    assert turn.outcome is not None and turn.outcome.incomplete == "max_output_tokens"


def test_a_cancelled_response_leaves_the_session_as_it_was() -> None:
    """What was said of it is the reply."""
    talk = conversation(head="r0")
    turn = Turn(talk, "x", {})
    turn.follow("r1")
    turn.receive(created("r1", "r0"))
    turn.receive(delta("half"))
    turn.receive(
        event("response.incomplete", response={"id": "r1", "status": "cancelled", "output": []})
    )
    assert turn.outcome is not None and turn.outcome.incomplete == "cancelled"
    assert (turn.outcome.text, talk.head) == ("half", "r0")


def test_what_the_engine_does_not_report_is_unknown() -> None:
    """A missing usage is None, never zero."""
    turn = Turn(conversation(), "x", {})
    turn.frame()
    turn.receive(completed("r1", "ab", usage=None))
    assert turn.outcome is not None and turn.outcome.usage == Usage(None, None, None)


@pytest.mark.parametrize(
    "told",
    [
        event("error", code="session_expired", message="it is closed", param=None),
        event("error", status=410, error={"code": "session_expired", "message": "it is closed"}),
        event(
            "response.failed",
            response={"error": {"code": "session_expired", "message": "it is closed"}},
        ),
    ],
)
def test_errors_are_the_servers_classes(told: bytes) -> None:
    """However the event tells it, the error is the class of its code, and the head stays."""
    talk = conversation(head="r0")
    turn = Turn(talk, "x", {})
    turn.frame()
    with pytest.raises(errors.SessionExpired, match="it is closed"):
        turn.receive(told)
    assert talk.head == "r0"


def test_unknown_events_pass_and_nonsense_does_not() -> None:
    """New kinds of events are skipped; a frame that is no event is the server's fault."""
    turn = Turn(conversation(), "x", {})
    turn.frame()
    assert turn.receive(event("response.new_thing", delta={"a": 1})) == []
    for nonsense in (b"{", b"[]", "{}", b"\xff"):
        with pytest.raises(errors.ReplicaRefused):
            turn.receive(nonsense)
