"""The autoscaling policy that Ray Serve's controller calls: `sessile.ray.autoscale` on what the
replicas pass on of the application's load."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from ray.serve.config import AutoscalingContext

from sessile.ray.autoscale import Goals, Trend, decide
from sessile.ray.roll import Signals


class Policy:
    """Made by Ray Serve in its controller from `Goals` as keywords, one a deployment."""

    def __init__(self, **goals: Any) -> None:
        self._goals = msgspec.convert(goals, Goals)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and what is to be remembered until the next call."""
        signals = read(context.aggregated_metrics or {}, context.current_num_replicas)
        asked = context.total_num_requests if not context.current_num_replicas else 0.0
        if asked:
            signals = msgspec.structs.replace(signals, missed=max(1, round(asked)))
        trend = msgspec.convert(context.policy_state.get("trend", {}), Trend)
        now = context.current_time or time.time()
        target, trend = decide(signals, context.target_num_replicas, self._goals, trend, now)
        return target, {"trend": msgspec.to_builtins(trend)}


def figures(signals: Signals) -> dict[str, float]:
    """The load as numbers, as a replica passes it on; each replica tells the whole of it. Ray takes
    numbers only: what is unknown is left out."""
    plain = msgspec.to_builtins(signals)
    return {name: float(value) for name, value in plain.items() if value is not None}


def read(figures: Mapping[str, Mapping[Any, float]], replicas: int) -> Signals:
    """The load from what the replicas passed on, the mean over them; `replicas` are up."""
    means: dict[str, float] = {}
    for name in Signals.__struct_fields__:
        told = list(figures.get(name, {}).values())
        if told:
            means[name] = sum(told) / len(told)
    for name in ("in_flight", "queued", "missed"):
        means[name] = round(means.get(name, 0.0))
    return msgspec.convert({**means, "replicas": replicas}, Signals)
