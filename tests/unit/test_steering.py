"""What becomes of steers, without a connection."""

from typing import Any

import pytest
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter

from sessile.api.steering import MOST_PENDING, Steering, joined, successor, user_message
from sessile.errors import InvalidRequest

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "3"}


@pytest.fixture
def steering() -> Steering:
    """With one active response, `r`, in lane `a`."""
    steering = Steering(1_000)
    steering.began("r", "a", {"model": "m"})
    return steering


def steer(steering: Steering, text: Any = "Stop.", response: str = "r", **more: Any) -> Any:
    """What a steer is answered, valid for OpenAI's models."""
    frame = {"type": "response.steer", "previous_response_id": response, "input": text, **more}
    event, _ = steering.steer(frame, 10)
    _EVENT.validate_python(event)
    return event


def code(event: dict[str, Any]) -> str:
    assert event["type"] == "response.steer.failed"
    return event["error"]["code"]


def test_an_accepted_steer_stops_the_response_and_goes_on_with_its_successor(steering):
    """It is told of once, with its lane; all that came until the end are taken in, in order."""
    assert not steering.wants("r")
    accepted = steer(steering)
    assert accepted["type"] == "response.steer.accepted" and accepted["stream_id"] == "a"
    assert accepted["steer"]["previous_response_id"] == "r"
    assert steering.wants("r")
    later = steer(steering, [{"role": "user", "content": "Now."}])
    assert later["sequence_number"] == accepted["sequence_number"] + 1
    ending = steering.ended("r", "incomplete", [])
    assert ending.events == []
    assert [s.id for s in ending.successor] == [accepted["steer"]["id"], later["steer"]["id"]]
    frame = {"model": "m", "tools": [1], "input": "old", "previous_response_id": "before"}
    items = [item for s in ending.successor for item in s.items]
    follows = successor(frame, "r", items)
    assert follows == {
        "model": "m", "tools": [1], "previous_response_id": "r",
        "input": [user_message("Stop."), {"type": "message", "role": "user", "content": "Now."}],
    }  # fmt: skip
    assert not steering.wants("r")


def test_a_response_that_completes_first_has_a_successor_too(steering):
    """The steer came before its end, and is not lost."""
    steer(steering)
    assert len(steering.ended("r", "completed", [{"type": "message"}]).successor) == 1


def test_tools_of_the_client_come_first(steering):
    """It says what is owed, and goes with the outputs, once."""
    ids = [steer(steering, text)["steer"]["id"] for text in ("one", "two")]
    ending = steering.ended("r", "completed", [{"type": "reasoning"}, CALL])
    assert ending.successor == ()
    for event, name in zip(ending.events, ids, strict=True):
        _EVENT.validate_python(event)
        assert event["type"] == "response.steer.pending" and event["steer"]["id"] == name
        stub = {"type": "function_call_output", "call_id": "c1", "name": "add"}
        assert event["required_input"] == [stub] and event["stream_id"] == "a"
    assert steering.claim("other") == [] and steering.claim(["r"]) == []
    steers = steering.claim("r")
    assert [s.id for s in steers] == ids and steering.claim("r") == []
    steering.give_back(steers)
    assert [s.id for s in steering.claim("r")] == ids


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ["S"]),
        ("words", ["S", "words"]),
        ([], ["S"]),
        ([OUTPUT], [OUTPUT, "S"]),
        ([OUTPUT, "more"], [OUTPUT, "S", "more"]),
        (["more"], ["S", "more"]),
        (3, 3),
    ],
)
def test_steers_stand_first_but_for_tool_outputs(steering, given, expected):
    """Engines want the outputs right behind their calls; what is wrong is left for others."""
    steer(steering, "S")
    steers = steering.ended("r", "incomplete", []).successor

    def items(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [user_message(v) if v in ("S", "words") else v for v in value]

    assert joined(given, steers) == items(expected)
    assert joined(given, []) is given


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        ("failed", [], "response_not_active"),
        ("incomplete", [CALL], "response_not_active"),
        ("cancelled", [], "response_not_active"),
    ],
)
def test_a_steer_that_nothing_can_follow_is_given_back(steering, status, output, expected):
    """With its id and its input as it was given."""
    name = steer(steering, "Stop.")["steer"]["id"]
    (event,) = steering.ended("r", status, output).events
    _EVENT.validate_python(event)
    assert code(event) == expected
    assert event["steer"] == {"id": name, "previous_response_id": "r", "input": "Stop."}


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        ("completed", [], "response_already_completed"),
        ("completed", [CALL], "response_already_completed"),
        ("incomplete", [], "response_not_active"),
        ("failed", [], "response_not_active"),
    ],
)
def test_a_response_that_is_over_takes_no_steer(steering, status, output, expected):
    """Each end has its own code."""
    steering.ended("r", status, output)
    event = steer(steering)
    assert code(event) == expected and "id" not in event["steer"]


def test_a_response_of_nobody_takes_no_steer(steering):
    """Another connection's is not found here, whoever made it."""
    event = steer(steering, response="resp_other")
    assert code(event) == "response_not_found" and "stream_id" not in event


@pytest.mark.parametrize(
    "frame",
    [
        {"generate": False},
        {"prompt_cache_options": {"prewarm": True}},
        {"conversation": "conv_1"},
        {"context_management": [{"type": "compaction"}]},
    ],
)
def test_some_responses_cannot_be_steered(steering, frame):
    """Those without output, and those whose history is kept elsewhere or made shorter."""
    steering.began("s", None, frame)
    assert code(steer(steering, response="s")) == "steering_not_supported"


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        [],
        3,
        ["words"],
        [{"role": "assistant", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "input_text"}]}],
        [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}],
        [{"role": "user", "content": "x", "status": "completed"}],
        [OUTPUT],
    ],
)
def test_only_user_messages_are_steers(steering, given):
    """Anything else is given back as invalid, and the response goes on."""
    frame = {"type": "response.steer", "previous_response_id": "r", "input": given}
    event, _ = steering.steer(frame, 10)
    assert code(event) == "invalid_input" and event["steer"]["input"] == given
    assert not steering.wants("r")


def test_a_steer_has_no_lane_and_needs_a_response(steering):
    """The response determines the lane; a steer that names none cannot be answered as one."""
    assert code(steer(steering, stream_id="a")) == "invalid_input"
    for name in (None, 3, ""):
        with pytest.raises(InvalidRequest, match="previous_response_id"):
            steering.steer({"previous_response_id": name, "input": "x"}, 10)


def test_steers_are_bounded():
    """So many a response, so many bytes a connection; those that are done make room."""
    steering = Steering(85)
    for name in "rst":
        steering.began(name, None, {})
    for _ in range(MOST_PENDING):
        assert steer(steering)["type"] == "response.steer.accepted"
    assert code(steer(steering)) == "too_many_pending_steers"
    assert code(steer(steering, response="s")) == "too_many_pending_steers"
    steering.ended("r", "completed", [])
    for _ in range(MOST_PENDING):
        assert steer(steering, response="t")["type"] == "response.steer.accepted"


def test_only_over_responses_are_forgotten():
    """Many more than are remembered, and the active one takes a steer still."""
    steering = Steering(100)
    steering.began("r", None, {})
    for number in range(2_000):
        steering.began(f"s{number}", None, {})
        steering.ended(f"s{number}", "completed", [])
    assert steer(steering)["type"] == "response.steer.accepted"
    assert code(steer(steering, response="s0")) == "response_not_found"
    assert code(steer(steering, response="s1999")) == "response_already_completed"
