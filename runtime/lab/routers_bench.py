"""`python -m sessile.lab.routers_bench`: whether many routers route as one.

The same agent sessions, a turn at each router about, go through 1, 3 and 5 router processes on one
Redis, to replicas that model a KV cache (`timed_replica`); then once more through as many as the
last, with Redis killed and, after a while, started again empty. Everything but the replicas' work
is real.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
from rich.console import Console
from rich.table import Table

from sessile.engines.supervisor import free_ports
from sessile.lab.bench import Sample, replay, report
from sessile.lab.processes import RedisProcess, all_ready, child, own_redis
from sessile.lab.sim_engine import Hardware
from sessile.lab.timed_replica import MODEL
from sessile.lab.workload import PlannedSession, generate_trajectories, plan

_MAX_TOKENS = 32
_UP_S = 30.0


class Row(msgspec.Struct):
    """One pass. `moves` are turns that came to another replica than their session's last;
    `redis_away_s` is how long Redis was gone, in the middle."""

    routers: int
    redis_away_s: float
    turns: int
    errors: int
    hit_rate: float | None
    ceiling: float
    ttft_p50: float | None
    ttft_p99: float | None
    moves: int
    wall_s: float
    first_error: str | None


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What all passes share: sessions a second, mean pause before a turn, seconds without Redis."""

    sessions: int = 120
    rate: float = 3.0
    think_s: float = 2.0
    seed: int = 1
    replicas: int = 4
    away_s: float = 5.0
    policy: str = "session"
    hardware: Hardware = Hardware(kv_tokens=80_000, prefill_rate=6_000.0)


async def measure(routers: int, setup: Setup, *, kill: bool = False) -> Row:
    """One pass with so many routers, all of its processes new."""
    sessions = plan(
        generate_trajectories(setup.sessions, setup.seed), context_tokens=32_768,
        max_tokens=_MAX_TOKENS, rate=setup.rate, think_s=setup.think_s, seed=setup.seed,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(own_redis())
        replicas = await stack.enter_async_context(_replicas(setup))
        named = [part for url in replicas for part in ("--replica", f"sglang={url}")]
        urls = [f"http://127.0.0.1:{port}" for port in free_ports(routers)]
        for url in urls:
            command = ["-m", "sessile.cli", "serve", *named, "--redis", redis.url,
                       "--policy", setup.policy, "--port", url.rpartition(":")[2]]  # fmt: skip
            await stack.enter_async_context(child(command, url, "/ready", _UP_S))
        for url in urls:
            await all_ready(url, _UP_S)
        breaking = asyncio.create_task(_break(redis, sessions, setup.away_s)) if kill else None
        began = time.monotonic()
        samples = await replay(
            urls, MODEL, sessions, max_tokens=_MAX_TOKENS, lineage=False, key=None,
            done=lambda: None,
        )  # fmt: skip
        wall_s = time.monotonic() - began
        if breaking is not None:
            await breaking
    found = report(f"{routers}", samples, wall_s)
    return Row(
        routers=routers, redis_away_s=setup.away_s if kill else 0.0, turns=found.turns,
        errors=found.errors, hit_rate=found.hit_rate, ceiling=found.ceiling,
        ttft_p50=found.ttft_p50, ttft_p99=found.ttft_p99, moves=moves(samples),
        wall_s=wall_s,
        first_error=found.first_error,
    )  # fmt: skip


def moves(samples: Sequence[Sample]) -> int:
    """Turns that came to another replica than the one before of their session."""
    at: dict[str, str | None] = {}
    found = 0
    for sample in sorted(samples, key=lambda sample: sample.began):
        found += at.get(sample.session, sample.replica) != sample.replica
        at[sample.session] = sample.replica
    return found


@asynccontextmanager
async def _replicas(setup: Setup) -> AsyncIterator[list[str]]:
    ports = free_ports(setup.replicas)
    hardware = msgspec.json.encode(setup.hardware).decode()
    command = ["-m", "sessile.lab.timed_replica", hardware, *map(str, ports)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    async with child(command, urls[-1], "/ready", _UP_S):
        yield urls


async def _break(redis: RedisProcess, sessions: Sequence[PlannedSession], away_s: float) -> None:
    """Kill it when half of the sessions have come, and bring it back."""
    await asyncio.sleep(sessions[len(sessions) // 2].start_s)
    await redis.kill()
    await asyncio.sleep(away_s)
    await redis.start()


async def compare(counts: Sequence[int], setup: Setup) -> list[Row]:
    """A pass for each number of routers, then the last once more with Redis killed."""
    console = Console(stderr=True)
    rows = []
    for routers, kill in [*((n, False) for n in counts), (counts[-1], True)]:
        console.print(f"{routers} routers{', Redis killed in the middle' if kill else ''} ...")
        rows.append(await measure(routers, setup, kill=kill))
        console.print(table(rows[-1:]))
    return rows


def table(rows: Sequence[Row]) -> Table:
    """For people."""
    shown = Table(header_style="bold")
    for name in ("routers", "Redis away, s", "turns (errors)", "hit rate", "of a ceiling of",
                 "TTFT p50, s", "TTFT p99, s", "moves", "wall, s"):  # fmt: skip
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            str(row.routers), f"{row.redis_away_s:.0f}", f"{row.turns} ({row.errors})",
            *("-" if value is None else f"{value:.3f}"
              for value in (row.hit_rate, row.ceiling, row.ttft_p50, row.ttft_p99)),
            str(row.moves), f"{row.wall_s:.0f}",
        )  # fmt: skip
    return shown


def main() -> None:
    """The command; its defaults are those of `Setup`."""
    default = Setup()
    parser = argparse.ArgumentParser(prog="python -m sessile.lab.routers_bench")
    parser.add_argument("--routers", default="1,3,5", help="how many, by comma")
    parser.add_argument("--sessions", type=int, default=default.sessions)
    parser.add_argument("--rate", type=float, default=default.rate, help="sessions a second")
    parser.add_argument("--think", type=float, default=default.think_s, help="mean pause, in s")
    parser.add_argument("--away", type=float, default=default.away_s, help="s without Redis")
    parser.add_argument("--kv-tokens", type=int, default=default.hardware.kv_tokens)
    parser.add_argument("--policy", default=default.policy)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    setup = Setup(
        sessions=given.sessions, rate=given.rate, think_s=given.think, seed=given.seed,
        away_s=given.away, policy=given.policy,
        hardware=msgspec.structs.replace(default.hardware, kv_tokens=given.kv_tokens),
    )  # fmt: skip
    rows = asyncio.run(compare([int(n) for n in given.routers.split(",")], setup))
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n")
    else:
        Console().print(table(rows))


if __name__ == "__main__":
    main()
