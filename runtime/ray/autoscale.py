"""How many replicas there are to be, from what the routers tell. Pure: no clock, and no Ray.

Replicas are added where turns wait, first tokens are late, slots are taken or KV memory is full,
and only once that has lasted: a burst that the present replicas get through is over before another
is up. One at a time is taken away, where those that stay would be well below what adds one, since
each that goes costs its sessions their cache.
"""

import math

import msgspec

from sessile.ray.roll import Signals

_SLACK = 0.8  # of the goal: what those that stay may come to when one goes


class Goals(msgspec.Struct, frozen=True, kw_only=True):
    """What is aimed at, and how long it must be missed before something is done, in seconds."""

    least: int = 1
    most: int = 1
    wait_s: float = 1.0
    ttft_s: float = 5.0
    late_share: float = 0.1
    busy: float = 0.8
    kv_fill: float = 0.9
    up_after_s: float = 5.0
    down_after_s: float = 120.0
    zero_after_s: float = 600.0


class Trend(msgspec.Struct, frozen=True):
    """Since when more, or fewer, have been wanted; None where they are not."""

    more_since: float | None = None
    fewer_since: float | None = None


def decide(
    signals: Signals, target: int, goals: Goals, trend: Trend, now: float
) -> tuple[int, Trend]:
    """How many replicas to aim at now, where `target` were aimed at so far, in this order:

    1. what was set: never under `least`, nor over `most`
    2. none are there, and somebody asks: one, at once
    3. the load asks for more, but fewer are up than aimed at: wait for them
    4. it asks for more, and has for `up_after_s`: as many as it takes, at most twice as many
    5. it would be borne by one less, and has been for `down_after_s`: one less
    6. the last one has been idle for `zero_after_s`: none
    """
    bounded = min(max(target, goals.least), goals.most)
    if bounded != target:
        return bounded, Trend()
    if not target:
        asked = signals.missed or signals.queued or signals.in_flight
        return min(1, goals.most) if asked else 0, Trend()
    needed = _needed(signals, goals)
    if needed > target and target < goals.most:
        if signals.replicas < target:
            return target, Trend()
        since = now if trend.more_since is None else trend.more_since
        if now - since < goals.up_after_s:
            return target, Trend(more_since=since)
        return min(needed, 2 * target, goals.most), Trend()
    if target > goals.least and _would_do(signals, goals, target):
        since = now if trend.fewer_since is None else trend.fewer_since
        hold_s = goals.down_after_s if target > 1 else goals.zero_after_s
        if now - since < hold_s:
            return target, Trend(fewer_since=since)
        return target - 1, Trend()
    return target, Trend()


def _strain(signals: Signals, goals: Goals) -> float:
    """The load as a multiple of the goal, of what grows with it: slots taken, memory needed."""
    busy = (signals.busy or 0.0) / goals.busy
    return max(busy, (signals.kv_fill or 0.0) / goals.kv_fill)


def _needed(signals: Signals, goals: Goals) -> int:
    replicas = signals.replicas
    needed = math.ceil(replicas * _strain(signals, goals) - 1e-9)
    if signals.wait_s > goals.wait_s or signals.late_share > goals.late_share:
        needed = max(needed, replicas + 1)
    return needed


def _would_do(signals: Signals, goals: Goals, target: int) -> bool:
    """Whether one less would do."""
    if signals.queued or signals.missed or signals.late_share > goals.late_share:
        return False
    if target == 1:
        return not signals.in_flight
    return signals.wait_s <= goals.wait_s and (
        _strain(signals, goals) * signals.replicas / (target - 1) <= _SLACK
    )
