"""`python -m sessile.lab.chaos`: whether streams lose anything when something dies.

Two routers, two replicas and a Redis, each a process of its own; 200 turns each while clients hang
up at random, while a router is killed every 2 s, a replica every 5 s, while Redis stands still and
is killed. What is killed is started again at once. The replicas are deterministic, so that every
token that a client is told can be checked. Ends with 1 if anything was wrong.
"""

import argparse
import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from random import Random
from typing import Any

import httpx2
import msgspec
from redis.asyncio import Redis
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sessile.engines.guard import guarded
from sessile.engines.supervisor import free_ports
from sessile.errors import RouterUnreachable
from sessile.lab.bench import quantile
from sessile.lab.chaos_client import Client, Told
from sessile.lab.processes import RedisProcess, own_redis

_UP_S = 30.0
_LEFT_S = 10.0
_AT_ONCE = 12
_WORDS = 60
_PAUSE_S = 0.03  # between two tokens
_HANGS_UP = 0.5  # of all connections
_ROUTERS_S = 2.0
_REPLICAS_S = 5.0
_REDIS_S = 3.0
_WELL = "response.completed"
_KINDS = ("clients", "routers", "replicas", "redis")


class Row(msgspec.Struct):
    """What came of the turns under one kind of fault. `left` are requests that replicas still ran
    at the end, `lasting` keys without an expiry. `replay` and `resume` say how long those who came
    back waited for the first event that they knew, and that they did not know."""

    fault: str
    turns: int
    breaks: int
    connections: int
    completed: int
    failed: dict[str, int]
    wrong: list[str]
    left: int
    lasting: int
    replay: "Wait | None"
    resume: "Wait | None"


class Wait(msgspec.Struct):
    """How long something took, in seconds, `times` times."""

    times: int
    p50: float
    p99: float
    longest: float


class Process:
    """A child that is killed and started again, on the same port."""

    def __init__(self, command: Sequence[str], url: str, path: str) -> None:
        self._command = command
        self._path = path
        self.url = url
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; `ready` waits for it."""
        self._process = await asyncio.create_subprocess_exec(
            *guarded([sys.executable, *self._command]), stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    async def ready(self, http: httpx2.AsyncClient) -> None:
        """Wait until it answers. Raises `RouterUnreachable`."""
        try:
            async with asyncio.timeout(_UP_S):
                while not await self._answers(http):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise RouterUnreachable(f"{self.url} did not come up") from None

    async def kill(self) -> None:
        """As a crash does."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """As it is meant to be."""
        await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            await self._process.wait()
            self._process = None

    async def _answers(self, http: httpx2.AsyncClient) -> bool:
        try:
            return (await http.get(self.url + self._path)).status_code == 200
        except httpx2.TransportError:
            return False


class Site(msgspec.Struct):
    """All that runs."""

    redis: RedisProcess
    replicas: list[Process]
    routers: list[Process]


@asynccontextmanager
async def site(http: httpx2.AsyncClient) -> AsyncIterator[Site]:
    """All of it, started anew."""
    ports = free_ports(4)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    always = msgspec.json.encode({"pause_s": _PAUSE_S}).decode()
    replicas = [
        Process(
            ["-m", "sessile.lab.fake_replica", "--port", str(port), "--always", always],
            url, "/health",
        )
        for port, url in zip(ports[:2], urls[:2], strict=True)
    ]  # fmt: skip
    named = [part for url in urls[:2] for part in ("--replica", f"sglang={url}")]
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(own_redis())
        routers = [
            Process(
                ["-m", "sessile.cli", "serve", *named, "--redis", redis.url, "--port", str(port)],
                url, "/ready",
            )
            for port, url in zip(ports[2:], urls[2:], strict=True)
        ]  # fmt: skip
        for process in (*replicas, *routers):
            stack.push_async_callback(process.stop)
            await process.start()
        for process in (*replicas, *routers):
            await process.ready(http)
        yield Site(redis, replicas, routers)


async def run(fault: str, turns: int, seed: int, step: Callable[[], None]) -> Row:
    """One kind of fault, until all turns are over."""
    random = Random(seed)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        httpx2.AsyncClient(trust_env=False, timeout=20.0, limits=limits) as http,
        site(http) as at,
    ):
        urls = [router.url for router in at.routers]
        client = Client(http, urls, random, _HANGS_UP if fault == "clients" else 0.0)
        slots = asyncio.Semaphore(_AT_ONCE)
        breaks: Counter[str] = Counter()
        breaking = asyncio.create_task(_break(fault, at, breaks))

        async def turn(number: int) -> Told:
            async with slots:
                text = " ".join(f"t{number}.{word}" for word in range(_WORDS))
                told = await client.turn(f"chaos-{seed}-{number}", text)
                step()
                return told

        told = await asyncio.gather(*(turn(number) for number in range(turns)))
        breaking.cancel()
        await asyncio.gather(breaking, return_exceptions=True)
        for process in (*at.replicas, *at.routers):
            await process.ready(http)
        if fault != "redis":  # which has forgotten most of them
            for each in told:
                await client.replay(each)
        return Row(
            fault=fault,
            turns=turns,
            breaks=breaks.total(),
            connections=sum(each.connections for each in told),
            completed=sum(each.ends == [_WELL] for each in told),
            failed=dict(Counter(_why(each) for each in told if each.ends != [_WELL])),
            wrong=[f"{each.key}: {each.wrong}" for each in told if each.wrong],
            left=await _left(http, at.replicas),
            lasting=await _lasting(at.redis),
            replay=_wait([wait for each in told for wait in each.replays]),
            resume=_wait([wait for each in told for wait in each.resumes]),
        )


def _why(told: Told) -> str:
    return f"{', '.join(told.ends) or 'no end'}: {told.error}"


def _wait(waits: Sequence[float]) -> Wait | None:
    p50, p99 = quantile(waits, 0.5), quantile(waits, 0.99)
    if p50 is None or p99 is None:
        return None
    return Wait(len(waits), round(p50, 3), round(p99, 3), round(max(waits), 3))


def _shown(wait: Wait | None) -> str:
    return "" if wait is None else f"{wait.p50:g} {wait.p99:g} {wait.longest:g}"


async def _break(fault: str, at: Site, breaks: Counter[str]) -> None:
    """Break things until cancelled."""
    if fault == "routers":
        await _every(_ROUTERS_S, [partial(_restart, router) for router in at.routers], breaks)
    elif fault == "replicas":
        await _every(_REPLICAS_S, [partial(_restart, replica) for replica in at.replicas], breaks)
    elif fault == "redis":
        await _every(_REDIS_S, [partial(_hold, at.redis), partial(_renew, at.redis)], breaks)


async def _every(
    seconds: float, breaking: Sequence[Callable[[], Coroutine[Any, Any, None]]],
    breaks: Counter[str],
) -> None:  # fmt: skip
    for number in count():
        await asyncio.sleep(seconds)
        breaks["broken"] += 1
        # What is broken is mended even if the turns are over meanwhile.
        await asyncio.shield(asyncio.create_task(breaking[number % len(breaking)]()))


async def _restart(process: Process) -> None:
    await process.kill()
    await process.start()


async def _hold(redis: RedisProcess) -> None:
    redis.hold(True)
    try:
        await asyncio.sleep(1.0)
    finally:
        redis.hold(False)


async def _renew(redis: RedisProcess) -> None:
    await redis.kill()
    await redis.start()


async def _left(http: httpx2.AsyncClient, replicas: Sequence[Process]) -> int:
    """Requests that run for no one: none, after a moment."""
    running = 0
    for _ in range(int(_LEFT_S / 0.2)):
        running = 0
        for replica in replicas:
            loads = (await http.get(replica.url + "/v1/loads")).json()["loads"]
            running += sum(load["num_running_reqs"] for load in loads)
        if not running:
            break
        await asyncio.sleep(0.2)
    return running


async def _lasting(redis: RedisProcess) -> int:
    async with Redis.from_url(redis.url) as client:
        return sum([await client.pttl(key) < 0 async for key in client.scan_iter()])


def table(rows: Sequence[Row]) -> Table:
    """For people."""
    shown = Table(header_style="bold")
    for name in ("what breaks", "times", "turns", "connections", "completed", "failed", "wrong",
                 "left running", "keys without expiry", "first replayed event: p50 p99 longest s",
                 "first new one"):  # fmt: skip
        shown.add_column(name, justify="right")
    for row in rows:
        failed = "; ".join(f"{why} {count}" for why, count in row.failed.items())
        shown.add_row(
            row.fault, str(row.breaks), str(row.turns), str(row.connections), str(row.completed),
            failed or "0", str(len(row.wrong)), str(row.left), str(row.lasting),
            _shown(row.replay), _shown(row.resume),
        )  # fmt: skip
    return shown


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m sessile.lab.chaos")
    parser.add_argument("--turns", type=int, default=200, help="under each kind of fault")
    parser.add_argument("--only", choices=_KINDS, help="one kind of fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    kinds = [given.only] if given.only else list(_KINDS)
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        for kind in kinds:
            step = partial(progress.advance, progress.add_task(kind, total=given.turns))
            rows.append(asyncio.run(run(kind, given.turns, given.seed, step)))
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n")
    else:
        Console().print(table(rows))
        for row in rows:
            for what in row.wrong[:5]:
                Console().print(f"{row.fault}: {what}", markup=False)
    sys.exit(any(row.wrong or row.left or row.lasting for row in rows))


if __name__ == "__main__":
    main()
