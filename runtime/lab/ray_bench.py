"""`python -m sessile.lab.ray_bench`: replicas on Ray Serve come and go, and no turn may fail.

A few agents, then many, then a few again talk through a router to embedded replicas on a local Ray
cluster, whose number follows the load. What counts is that no turn fails, and how much of the
prompts was cached once the first replica had been added.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from sessile.engines.scratch import private_folder
from sessile.engines.supervisor import free_ports
from sessile.errors import ReplicaError
from sessile.lab.bench import Report, Sample, replay, report
from sessile.lab.processes import child
from sessile.lab.ray_cluster import local_ray
from sessile.lab.workload import PlannedSession, generate_trajectories, plan
from sessile.router.connection import Timeouts
from sessile.router.engine import Call
from sessile.router.upstream import Upstream

_UP_S = 60.0
_LOOK_S = 1.0
_TIMEOUTS = Timeouts(connect_s=5.0, first_byte_s=10.0, idle_s=10.0)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """`few` agents at once, `many` for `busy_sessions` of them, then `few` again. Messages are cut
    short: four replicas share the processor of one."""

    most: int = 4
    few: int = 1
    many: int = 8
    busy_sessions: int = 16
    context: int = 2048
    message_chars: int = 200
    max_tokens: int = 8
    think_s: float = 1.0
    down_after_s: float = 10.0
    quiet_s: float = 90.0
    seed: int = 1


class Scaled(msgspec.Struct, kw_only=True):
    """What came of it. `path` is the number of replicas that took turns, each time that it changed,
    with the second; `scaled_hit_rate` is of the later turns since the first one was added."""

    path: list[tuple[float, int]]
    scaled_hit_rate: float | None
    report: Report


@asynccontextmanager
async def routed(source: str, *flags: str) -> AsyncIterator[str]:
    """A router of its own that finds its replicas at `source`; ready when the first one is."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "sessile.cli", "serve", "--discover", f"llamacpp={source}", "--port",
               str(port), *flags]  # fmt: skip
    async with child(command, url, "/ready", _UP_S):
        yield url


async def replicas_up(router: Upstream) -> int:
    """How many replicas of the router take turns."""
    reply = await router.call(Call("GET", "/ready"), _TIMEOUTS.idle_s)
    return int(msgspec.json.decode(reply.body)["replicas"]["ready"])


async def measure(source: str, setup: Setup) -> Scaled:
    """Few, many and few agents, through a router of its own."""
    few, many, last = (_sessions(setup, n) for n in range(3))
    path: list[tuple[float, int]] = []
    began = time.monotonic()
    async with routed(source) as url:
        router = Upstream(url, _TIMEOUTS)
        looking = asyncio.create_task(_look(router, path, began))
        try:
            samples = await _run(url, few, setup, setup.few, began)
            samples += await _run(url, many, setup, setup.many, began)
            async with asyncio.TaskGroup() as group:
                quiet = group.create_task(_run(url, last, setup, setup.few, began))
                group.create_task(_until_one(path, began, setup.quiet_s))
            samples += quiet.result()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await router.aclose()
    grown = next((at for at, count in path if count > path[0][1]), None)
    scaled = [s for s in samples if grown is not None and s.began >= grown and not s.first]
    return Scaled(
        path=path,
        scaled_hit_rate=report("scaled", scaled, 1.0).hit_rate if scaled else None,
        report=report("all", samples, time.monotonic() - began),
    )


def _sessions(setup: Setup, phase: int) -> list[PlannedSession]:
    count = setup.busy_sessions if phase == 1 else 3 * setup.few
    trajectories = [
        (f"phase-{phase}-{name}",
         [{**each, "content": each["content"][: setup.message_chars]} for each in messages])
        for name, messages in generate_trajectories(count, setup.seed + phase)
    ]  # fmt: skip
    return plan(
        trajectories, context_tokens=setup.context, max_tokens=setup.max_tokens, rate=100.0,
        think_s=setup.think_s, seed=setup.seed, salt=f"ray {time.time_ns()}",
    )  # fmt: skip


async def _run(
    url: str, sessions: list[PlannedSession], setup: Setup, at_once: int, began: float
) -> list[Sample]:
    offset = time.monotonic() - began
    samples = await replay(
        [url], "smollm2-135m", sessions, max_tokens=setup.max_tokens, lineage=False, key=None,
        done=lambda: None, at_once=at_once,
    )  # fmt: skip
    for sample in samples:
        sample.began += offset
        sample.ended += offset
    return samples


async def _look(router: Upstream, path: list[tuple[float, int]], began: float) -> None:
    while True:
        with suppress(ReplicaError):  # a busy machine may answer late
            up = await replicas_up(router)
            if not path or path[-1][1] != up:
                path.append((round(time.monotonic() - began, 1), up))
                print(f"{path[-1][0]:6.1f} s: {up} replicas", file=sys.stderr)
        await asyncio.sleep(_LOOK_S)


async def _until_one(path: list[tuple[float, int]], began: float, within_s: float) -> None:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if path and path[-1][1] <= 1:
            return
        await asyncio.sleep(_LOOK_S)


def arguments(setup: Setup, folder: str | None) -> dict[str, object]:
    """Of the application that is measured: quick to scale, for a bench that ends."""
    return {
        "max_replicas": setup.most, "context_tokens": setup.context, "kv_folder": folder,
        "ttft_s": 30.0, "up_after_s": 2.0, "down_after_s": setup.down_after_s, "drain_s": 60.0,
    }  # fmt: skip


def main() -> None:
    """Parse the command line, measure, print JSON."""
    default = Setup()
    parser = argparse.ArgumentParser(prog="python -m sessile.lab.ray_bench", description=__doc__)
    parser.add_argument("--most", type=int, default=default.most, help="replicas")
    parser.add_argument("--many", type=int, default=default.many, help="agents at once")
    parser.add_argument("--sessions", type=int, default=default.busy_sessions, help="of those")
    parser.add_argument("--think", type=float, default=default.think_s, help="mean pause, in s")
    parser.add_argument("--context", type=int, default=default.context)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--apart", action="store_true", help="replicas that share no KV folder")
    given = parser.parse_args()
    setup = Setup(most=given.most, many=given.many, busy_sessions=given.sessions,
                  think_s=given.think, context=given.context, seed=given.seed)  # fmt: skip
    with private_folder() as folder, local_ray(setup.most) as cluster:
        shared = None if given.apart else str(folder)
        source = cluster.deploy("bench", arguments(setup, shared))
        found = asyncio.run(measure(source, setup))
        cluster.delete("bench")
    print(msgspec.json.format(msgspec.json.encode(found)).decode())


if __name__ == "__main__":
    main()
