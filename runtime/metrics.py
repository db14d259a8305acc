"""The metrics as Prometheus reads them."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sessile.discovery.follow import Discovery
from sessile.router.pool import Pool
from sessile.sessions.store import Store
from sessile.telemetry import Telemetry


class Metrics(Collector):
    """All that one router shows, in a registry of its own. Made by `app`; what is known elsewhere
    is read there at a scrape, so that a turn only adds up integers."""

    def __init__(
        self, telemetry: Telemetry, pool: Pool, store: Store, queued: Callable[[], int],
        discovery: Discovery,
    ) -> None:  # fmt: skip
        self._telemetry = telemetry
        self._pool = pool
        self._store = store
        self._queued = queued
        self._discovery = discovery
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def scrape(self) -> bytes:
        """The metrics in Prometheus' text form."""
        self._telemetry.flush()
        return generate_latest(self._registry)

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
