"""What a drain costs the sessions of a loaded replica: `python -m sessile.lab.drain`.

Agents talk to two embedded replicas, or to those of `--url`; once half of the turns are done, the
replica with the most sessions is asked to drain. What counts is the next turn of each of its
sessions: whether it was served, and how much of its prompt was cached where it went.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from sessile.engines.supervisor import free_ports
from sessile.errors import RouterUnreachable
from sessile.lab.bench import Sample, replay
from sessile.lab.processes import all_ready, child
from sessile.lab.workload import PlannedSession, generate_trajectories, plan
from sessile.router.connection import Timeouts
from sessile.router.engine import Call
from sessile.router.upstream import Upstream

_TIMEOUTS = Timeouts(connect_s=5.0, first_byte_s=60.0, idle_s=60.0)
_LOOK_S = 0.05


class Drained(msgspec.Struct, kw_only=True):
    """One drain. `hit_after` is of the next turn of each of the replica's sessions, `ceiling` what
    it would be with all of each session's last prompt cached, `hit_before` of the later turns there
    before the drain; `drained_s` is how long its running turns took to end."""

    turns: int
    failed: int
    replica: str
    sessions: int
    hit_before: float | None
    hit_after: float | None
    ceiling: float | None
    ttft_before_s: float | None
    ttft_after_s: float | None
    drained_s: float
    moves: dict[str, int]


async def measure(url: str, sessions: Sequence[PlannedSession], max_tokens: int) -> Drained:
    """Run the sessions and drain a replica at half time. Raises `RouterUnreachable`."""
    router = Upstream(url, _TIMEOUTS)
    half = sum(len(session.turns) for session in sessions) // 2
    turns = 0
    reached = asyncio.Event()

    def done() -> None:
        nonlocal turns
        turns += 1
        if turns == half:
            reached.set()

    async def drain() -> tuple[str, float, float]:
        await reached.wait()
        replicas = (await _get(router, "/sessile/v1/replicas"))["replicas"]
        name = max(replicas, key=lambda replica: replica["sessions"])["id"]
        at = time.monotonic()
        await router.call(Call("POST", f"/sessile/v1/replicas/{name}/drain"), 10.0)
        while True:
            replicas = (await _get(router, "/sessile/v1/replicas"))["replicas"]
            if not next(replica for replica in replicas if replica["id"] == name)["in_flight"]:
                return name, at, time.monotonic() - at
            await asyncio.sleep(_LOOK_S)

    try:
        model = (await _get(router, "/v1/models"))["data"][0]["id"]
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            draining = group.create_task(drain())
            running = group.create_task(
                replay([url], model, sessions, max_tokens=max_tokens, lineage=False, key=None,
                       done=done)
            )  # fmt: skip
        name, at, drained_s = draining.result()
        moves = (await _get(router, "/sessile/v1/policy"))["moves"]
    finally:
        await router.aclose()
    return _sum_up(running.result(), name, at - began, drained_s, moves)


def _sum_up(
    samples: Sequence[Sample], name: str, at_s: float, drained_s: float, moves: dict[str, int]
) -> Drained:
    last: dict[str, Sample] = {}
    following: dict[str, Sample] = {}
    for sample in samples:  # in the order in which they were sent
        if sample.began < at_s:
            last[sample.session] = sample
        else:
            following.setdefault(sample.session, sample)
    left = [s for s in last.values() if s.replica == name and s.session in following]
    moved = [following[sample.session] for sample in left]
    total = sum(sample.prompt_tokens for sample in moved)
    before = [s for s in samples if s.began < at_s and s.replica == name and not s.first]
    return Drained(
        turns=len(samples),
        failed=sum(sample.error is not None for sample in samples),
        replica=name,
        sessions=len(moved),
        hit_before=_hit_rate(before),
        hit_after=_hit_rate(moved),
        ceiling=sum(sample.prompt_tokens for sample in left) / total if total else None,
        ttft_before_s=_median([s.ttft_s for s in before]),
        ttft_after_s=_median([s.ttft_s for s in moved]),
        drained_s=drained_s,
        moves=moves,
    )


def _hit_rate(samples: Sequence[Sample]) -> float | None:
    told = [sample for sample in samples if sample.cached_tokens is not None]
    total = sum(sample.prompt_tokens for sample in told)
    return sum(sample.cached_tokens or 0 for sample in told) / total if total else None


def _median(times: Sequence[float | None]) -> float | None:
    known = sorted(each for each in times if each is not None)
    return known[len(known) // 2] if known else None


async def _get(router: Upstream, path: str) -> Any:
    reply = await router.call(Call("GET", path), 30.0)
    if reply.status != 200:
        raise RouterUnreachable(f"{router.url}{path} answered {reply.status}")
    return msgspec.json.decode(reply.body)


@asynccontextmanager
async def _router(url: str | None, policy: str) -> AsyncIterator[str]:
    if url is not None:
        yield url.rstrip("/")
        return
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "sessile.cli", "up", "--policy", policy, "--port", str(port)]
    async with child(command, url, "/ready", 180.0):
        await all_ready(url, 120.0)
        yield url


async def _main(given: argparse.Namespace) -> Drained:
    sessions = plan(
        generate_trajectories(given.sessions, given.seed), context_tokens=given.context,
        max_tokens=given.max_tokens, rate=given.rate, think_s=given.think, seed=given.seed,
        salt=f"drain {time.time_ns()}",
    )  # fmt: skip
    async with _router(given.url, given.policy) as url:
        return await measure(url, sessions, given.max_tokens)


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(prog="python -m sessile.lab.drain", description=__doc__)
    parser.add_argument("--url", help="a running router, whose replica is left draining")
    parser.add_argument("--policy", default="session")
    parser.add_argument("--sessions", type=int, default=6)
    parser.add_argument("--rate", type=float, default=0.3, help="sessions that start a second")
    parser.add_argument("--think", type=float, default=2.0, help="mean pause before a turn, in s")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    found = asyncio.run(_main(parser.parse_args()))
    print(msgspec.json.format(msgspec.json.encode(found)).decode())


if __name__ == "__main__":
    main()
