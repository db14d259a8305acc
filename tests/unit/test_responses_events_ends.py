"""How a response ends that is not completed: cut, broken, failed."""

import pytest

from response_events import checked, delta, machine, run, sse, types
from sessile.errors import Overloaded, PromptTooLong, ReplicaRefused, StreamBroken


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
