"""Who is up in one Ray Serve application, and what its routers tell of the load there. Pure.

Replicas say every second that they live, routers every second what they have under way; nothing is
kept on disk, since all of it is told anew within seconds. A replica that is to go says so, is
listed as leaving, and may end once no living router has anything left there.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

BEAT_S = 1.0
"""How often replicas and routers tell."""
_SILENT_S = 5.0  # who has said nothing for so long is gone
_SETTLED_S = 3.0  # a roll that is younger may not have heard of everybody


class Beat(msgspec.Struct, frozen=True):
    """A replica that is up. `id` is Ray Serve's; a restarted engine is known by its incarnation,
    which probes read. `folder` is where it saves KV memory, if routers and replicas share one."""

    id: str
    engine: str
    url: str
    model: str | None
    folder: str | None = None


class Held(msgspec.Struct, frozen=True):
    """What one router has at a replica: turns under way, whether it `drains` the replica, sessions
    that it is still to move away for that, and what the replica says of its room."""

    in_flight: int
    drains: bool = False
    left: int = 0
    slots: int | None = None
    kv_fill: float | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one router tells. `wait_s` is the longest that a turn has waited for memory, or what one
    sent now would wait where that is least; `late` of its `turns` in the last seconds were slower
    than `Answer.ttft_s` to their first token; `missed` found no replica at all."""

    router: str
    holds: dict[str, Held] = {}
    queued: int = 0
    wait_s: float = 0.0
    turns: int = 0
    late: int = 0
    missed: int = 0


class Entry(msgspec.Struct, frozen=True):
    """One replica as routers are told of it."""

    replica: Beat
    leaving: bool


class Answer(msgspec.Struct, frozen=True):
    """What a router is answered: every replica, what they serve, whether one is there or not, and
    the time to the first token that is aimed at. While the list may lack some it is not `settled`.
    """

    replicas: list[Entry]
    model: str
    ttft_s: float
    settled: bool


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """The load of the application as all of its routers see it; None is unknown, never zero.

    `replicas` take turns now; `busy` is turns under way per slot, over 1 where some wait for one;
    `kv_fill` is the share of KV memory that live sessions need.
    """

    replicas: int = 0
    in_flight: int = 0
    queued: int = 0
    missed: int = 0
    wait_s: float = 0.0
    late_share: float = 0.0
    busy: float | None = None
    kv_fill: float | None = None


class Heard(NamedTuple):
    """A router's newest report, when it came, and when the one before it did."""

    report: Report
    at: float
    before: float


class Roll:
    """The roll of one application. Made by its deployment, lost with it, soon complete again."""

    def __init__(self, model: str, ttft_s: float, now: float) -> None:
        self._model = model
        self._ttft_s = ttft_s
        self._began = now
        self._beats: dict[str, tuple[Beat, float]] = {}
        self._leaving: dict[str, float] = {}
        self._reports: dict[str, Heard] = {}

    def beat(self, beat: Beat, now: float) -> None:
        """A replica lives."""
        self._beats[beat.id] = (beat, now)

    def leave(self, beat: Beat, now: float) -> None:
        """A replica is to go: it lives, and is to be given nothing new."""
        self.beat(beat, now)
        self._leaving.setdefault(beat.id, now)

    def gone(self, replica: str) -> None:
        """A replica has ended."""
        self._beats.pop(replica, None)
        self._leaving.pop(replica, None)

    def is_drained(self, replica: str, now: float) -> bool:
        """Whether a leaving replica may end: each router that lives has been told of it, and has
        nothing there any more."""
        self._forget(now)
        since = self._leaving.get(replica)
        if since is None:
            return True
        for report, _, before in self._reports.values():
            # NOTE: a report made before the answer that tells of the leave says nothing: a turn may
            # be on its way.
            if before <= since:
                return False
            held = report.holds.get(replica)
            if held is not None and (held.in_flight or held.left or not held.drains):
                return False
        return True

    def report(self, report: Report, now: float) -> Answer:
        """A router tells what it has under way, and is told who is up."""
        heard = self._reports.get(report.router)
        self._reports[report.router] = Heard(report, now, heard.at if heard else -math.inf)
        return self.answer(now)

    def answer(self, now: float) -> Answer:
        """Who is up, by id."""
        self._forget(now)
        replicas = [
            Entry(beat, beat.id in self._leaving)
            for beat, _ in sorted(self._beats.values(), key=lambda pair: pair[0].id)
        ]
        return Answer(replicas, self._model, self._ttft_s, now - self._began >= _SETTLED_S)

    def signals(self, now: float) -> Signals:
        """The load, over all routers that live."""
        self._forget(now)
        reports = [heard.report for heard in self._reports.values()]
        up = [name for name in self._beats if name not in self._leaving]
        held = {name: [r.holds[name] for r in reports if name in r.holds] for name in up}
        turns = sum(r.turns for r in reports)
        return Signals(
            replicas=len(up),
            in_flight=sum(each.in_flight for r in reports for each in r.holds.values()),
            queued=sum(r.queued for r in reports),
            missed=sum(r.missed for r in reports),
            wait_s=max((r.wait_s for r in reports), default=0.0),
            late_share=sum(r.late for r in reports) / turns if turns else 0.0,
            busy=_mean(_busy(each) for each in held.values()),
            kv_fill=_mean(_fill(each) for each in held.values()),
        )

    def _forget(self, now: float) -> None:
        for name in [name for name, (_, at) in self._beats.items() if now - at > _SILENT_S]:
            self.gone(name)
        for name in [name for name, heard in self._reports.items() if now - heard.at > _SILENT_S]:
            del self._reports[name]


def _busy(held: Iterable[Held]) -> float | None:
    held = list(held)
    slots = max((each.slots or 0 for each in held), default=0)
    return sum(each.in_flight for each in held) / slots if slots else None


def _fill(held: Iterable[Held]) -> float | None:
    return max((each.kv_fill for each in held if each.kv_fill is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
