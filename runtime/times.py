"""A histogram without locks, for a router that runs on one thread."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric


class Times:
    """A histogram by replica, or by `label`, mostly of seconds: what a turn adds to is plain
    numbers, which costs less than those of a library for many threads."""

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
