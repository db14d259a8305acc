"""A turn over the Responses WebSocket, event by event, with no socket."""

from itertools import count
from typing import Any

import msgspec
import pytest

from sessile import errors
from sessile.client.events import TextDelta, ToolCall, ToolResult
from sessile.client.tools import read_tools
from sessile.client.turns import Conversation, Turn
from sessile.router.engine import Usage


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def conversation(**changes: Any) -> Conversation:
    settings: dict[str, Any] = {"system": None, "tools": {}, "max_rounds": 4} | changes
    return Conversation("s1", "m", **settings)


_numbers = count()


def event(type: str, **fields: Any) -> bytes:
    fields.setdefault("sequence_number", next(_numbers))
    return msgspec.json.encode({"type": type, **fields})


def created(id: str, after: str | None = None) -> bytes:
    return event("response.created", response={"id": id, "previous_response_id": after})


def delta(text: str, **fields: Any) -> bytes:
    return event("response.output_text.delta", delta=text, **fields)


def completed(
    id: str, text: str = "", usage: Any = (10, 2, 8), successor: Any = None, **fields: Any
) -> bytes:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    counts = usage and {
        "input_tokens": usage[0],
        "output_tokens": usage[1],
        "input_tokens_details": {"cached_tokens": usage[2]},
    }
    response = {
        "id": id,
        "status": "completed",
        "output": [{"type": "message", "role": "assistant", "content": content}],
        "usage": counts,
        **fields,
    }
    more = {"successor": successor} if successor else {}
    return event(f"response.{response['status']}", response=response, **more)


def call_item(id: str, name: str = "add", arguments: str = '{"a":1,"b":2}') -> bytes:
    item = {"type": "function_call", "call_id": id, "name": name, "arguments": arguments}
    return event("response.output_item.done", item=item)


def sent(turn: Turn) -> dict[str, Any]:
    frame: dict[str, Any] = msgspec.json.decode(turn.frame())
    return frame


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


# -- what is lost on the way


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


def test_a_connection_that_is_too_old_is_no_error_of_the_turn() -> None:
    """It has begun nothing: the same request is for another connection."""
    turn = Turn(conversation(), "x", {})
    first = turn.frame()
    old = {"code": "websocket_connection_limit_reached", "message": "too old"}
    assert turn.receive(event("error", error=old)) == [] and turn.stale and turn.receiving
    assert turn.frame() == first and not turn.stale


# -- what is said into it


def steered(turn: Any, kind: str, id: str | None = None) -> bytes:
    told = {"id": id, "previous_response_id": "r1", "idempotency_key": turn.steered_as}
    return event(f"response.steer.{kind}", steer=told)


class Steered(Turn):
    """A turn that was steered, under the key that its client gave."""

    steered_as = ""


def running(**changes: Any) -> Steered:
    """A turn whose response has begun, and which was steered."""
    turn = Steered(conversation(**changes), "x", {})
    turn.frame()
    turn.steer("Stop.")
    assert turn.steer_frames() == []
    turn.receive(created("r1"))
    (frame,) = turn.steer_frames()
    told = msgspec.json.decode(frame)
    turn.steered_as = told.pop("idempotency_key")
    assert told == {
        "type": "response.steer", "previous_response_id": "r1", "input": "Stop.",
    }  # fmt: skip
    assert turn.steer_frames() == []
    return turn


_STEERED = {"status": "incomplete", "incomplete_details": {"reason": "steered"}}


def test_a_steered_turn_goes_on_with_what_follows_by_itself() -> None:
    """Its reply is that of the response that took the steer in."""
    turn = running()
    turn.receive(steered(turn, "accepted", "s1"))
    turn.receive(completed("r1", **_STEERED))
    assert turn.receiving and not turn.answered
    turn.receive(created("r2", "r1"))
    turn.receive(completed("r2", "Fine."))
    assert turn.outcome is not None
    assert (turn.outcome.text, turn.outcome.incomplete) == ("Fine.", None)


@pytest.mark.parametrize("how", ["refused", "lost", "late"])
def test_a_steer_that_was_not_taken_is_said_next(how: str) -> None:
    """Once, in a request of its own that follows the response."""
    turn = running()
    if how == "late":
        turn.receive(completed("r1", "abc"))
        assert turn.receiving
        turn.receive(steered(turn, "failed"))
    else:
        turn.receive(
            steered(turn, "failed") if how == "refused" else steered(turn, "accepted", "s1")
        )
        if how == "lost":
            turn.lost()
        turn.receive(completed("r1", "abc"))
    assert turn.answered and turn.calls == []
    turn.answer([])
    frame = sent(turn)
    assert frame["previous_response_id"] == "r1"
    assert [item["content"] for item in frame["input"]] == ["Stop."]
    turn.receive(created("r2", "r1"))
    turn.receive(completed("r2", "Fine."))
    assert turn.outcome is not None and turn.outcome.text == "Fine."


def test_a_steer_that_was_lost_with_its_connection_is_brought_again() -> None:
    """Under its key, until the router has answered; what was answered is not."""
    turn = running()
    turn.lost()
    (steer,) = turn.unheard()
    assert (steer.text, steer.target, steer.key) == ("Stop.", "r1", turn.steered_as)
    turn.steer("Now.")
    assert [steer.text for steer in turn.unheard()] == ["Stop.", "Now."]
    turn.receive(steered(turn, "accepted", "s1"))
    assert [steer.text for steer in turn.unheard()] == ["Now."]


def test_the_last_event_says_which_steers_the_successor_took() -> None:
    """The turn goes on with that, over whatever connection; the others are said next."""
    turn = running()
    turn.steer("Now.")
    turn.lost()
    assert len(turn.unheard()) == 2
    turn.receive(steered(turn, "accepted", "s1"))
    named = {"id": "r2", "steers": [turn.steered_as]}
    turn.receive(completed("r1", "Hel", **_STEERED, successor=named))
    assert turn.receiving and (turn.response, turn.after) == ("r2", -1) and not turn.unheard()
    turn.receive(created("r2", "r1"))
    (steer,) = turn.unheard()
    assert (steer.text, steer.target) == ("Now.", "r2")
    turn.receive(completed("r2", "Fine."))
    assert turn.answered
    turn.answer([])
    frame = sent(turn)
    assert frame["previous_response_id"] == "r2"
    assert [item["content"] for item in frame["input"]] == ["Now."]


def test_a_steer_that_was_refused_is_not_brought_to_the_same_response() -> None:
    """However many events of it come."""
    turn = running()
    turn.receive(steered(turn, "failed"))
    turn.receive(delta("Hel"))
    assert turn.steer_frames() == [] == turn.unheard()


def test_a_successor_that_was_lost_with_its_connection_is_asked_for() -> None:
    """The steered response had ended, and nothing follows it by itself any more."""
    turn = running()
    turn.receive(steered(turn, "accepted", "s1"))
    turn.receive(completed("r1", **_STEERED))
    turn.lost()
    assert turn.answered and not turn.receiving
    turn.answer([])
    assert [item["content"] for item in sent(turn)["input"]] == ["Stop."]


def test_a_steer_waits_for_the_tools() -> None:
    """The router has it, and adds it to the outputs by itself."""
    turn = running(tools=read_tools([add]))
    turn.receive(steered(turn, "accepted", "s1"))
    turn.receive(call_item("c1"))
    turn.receive(completed("r1"))
    assert turn.answered
    turn.answer([ToolResult("c1", "add", "3")])
    turn.receive(steered(turn, "pending", "s1"))
    assert [item["type"] for item in sent(turn)["input"]] == ["function_call_output"]
    turn.receive(created("r2", "r1"))
    turn.receive(completed("r2", "Fine."))
    assert turn.finished
