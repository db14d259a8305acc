"""A turn of the SDK into which something is said while it runs."""

from typing import Any

import msgspec
import pytest

from client_turns import add, call_item, completed, conversation, created, delta, event, sent
from sessile.client.events import ToolResult
from sessile.client.tools import read_tools
from sessile.client.turns import Turn

_STEERED = {"status": "incomplete", "incomplete_details": {"reason": "steered"}}


class Steered(Turn):
    """A turn that was steered, under the key that its client gave."""

    steered_as = ""


def steered(turn: Any, kind: str, id: str | None = None) -> bytes:
    told = {"id": id, "previous_response_id": "r1", "idempotency_key": turn.steered_as}
    return event(f"response.steer.{kind}", steer=told)


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
