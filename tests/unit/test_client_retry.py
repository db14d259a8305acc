"""How a lost router is looked for, and what comes of a stream's lines."""

from sessile.client.follow import SseLines
from sessile.client.retry import Tries


def test_pauses_grow_and_end() -> None:
    """Each at most twice the one before, none over five seconds, and none after the time is up."""
    tries = Tries(30.0, random=lambda: 0.5)
    now, pauses = 100.0, []
    while (pause := tries.next(now)) is not None:
        pauses.append(pause)
        now += pause
    assert pauses[:3] == [0.05, 0.1, 0.2] and max(pauses) == 5.0
    assert now == 130.0


def test_pauses_differ_from_client_to_client() -> None:
    """By half of each, so that not all come back at once."""
    first = [Tries(30.0, random=lambda r=r: r).next(0.0) for r in (0.0, 0.999)]
    assert first[0] == 0.025 and first[1] is not None and first[1] > 0.07


def test_an_event_begins_the_time_anew() -> None:
    """What is bounded is the time without one."""
    tries = Tries(1.0, random=lambda: 0.5)
    assert tries.next(0.0) == 0.05 and tries.next(0.9) is not None
    tries.went_on()
    assert tries.next(5.0) == 0.05
    assert tries.next(7.0) is None


def test_events_are_read_from_lines() -> None:
    """Other fields and comments are passed over, data of many lines is one event."""
    lines = ["id: 1", "event: x", 'data: {"a":', "data:1}", "", ": nothing", "", "data: {}", ""]
    parser = SseLines()
    assert [data for line in lines if (data := parser.feed(line))] == ['{"a":\n1}', "{}"]
