"""What the client of the chaos lab calls wrong."""

from typing import Any

import pytest

from sessile.lab.chaos_client import Told


def event(number: int, kind: str, **fields: Any) -> dict[str, Any]:
    """One event of a response."""
    return {"type": f"response.{kind}", "sequence_number": number, **fields}


BEGIN = event(0, "created", response={"id": "resp_1"})
DELTA = event(1, "output_text.delta", delta="echo: a")
END = event(2, "completed", response={"error": None})


def told(*events: dict[str, Any]) -> Told:
    """What these events come to."""
    heard = Told("key")
    for each in events:
        heard.hear(each)
    return heard


def test_a_whole_turn_has_nothing_wrong() -> None:
    """Its text, its id and its one last event are known."""
    heard = told(BEGIN, DELTA, END)
    assert (heard.wrong, heard.response, heard.text) == ("", "resp_1", "echo: a")
    assert heard.ends == ["response.completed"] and heard.last == 2


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        ((BEGIN, END), "event 2 came after 0"),
        ((BEGIN, DELTA, DELTA), "event 1 came after 1"),
        ((BEGIN, DELTA, END, event(3, "completed", response={})), "came after the last event"),
    ],
)
def test_what_is_lost_or_doubled_is_wrong(events: tuple[Any, ...], wrong: str) -> None:
    """By the numbers, and by what stands behind the end."""
    assert wrong in told(*events).wrong
