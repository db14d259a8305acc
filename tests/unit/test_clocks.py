"""What passes at replicas while a turn decodes."""

import pytest

from sessile.router.clocks import Clocks
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.price import work


class Site:
    """Two replicas and their clocks; turns take no prefill unless they are told to."""

    def __init__(self):
        self.clocks = Clocks()
        self.pool = [Outlook("one", "1"), Outlook("two", "1")]

    def start(self, turn, at, now, first=True):
        ask = Ask(
            session=turn, turn=turn, model="m", prompt_tokens=100, output_tokens=100, opening=7
        )  # fmt: skip
        outlook = self.pool[at]
        self.clocks.start(ask, outlook, self.pool, 1.0, now)
        outlook.start(ask, 0, now)
        if first:
            self.first(turn, at, now)

    def first(self, turn, at, now):
        self.clocks.first_token(turn, now)
        self.pool[at].first_token(turn, now)

    def end(self, turn, at, now):
        passed = self.clocks.end(turn, now)
        self.pool[at].end(turn, now)
        return passed


def test_a_turn_meets_those_that_run_beside_it_and_the_replicas_that_are_busy():
    """In the mean of its own time."""
    site = Site()
    site.start("a", 0, 0.0)
    site.start("b", 0, 5.0)
    site.start("c", 1, 8.0)
    passed = site.end("a", 0, 10.0)
    assert passed.decode_s == 10.0
    assert passed.running == pytest.approx(1.5)
    assert passed.beside == pytest.approx(0.2)
    assert (passed.mark.outlook.id, passed.mark.session, passed.mark.group) == ("one", "a", 7)


def test_the_prefill_of_others_is_no_decoding():
    """For as long as it is priced to take, however long its first token does, and for half of the
    decoding at most."""
    site = Site()
    priced_s = site.pool[0].rates.slope_s * work(0, 100)
    site.start("a", 0, 0.0)
    site.start("b", 0, 2.0, first=False)
    site.first("b", 0, 4.0)
    site.start("c", 1, 4.0)
    passed = site.end("a", 0, 10.0)
    assert (passed.decode_s, passed.own_s) == (10.0, pytest.approx(10.0 - priced_s))
    site.start("d", 0, 20.0)
    for n in range(3):
        site.start(f"e{n}", 0, 20.0)
    assert site.end("d", 0, 20.0 + priced_s).own_s == pytest.approx(priced_s / 2)


def test_a_turn_that_has_hardly_decoded_tells_nothing():
    """Nor one that nobody knows."""
    site = Site()
    site.start("a", 0, 0.0, first=False)
    assert site.end("a", 0, 1.1) is None
    assert site.end("?", 0, 2.0) is None


def test_the_crowd_is_kept_while_nothing_runs():
    """And fades with each turn that meets fewer, however short it is; who is the last of a crowd
    has met all of it."""
    site = Site()
    for n in range(8):
        site.start(f"t{n}", n % 2, 0.0)
    for n in range(8):
        site.end(f"t{n}", n % 2, 1.0 + n)
    site.start("later", 0, 100.0)
    assert site.clocks.crowd == 8.0
    site.end("later", 0, 100.1)
    assert site.clocks.crowd == pytest.approx(4.5)
    for n in range(6):
        site.start(f"l{n}", 0, 101.0 + n)
        site.end(f"l{n}", 0, 101.1 + n)
    assert site.clocks.crowd < 1.1
