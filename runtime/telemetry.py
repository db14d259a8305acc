"""What an operator sees: Prometheus metrics, and one log line a turn; nothing is decided here."""

import asyncio
import json
import logging
import sys
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from statistics import median
from typing import ClassVar, TextIO

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sessile.discovery.follow import Discovery
from sessile.router.figures import ByVariant, Figures
from sessile.router.pool import Pool
from sessile.sessions.record import Receipt
from sessile.sessions.store import Assignment, Store

log = logging.getLogger("sessile.turn")

_MOMENT_S = 0.05
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ERROR = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1, 2, 5)
_ACCEPTED = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 12, 16)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Telemetry:
    """The metrics of one router, in a registry of their own. Made by `app`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ttft_s = Times("sessile_ttft_seconds", "Time to the first byte of the answer", _TTFT_S)
        self.tpot_s = Times(
            "sessile_tpot_seconds", "Time per generated token after the first", _TPOT_S
        )
        self.queue_s = Times(
            "sessile_queue_seconds", "Time in the router's queue, of the turns that waited", _TTFT_S
        )
        self.ttft_error = Times(
            "sessile_ttft_error_ratio", "How far a first token was from when it was foreseen, as a"
            " share of the time it took", _ERROR,
        )  # fmt: skip
        self.acceptance = Times(
            "sessile_acceptance_length", "Tokens a decoding step, of the turns at replicas that"
            " speculate and tell", _ACCEPTED,
        )  # fmt: skip
        self._errors: deque[float] = deque(maxlen=1000)
        self._first: deque[tuple[float, str, float]] = deque(maxlen=1000)
        self.decisions: Counter[tuple[str, str]] = Counter()
        self.turns: Counter[tuple[str, str]] = Counter()
        self.moves: Counter[tuple[str, str]] = Counter()
        self.continued: Counter[str] = Counter()
        self.variants: defaultdict[str, ByVariant] = defaultdict(dict)
        """By served name that has a release, as long as that is one and the same."""
        self.variant_ttft_s = Times(
            "sessile_variant_ttft_seconds", "Time to the first byte, of names that have a release",
            _TTFT_S, "variant",
        )  # fmt: skip
        self._ended: list[Receipt] = []

    def watch(
        self, pool: Pool, store: Store, queued: Callable[[], int], discovery: Discovery
    ) -> None:
        """Read what the pool, the store, the queue and the sources are at each scrape."""
        self.registry.register(_State(self, pool, store, queued, discovery))

    def decided(self, policy: str, reason: str) -> None:
        """A turn was sent, or sent again, to a replica."""
        self.decisions[policy, reason] += 1

    def assigned(self, served: str, found: Assignment) -> None:
        """A session of a name that has a release was found its variant."""
        if found.new or found.left is not None:
            figures = self.variants[served].setdefault(found.variant, Figures())
            figures.sessions += found.new
            figures.swapped += found.left is not None

    def finished(self, receipt: Receipt) -> None:
        """A turn has ended, one way or another: it is to be counted, and told of in one line. Those
        of a moment are, together: that costs half as much."""
        self._ended.append(receipt)
        if len(self._ended) == 1:
            _soon(self.flush)

    def flush(self) -> None:
        """Count and tell of all that have ended."""
        ended, self._ended = self._ended, []
        for receipt in ended:
            self._count(receipt)

    def _count(self, receipt: Receipt) -> None:
        replica = receipt.replica
        self.turns[receipt.model, receipt.outcome] += 1
        if receipt.continued:
            self.continued[receipt.model] += receipt.continued
        if replica is not None and receipt.ttft_s is not None:
            self.ttft_s.observe(replica, receipt.ttft_s)
            self._first.append((time.monotonic(), replica, receipt.ttft_s))
        if receipt.variant is not None:
            self.variants[receipt.model].setdefault(receipt.variant, Figures()).count(receipt)
            if receipt.ttft_s is not None:
                self.variant_ttft_s.observe(receipt.variant, receipt.ttft_s)
        if replica is not None and receipt.tpot_s is not None:
            self.tpot_s.observe(replica, receipt.tpot_s)
        if replica is not None and receipt.acceptance_length is not None:
            self.acceptance.observe(replica, receipt.acceptance_length)
        if replica is not None and receipt.queue_s:
            self.queue_s.observe(replica, receipt.queue_s)
        if receipt.predicted_ttft_s is not None and receipt.replica_ttft_s and replica is not None:
            off_s = abs(receipt.predicted_ttft_s - receipt.replica_ttft_s)
            self.ttft_error.observe(replica, off_s / receipt.replica_ttft_s)
            self._errors.append(off_s / receipt.replica_ttft_s)
        if log.isEnabledFor(logging.INFO):
            log.handle(_Ended(receipt))

    @property
    def ttft_error_p50(self) -> float | None:
        """The median of that error over the last thousand turns that were foreseen."""
        self.flush()
        return median(self._errors) if self._errors else None

    def first_tokens(self, within_s: float) -> list[tuple[str, float]]:
        """Replica and time to the first token of the turns that ended so shortly ago, of the last
        thousand."""
        self.flush()
        since = time.monotonic() - within_s
        return [(replica, seconds) for at, replica, seconds in self._first if at >= since]

    def scrape(self) -> bytes:
        """The metrics in Prometheus' text form."""
        self.flush()
        return generate_latest(self.registry)


class Times:
    """A histogram by replica, or by `label`, mostly of seconds: what a turn adds to is plain
    numbers, without the locks that a library for many threads needs."""

    def __init__(
        self, name: str, documentation: str, bounds: Sequence[float], label: str = "replica"
    ) -> None:
        self._name = name
        self._label = label
        self._documentation = documentation
        self._bounds = bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: defaultdict[str, float] = defaultdict(float)

    def observe(self, replica: str, seconds: float) -> None:
        """Count one time."""
        counts = self._counts.get(replica)
        if counts is None:
            counts = self._counts[replica] = [0] * (len(self._bounds) + 1)
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[replica] += seconds

    def collect(self) -> Metric:
        """The metric as Prometheus counts: each bucket holds those below it too."""
        metric = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for replica, counts in self._counts.items():
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            metric.add_metric([replica], buckets, self._sums[replica])
        return metric


class _State(Collector):
    """What is read from the living objects at a scrape, so that a turn only adds up integers."""

    def __init__(
        self, telemetry: Telemetry, pool: Pool, store: Store, queued: Callable[[], int],
        discovery: Discovery,
    ) -> None:  # fmt: skip
        self._telemetry = telemetry
        self._pool = pool
        self._store = store
        self._queued = queued
        self._discovery = discovery

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        return [
            *self._counted(), *self._by_replica(), *self._of_the_store(), self._of_the_sources()
        ]  # fmt: skip

    def _counted(self) -> list[Metric]:
        turns = CounterMetricFamily(
            "sessile_turns", "Turns by outcome", labels=["model", "outcome"]
        )
        for labels, count in self._telemetry.turns.items():
            turns.add_metric(labels, count)
        decisions = CounterMetricFamily(
            "sessile_decisions", "Routing decisions", labels=["policy", "reason"]
        )
        for labels, count in self._telemetry.decisions.items():
            decisions.add_metric(labels, count)
        moves = CounterMetricFamily(
            "sessile_moves", "Sessions moved while they paused", labels=["reason", "outcome"]
        )
        for labels, count in self._telemetry.moves.items():
            moves.add_metric(labels, count)
        continued = CounterMetricFamily(
            "sessile_continued", "Answers that went on at another replica", labels=["model"]
        )
        for model, count in self._telemetry.continued.items():
            continued.add_metric([model], count)
        return [
            turns,
            decisions,
            moves,
            continued,
            self._telemetry.ttft_s.collect(),
            self._telemetry.tpot_s.collect(),
            self._telemetry.queue_s.collect(),
            self._telemetry.ttft_error.collect(),
            self._telemetry.acceptance.collect(),
            self._telemetry.variant_ttft_s.collect(),
            *self._of_the_variants(),
            self._of_the_queue(),
        ]

    def _of_the_variants(self) -> list[Metric]:
        by = ["model", "variant"]
        weights = GaugeMetricFamily(
            "sessile_variant_weight", "Percentage of the new sessions that it takes", labels=by
        )
        now = time.time()
        for release in self._pool.releases:
            for variant in release.at(now):
                weights.add_metric([release.served, variant.name], variant.weight)
        counts = [
            ("sessions", "New sessions of a variant"),
            ("swapped", "Sessions that were moved to it from another"),
            ("turns", "Turns of a variant"),
            ("errors", "Turns of it that failed"),
        ]
        families: list[Metric] = [weights]
        for what, words in counts:
            family = CounterMetricFamily(f"sessile_variant_{what}", words, labels=by)
            for served, variants in self._telemetry.variants.items():
                for name, figures in variants.items():
                    family.add_metric([served, name], getattr(figures, what))
            families.append(family)
        return families

    def _of_the_queue(self) -> Metric:
        queued = GaugeMetricFamily("sessile_queued_turns", "Turns that wait for KV memory now")
        queued.add_metric([], self._queued())
        return queued

    def _by_replica(self) -> list[Metric]:
        one = ["replica"]
        prompt = CounterMetricFamily("sessile_prompt_tokens", "Prompt tokens", labels=one)
        completion = CounterMetricFamily(
            "sessile_completion_tokens", "Generated tokens", labels=one
        )
        cached = CounterMetricFamily(
            "sessile_cached_tokens",
            "Prompt tokens found in the KV cache: reported (actual), expected (predicted)",
            labels=["replica", "kind"],
        )
        in_flight = GaugeMetricFamily(
            "sessile_in_flight", "Turns of this router at the replica", labels=one
        )
        ready = GaugeMetricFamily(
            "sessile_replica_ready", "1 if the replica takes turns", labels=["replica", "state"]
        )
        streams = GaugeMetricFamily(
            "sessile_upstream_streams", "Open answers of the replica", labels=one
        )
        ghosts = CounterMetricFamily(
            "sessile_ghosts",
            "Requests that the replica ran for no one: found, and of those told to stop",
            labels=["replica", "kind"],
        )
        for replica in self._pool:
            ghosts.add_metric([replica.id, "found"], replica.ghosts.found)
            ghosts.add_metric([replica.id, "aborted"], replica.ghosts.aborted)
            prompt.add_metric([replica.id], replica.prompt_tokens)
            completion.add_metric([replica.id], replica.completion_tokens)
            cached.add_metric([replica.id, "actual"], replica.cached_tokens)
            cached.add_metric([replica.id, "predicted"], replica.predicted_tokens)
            in_flight.add_metric([replica.id], replica.in_flight)
            ready.add_metric([replica.id, replica.state], replica.state == "ready")
            streams.add_metric([replica.id], replica.upstream.streams)
        return [prompt, completion, cached, in_flight, ready, streams, ghosts]

    def _of_the_store(self) -> list[Metric]:
        available = GaugeMetricFamily("sessile_store_available", "1 if the session store answers")
        available.add_metric([], self._store.available)
        lost = GaugeMetricFamily("sessile_store_lost_writes", "Turn ends that were not written")
        lost.add_metric([], self._store.lost_writes)
        return [available, lost]

    def _of_the_sources(self) -> Metric:
        available = GaugeMetricFamily(
            "sessile_source_available", "1 if the source of replicas can be read", labels=["source"]
        )
        for each in self._discovery.followed:
            available.add_metric([each.name], each.why is None)
        return available


def _soon(do: Callable[[], None]) -> None:
    """Do it in a moment, or now where no loop runs."""
    try:
        asyncio.get_running_loop().call_later(_MOMENT_S, do)
    except RuntimeError:
        do()


def _short(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.4f}"


class _Ended(logging.LogRecord):
    """A turn's line, made from a record that is made once: that costs a third of a new one."""

    _plain: ClassVar = vars(
        logging.makeLogRecord({"name": log.name, "levelno": logging.INFO, "levelname": "INFO"})
    )

    def __init__(self, receipt: Receipt) -> None:
        vars(self).update(self._plain)
        self._receipt = receipt
        self.created = created = time.time()
        self.msecs = created % 1 * 1000.0

    def getMessage(self) -> str:
        receipt = self._receipt
        return (
            f"turn ended session={receipt.session} turn={receipt.turn} replica={receipt.replica} "
            f"reason={receipt.reason} outcome={receipt.outcome} status={receipt.status} "
            f"prompt_tokens={receipt.prompt_tokens} cached_tokens={receipt.cached_tokens} "
            f"completion_tokens={receipt.completion_tokens} queue_s={_short(receipt.queue_s)} "
            f"ttft_s={_short(receipt.ttft_s)} duration_s={_short(receipt.duration_s)}"
        )


class _Handler(logging.StreamHandler[TextIO]):
    """Makes and writes the lines of a moment together, which costs far less than one by one, and
    warnings at once."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)
        if record.levelno >= logging.WARNING:
            self.flush()
        elif len(self._records) == 1:
            _soon(self.flush)

    def flush(self) -> None:
        with self.lock or nullcontext():
            records, self._records = self._records, []
            lines = []
            for record in records:
                try:
                    lines.append(self.format(record) + "\n")
                except Exception:  # a line that cannot be made never fails what it tells of
                    self.handleError(record)
            try:
                self.stream.write("".join(lines))
                self.stream.flush()
            except Exception:  # nor does one that cannot be written
                if records:
                    self.handleError(records[-1])


class _ConsoleFormatter(logging.Formatter):
    """One line for people; the time of day is put together once a second."""

    _second = -1
    _shown = ""

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info or record.stack_info:
            return super().format(record)
        shown = self.formatTime(record, self.datefmt)
        return f"{shown} {record.levelname:<7} {record.name} {record.getMessage()}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._shown = second, super().formatTime(record, datefmt)
        return self._shown


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; `key=value` pairs stay in `message`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logs(format_: str, level: str) -> None:
    """Write the log of `sessile` and of the server to standard error, as `format_` says."""
    # A record's thread, process and caller are never shown; finding them costs 5 us a line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = _Handler(sys.stderr)
    if format_ == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(
            _ConsoleFormatter("%(asctime)s %(levelname)-7s %(name)s %(message)s", "%H:%M:%S")
        )
    for name in ("sessile", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper() if name == "sessile" else logging.WARNING)
