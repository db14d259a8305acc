"""Experiments in virtual time: every policy on the same loads, over seeds and swept values.

What happens in one run is `sim_world`'s; here is which runs there are, and what they come to.
"""

import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from sessile.errors import SettingsError
from sessile.lab.sim_engine import Hardware
from sessile.lab.sim_load import Arrival, Load, Shape, agent_load, is_trace, trace_load
from sessile.lab.sim_load import trajectory_load as recorded_load
from sessile.lab.sim_routers import ORACLE, SIMULATED
from sessile.lab.sim_score import Outcome, medians
from sessile.lab.sim_world import Fault, World

_MOST_POINTS = 64


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """One site and its load: everything that a run follows from, but for the policy and the seed.

    `kv_share` sets the KV memory of all replicas together as a share of the load's working set,
    in place of `kv_tokens` of each. None of `sessions` is all of a file, or 300.
    """

    trace: str | None = None
    replicas: int = 4
    kv_tokens: int = 120_000
    kv_share: float | None = None
    host_tokens: int = 0
    prefill_rate: float = 20_000.0
    transfer_rate: float = 200_000.0
    decode_ms: float = 8.0
    slots: int = 64
    routers: int = 1
    sessions: int | None = None
    rate: float = 0.4
    arrival: Arrival = "poisson"
    at_once: int | None = None
    fan_out: float = 0.08
    context_tokens: int = 32_000
    speed: float = 1.0
    faults: tuple[Fault, ...] = ()


class Row(msgspec.Struct, frozen=True):
    """What one policy made of one point: the median over the seeds."""

    policy: str
    value: float | None
    setup: Setup
    outcome: Outcome


class Sweep(msgspec.Struct, frozen=True):
    """A field of `Setup` and the values that it takes, one after another."""

    name: str
    values: tuple[float, ...]

    @property
    def more_is_easier(self) -> bool:
        """Whether an objective is met from some value on, and not up to it."""
        return self.name not in _BURDENS


_SWEPT: dict[str, type[int] | type[float]] = {
    "replicas": int, "kv_tokens": int, "kv_share": float, "host_tokens": int,
    "prefill_rate": float, "decode_ms": float, "routers": int, "sessions": int, "rate": float,
    "at_once": int, "fan_out": float, "speed": float,
}  # fmt: skip
_BURDENS = ("decode_ms", "sessions", "rate", "at_once", "fan_out", "speed")
_STEP_OF_ONE = ("replicas", "routers")


def parse_sweep(text: str) -> Sweep:
    """`replicas=2..16`, `kv-share=0.1..1.0:0.3`, `rate=0.5,1,2`. Raises `SettingsError`.

    Without a step, replicas and routers go one by one, everything else in steps of its first value.
    """
    name, _, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in _SWEPT:
        known = ", ".join(known.replace("_", "-") for known in _SWEPT)
        raise SettingsError(f"--sweep {text!r}: only {known} can be swept")
    ranged = re.fullmatch(r"\s*([\d.]+?)\s*\.\.\s*([\d.]+?)\s*(?::\s*([\d.]+)\s*)?", values)
    try:
        if ranged is None:
            found = [float(value) for value in values.split(",")]
        else:
            first, last = float(ranged[1]), float(ranged[2])
            step = float(ranged[3]) if ranged[3] else 1.0 if name in _STEP_OF_ONE else first
            if step <= 0 or last < first:
                raise ValueError
            count = int((last - first) / step + 1e-9) + 1
            if count > _MOST_POINTS:
                raise SettingsError(
                    f"--sweep {text!r} has {count} values, and {_MOST_POINTS} are the most: give a "
                    f"step, as in {text.split(':')[0]}:{(last - first) / 10:g}"
                )
            found = [first + step * number for number in range(count)]
        if any(value <= 0 or value != _SWEPT[name](value) for value in found):
            raise ValueError
    except ValueError:
        kind = "whole numbers above 0" if _SWEPT[name] is int else "numbers above 0"
        raise SettingsError(
            f"--sweep {text!r}: give {kind} as A..B, A..B:STEP or A,B,C, as in replicas=2..16"
        ) from None
    return Sweep(name, tuple(_SWEPT[name](round(value, 9)) for value in found))


def parse_fault(text: str) -> Fault:
    """`replica:1@60`, `router:0@90+30`, `redis@120+10`: what, at which second, for how many."""
    found = re.fullmatch(r"(?:(replica|router):(\d+)|(redis))@(\d+(?:\.\d*)?)(?:\+(\d+\.?\d*))?",
                         text.strip())  # fmt: skip
    if found is None:
        raise SettingsError(
            f"--fault {text!r} is not like replica:1@60, router:0@90+30 or redis@120+10 "
            "(what breaks, at which second, and for how many)"
        )
    return msgspec.convert(
        {
            "kind": found[1] or found[3], "number": int(found[2] or 0), "at": float(found[4]),
            "for_s": float(found[5] or 10.0),
        },
        Fault,
    )  # fmt: skip


def parse_policies(text: str) -> list[str]:
    """Names by comma, or `all`; the oracle stands beside them."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(SIMULATED)
    for name in names:
        if name not in SIMULATED:
            raise SettingsError(f"there is no policy {name!r}; there are {', '.join(SIMULATED)}")
    return [*(name for name in dict.fromkeys(names) if name != ORACLE), ORACLE]


def check(setup: Setup) -> None:
    """Raises `SettingsError` where a run could not be made."""
    if setup.trace is not None and not Path(setup.trace).exists():
        raise SettingsError(f"there is no file {setup.trace}")
    for fault in setup.faults:
        there = {"replica": setup.replicas, "router": setup.routers}.get(fault.kind)
        if there is not None and fault.number >= there:
            raise SettingsError(
                f"--fault {fault.kind}:{fault.number}: there are {there}, counted from 0"
            )


def points(setup: Setup, sweep: Sweep | None) -> list[tuple[float | None, Setup]]:
    """The setups of a sweep, each with its value."""
    if sweep is None:
        return [(None, setup)]
    return [
        (value, msgspec.structs.replace(setup, **{sweep.name: value})) for value in sweep.values
    ]


def load_of(setup: Setup, seed: int) -> Load:
    """What is replayed."""
    if setup.trace is not None:
        path = Path(setup.trace)
        if is_trace(path):
            return _trace(path, setup.speed)
    shape = Shape(
        sessions=setup.sessions or Shape().sessions, rate=setup.rate * setup.speed,
        arrival=setup.arrival, fan_out=setup.fan_out, context_tokens=setup.context_tokens,
    )  # fmt: skip
    return agent_load(shape, seed) if setup.trace is None else recorded_load(path, shape, seed)


@lru_cache(2)
def _trace(path: Path, speed: float) -> Load:
    return trace_load(path, speed)


@lru_cache(8)
def _working_set(setup: Setup, seed: int) -> int:
    return load_of(setup, seed).working_set_tokens()


def run_one(
    setup: Setup, policy: str, seed: int, progress: Callable[[int], None] | None = None
) -> Outcome:
    """One run."""
    load = load_of(setup, seed)
    kv_tokens = setup.kv_tokens
    if setup.kv_share is not None:
        # NOTE: the working set follows from the load alone, so that points share the count.
        bare = msgspec.structs.replace(setup, kv_share=None, replicas=1, routers=1, faults=())
        kv_tokens = int(setup.kv_share * _working_set(bare, seed) / setup.replicas)
    hardware = Hardware(
        kv_tokens=kv_tokens, host_tokens=setup.host_tokens, prefill_rate=setup.prefill_rate,
        transfer_rate=setup.transfer_rate, decode_s=setup.decode_ms / 1000, slots=setup.slots,
    )  # fmt: skip
    world = World(
        policy, load, hardware, setup.replicas, routers=setup.routers, seed=seed,
        faults=setup.faults, at_once=setup.at_once, progress=progress,
    )  # fmt: skip
    return world.run()


def run_all(
    at: Sequence[tuple[float | None, Setup]], policies: Sequence[str], seeds: Sequence[int],
    jobs: int, progress: Callable[[int, int], None],
) -> list[Row]:  # fmt: skip
    """Every policy at every point with every seed; what it says does not depend on `jobs`, which
    is how many processes share the work. `progress` is told sessions done, and of how many."""
    tasks = [
        (setup, policy, seed) for _, setup in at for policy in policies for seed in seeds
    ]  # fmt: skip
    total = sum(load_of(setup, seed).count for setup, _, seed in tasks)
    if jobs == 1 or len(tasks) == 1:
        done = 0

        def advance(sessions: int) -> None:
            nonlocal done
            done += sessions
            progress(done, total)

        outcomes = [run_one(*task, advance) for task in tasks]
    else:
        outcomes = _in_processes(tasks, min(jobs, len(tasks)), lambda n: progress(n, total))
    found = iter(outcomes)
    return [
        Row(policy, value, setup, medians([next(found) for _ in seeds]))
        for value, setup in at
        for policy in policies
    ]


def first_to_meet(rows: Sequence[Row], sweep: Sweep, ttft_p99_s: float) -> dict[str, float | None]:
    """For each policy the smallest swept value from which on its TTFT p99 stays within the
    objective, or of what is a burden the largest; None if there is none."""
    found: dict[str, float | None] = {}
    for policy in dict.fromkeys(row.policy for row in rows):
        found[policy] = None
        points = sorted((row.value or 0.0, row.outcome) for row in rows if row.policy == policy)
        for value, outcome in reversed(points) if sweep.more_is_easier else points:
            if outcome.failed or outcome.ttft_p99_s > ttft_p99_s:
                break
            found[policy] = value
    return found


# -- other processes

_counter: Any = None


def _begin(counter: Any) -> None:
    global _counter
    _counter = counter


def _count(sessions: int) -> None:
    with _counter.get_lock():
        _counter.value += sessions


def _run_task(task: tuple[Setup, str, int]) -> Outcome:
    return run_one(*task, _count)


def _in_processes(
    tasks: Sequence[tuple[Setup, str, int]], jobs: int, progress: Callable[[int], None]
) -> list[Outcome]:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("Q", 0)
    with ProcessPoolExecutor(jobs, context, _begin, (counter,)) as pool:
        running = [pool.submit(_run_task, task) for task in tasks]
        try:
            pending = set(running)
            while pending:
                _, pending = wait(pending, timeout=0.2)
                progress(counter.value)
            return [future.result() for future in running]
        except BaseException:  # Ctrl-C, or a run that failed: the others need not go on
            pool.shutdown(wait=False, cancel_futures=True)
            raise
