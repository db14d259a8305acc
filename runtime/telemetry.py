"""What an operator sees: Prometheus metrics, and one log line a turn; nothing is decided here."""

import json
import logging
import sys
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sessile.router.pool import Pool
from sessile.sessions.record import Receipt
from sessile.sessions.store import Store

log = logging.getLogger("sessile.turn")

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Telemetry:
    """The metrics of one router, in a registry of their own. Made by `app`."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._turns = Counter(
            "sessile_turns", "Turns by outcome", ("model", "outcome"), registry=registry
        )
        self._decisions = Counter(
            "sessile_decisions", "Routing decisions", ("policy", "reason"), registry=registry
        )
        self._prompt = Counter(
            "sessile_prompt_tokens", "Prompt tokens", ("replica",), registry=registry
        )
        self._cached = Counter(
            "sessile_cached_tokens", "Prompt tokens found in the KV cache, as the engine reported "
            "(actual) and as the router expected (predicted)", ("replica", "kind"),
            registry=registry,
        )  # fmt: skip
        self._completion = Counter(
            "sessile_completion_tokens", "Generated tokens", ("replica",), registry=registry
        )
        self._ttft = Histogram(
            "sessile_ttft_seconds", "Time to the first byte of the answer", ("replica",),
            buckets=_TTFT_S, registry=registry,
        )  # fmt: skip
        self._tpot = Histogram(
            "sessile_tpot_seconds", "Time per generated token after the first", ("replica",),
            buckets=_TPOT_S, registry=registry,
        )  # fmt: skip
        self._children: dict[tuple[object, ...], Any] = {}
        self.reasons: dict[str, int] = {}

    def watch(self, pool: Pool, store: Store) -> None:
        """Read what the pool and the store are at each scrape."""
        self.registry.register(_State(pool, store))

    def decided(self, policy: str, reason: str) -> None:
        """A turn was sent, or sent again, to a replica."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        self._child(self._decisions, policy, reason).inc()

    def finished(self, receipt: Receipt) -> None:
        """A turn has ended, one way or another: count it, and say so in one line."""
        replica = receipt.replica
        self._child(self._turns, receipt.model, receipt.outcome).inc()
        if replica is not None:
            if receipt.ttft_s is not None:
                self._child(self._ttft, replica).observe(receipt.ttft_s)
            if receipt.tpot_s is not None:
                self._child(self._tpot, replica).observe(receipt.tpot_s)
            if receipt.prompt_tokens is not None:
                self._child(self._prompt, replica).inc(receipt.prompt_tokens)
            if receipt.completion_tokens is not None:
                self._child(self._completion, replica).inc(receipt.completion_tokens)
            if receipt.cached_tokens is not None:
                self._child(self._cached, replica, "actual").inc(receipt.cached_tokens)
            if receipt.predicted_cached_tokens is not None:
                predicted = receipt.predicted_cached_tokens
                self._child(self._cached, replica, "predicted").inc(predicted)
        if log.isEnabledFor(logging.INFO):
            log.info(
                "turn ended session=%s turn=%s replica=%s reason=%s outcome=%s status=%s "
                "prompt_tokens=%s cached_tokens=%s completion_tokens=%s ttft_s=%s duration_s=%s",
                receipt.session, receipt.turn, replica, receipt.reason, receipt.outcome,
                receipt.status, receipt.prompt_tokens, receipt.cached_tokens,
                receipt.completion_tokens, _short(receipt.ttft_s), _short(receipt.duration_s),
            )  # fmt: skip

    def scrape(self) -> bytes:
        """The metrics in Prometheus' text form."""
        return generate_latest(self.registry)

    def _child(self, metric: Any, *labels: str) -> Any:
        """`metric.labels` takes locks and builds tuples; a turn uses the same few each time."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


class _State(Collector):
    """Gauges read from the living objects, so that nothing has to keep them up to date."""

    def __init__(self, pool: Pool, store: Store) -> None:
        self._pool = pool
        self._store = store

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        in_flight = GaugeMetricFamily(
            "sessile_in_flight", "Turns of this router at the replica", labels=["replica"]
        )
        up = GaugeMetricFamily(
            "sessile_replica_ready", "1 if the replica takes new turns", labels=["replica", "state"]
        )
        streams = GaugeMetricFamily(
            "sessile_upstream_streams", "Open answers of the replica", labels=["replica"]
        )
        for replica in self._pool:
            in_flight.add_metric([replica.id], replica.in_flight)
            up.add_metric([replica.id, replica.state], replica.state == "ready")
            streams.add_metric([replica.id], replica.upstream.streams)
        store = GaugeMetricFamily("sessile_store_available", "1 if the session store answers")
        store.add_metric([], self._store.available)
        lost = GaugeMetricFamily("sessile_store_lost_writes", "Turn ends that were not written")
        lost.add_metric([], self._store.lost_writes)
        return [in_flight, up, streams, store, lost]


def _short(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.4f}"


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
    handler = logging.StreamHandler(sys.stderr)
    if format_ == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s", "%H:%M:%S")
        )
    for name in ("sessile", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper() if name == "sessile" else logging.WARNING)
