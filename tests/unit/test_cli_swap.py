"""What `sessile swap` makes of its options, before any router is asked."""

import pytest

from sessile.cli.swap import _command, seconds
from sessile.cli.tables import release_line
from sessile.client.calls import ReleaseInfo, SideInfo
from sessile.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "s"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("0", 0)]
)
def test_a_time_span_has_a_unit(text, s):
    """Seconds without one."""
    assert seconds(text) == s


@pytest.mark.parametrize("text", ["", "m", "-1s", "10 minutes", "inf", "1e3"])
def test_what_is_no_time_span_is_refused(text):
    """With examples of what is."""
    with pytest.raises(InvalidRequest, match="as 90s, 10m or 2h are"):
        seconds(text)


def command(model="m", to=None, percent=None, deadline=None, finish=False, roll_back=False):
    """The call."""
    return _command(model, to, percent, deadline, finish, roll_back)


@pytest.mark.parametrize(
    ("options", "path", "body"),
    [
        ({"to": "g"}, "", {"model": "m", "to": "g", "percent": 100, "deadline_s": None}),
        (
            {"to": "g", "percent": 5, "deadline": "1m"},
            "",
            {"model": "m", "to": "g", "percent": 5, "deadline_s": 60},
        ),
        ({"percent": 0}, "/m/share", {"percent": 0}),
        ({"finish": True, "deadline": "0"}, "/m/finish", {"deadline_s": 0}),
        ({"roll_back": True}, "/m/roll-back", {"deadline_s": None}),
    ],
)
def test_each_option_is_one_call(options, path, body):
    """To the route of its own."""
    call = command(**options)
    assert (call.path, call.body) == (f"/sessile/v1/releases{path}", body)


def test_without_an_option_nothing_is_changed():
    """The figures are shown."""
    assert command() is None and command(model=None) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "g", "finish": True}, "are two commands"),
        ({"percent": 5, "roll_back": True}, "are two commands"),
        ({"deadline": "5m"}, "--deadline goes with"),
        ({"percent": 5, "deadline": "5m"}, "--deadline goes with"),
        ({"model": None, "finish": True}, "needs the MODEL"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words):
    """In one sentence."""
    with pytest.raises(InvalidRequest, match=words):
        command(**options)


def test_a_line_says_who_moves_and_when():
    """And when the change will be in force."""
    sides = [
        SideInfo(variant="m", percent=0, moves_in_s=90),
        SideInfo(variant="m@g", percent=100),
    ]
    release = ReleaseInfo(
        model="m", state="finished", source="m", target="m@g", variants=sides, in_force_in_s=1.4
    )
    assert release_line(release).plain == (
        "swap m  finished  m 0 %, m@g 100 %  sessions of m move in 2m  in force in 1.4s"
    )
