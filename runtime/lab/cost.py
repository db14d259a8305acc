"""What the router itself costs, against the direct connection in the same run."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from sessile.engines.embedded_store import embedded_store
from sessile.engines.guard import guarded
from sessile.engines.supervisor import free_ports
from sessile.errors import RouterUnreachable, SettingsError
from sessile.lab.bench import quantile
from sessile.lab.processes import allow_files, child, cpu_s, memory_bytes, open_files

_PAUSE_S = 0.002
_CONNECTIONS = 32
_ROUNDS = 8


class Cost(msgspec.Struct):
    """CPU of the router's process beside a bare relay's, and latency through it beside none.

    The two are measured in turn, round by round, and told as medians: cores differ, and a shared
    one differs from minute to minute, but the ratio holds.
    """

    cpu_ms_per_request: float
    bare_cpu_ms_per_request: float
    times_bare_request: float
    cpu_s_per_million_events: float
    bare_cpu_s_per_million_events: float
    times_bare_event: float
    direct_p50_ms: float
    direct_p99_ms: float
    router_p50_ms: float
    router_p99_ms: float
    added_p50_ms: float
    added_p99_ms: float
    requests: int
    events: int
    store: str


class Sockets(msgspec.Struct):
    """Memory (PSS, and RSS at its highest) of the router with open WebSockets, and what is left
    after they are gone."""

    connections: int
    streams: int
    idle_mb: float
    streaming_mb: float
    rss_mb: float
    baseline_mb: float
    events: int
    files_before: int
    files_after: int
    upstream_streams_after: int


class Bench(msgspec.Struct):
    """Where the parts of a measurement listen, and the processes to look at."""

    mock: int
    router: int
    router_pid: int
    bare: int
    bare_pid: int


@asynccontextmanager
async def bench(redis: str | None, pause_s: float = _PAUSE_S) -> AsyncIterator[Bench]:
    """A mock replica; a router and a bare relay, each before it."""
    mock, port, bare = free_ports(3)
    async with embedded_store() as own:
        store = redis or own
        if store is None:
            raise SettingsError("the store is to be on: install sessile[local], or name a --redis")
        replica = f"http://127.0.0.1:{mock}"
        router = [
            "-m", "sessile.cli", "serve", "--replica", f"openai={replica}", "--redis", store,
            "--port", str(port),
        ]  # fmt: skip
        relay = ["-m", "sessile.lab.bare_relay", str(bare), replica]
        async with (
            child(["-m", "sessile.lab.mock_replica", str(mock), str(pause_s)], replica,
                  "/v1/models", 10.0),
            child(router, f"http://127.0.0.1:{port}", "/ready", 20.0) as router_pid,
            child(relay, f"http://127.0.0.1:{bare}", "/v1/models", 10.0) as bare_pid,
        ):  # fmt: skip
            yield Bench(mock, port, router_pid, bare, bare_pid)


async def measure_cost(
    requests: int, streams: int, tokens: int, redis: str | None, step: Callable[[str], None]
) -> Cost:
    """Plain requests, then streams, router and bare relay in turn; then a light load for the
    added latency."""
    async with bench(redis) as at:
        step("warming up")
        for port in (at.router, at.bare):
            await _load(port, 500, _CONNECTIONS, 0)
        plain, bare_plain = await _in_turn(at, requests, 0, step)
        event, bare_event = await _in_turn(at, streams, tokens, step)
        step("latency")
        light = min(requests, 1000)
        direct = await _load(at.mock, light, 1, 0)
        routed = await _load(at.router, light, 1, 0)
    return Cost(
        cpu_ms_per_request=plain * 1e3,
        bare_cpu_ms_per_request=bare_plain * 1e3,
        times_bare_request=plain / bare_plain,
        cpu_s_per_million_events=event / tokens * 1e6,
        bare_cpu_s_per_million_events=bare_event / tokens * 1e6,
        times_bare_event=event / bare_event,
        direct_p50_ms=_ms(direct, 0.5),
        direct_p99_ms=_ms(direct, 0.99),
        router_p50_ms=_ms(routed, 0.5),
        router_p99_ms=_ms(routed, 0.99),
        added_p50_ms=_ms(routed, 0.5) - _ms(direct, 0.5),
        added_p99_ms=_ms(routed, 0.99) - _ms(direct, 0.99),
        requests=requests,
        events=streams * tokens,
        store="redis" if redis else "embedded",
    )


async def _in_turn(
    at: Bench, requests: int, tokens: int, step: Callable[[str], None]
) -> tuple[float, float]:
    """CPU seconds a request of the router and of the bare relay, medians over the rounds."""
    share = max(1, requests // _ROUNDS)
    spent: dict[int, list[float]] = {at.router: [], at.bare: []}
    for number in range(_ROUNDS):
        step(f"{'streams' if tokens else 'plain requests'}: round {number + 1} of {_ROUNDS}")
        for port, pid in ((at.router, at.router_pid), (at.bare, at.bare_pid)):
            before = cpu_s(pid)
            await _load(port, share, _CONNECTIONS, tokens)
            spent[port].append((cpu_s(pid) - before) / share)
    return median(spent[at.router]), median(spent[at.bare])


async def measure_sockets(
    connections: int, streams: int, redis: str | None, step: Callable[[str], None]
) -> Sockets:
    """Open `connections` WebSockets, let them idle, then stream on `streams` of them at once."""
    allow_files(2 * connections + 1000)
    async with bench(redis, pause_s=0.02) as at:
        port, pid = at.router, at.router_pid
        files_before = open_files(pid)
        baseline = memory_bytes(pid)
        step(f"opening {connections} WebSockets")
        sockets: list[ClientConnection] = []
        try:
            for _ in range(connections):
                sockets.append(
                    await connect(f"ws://127.0.0.1:{port}/v1/responses", compression=None)
                )
            await asyncio.sleep(2)
            idle = memory_bytes(pid)
            step(f"streaming on {streams} at once")
            running = asyncio.gather(*(_stream(ws) for ws in sockets[:streams]))
            streaming = idle
            while not running.done():
                await asyncio.sleep(0.25)
                streaming = max(streaming, memory_bytes(pid))
            events = sum(await running)
            rss = memory_bytes(pid, "Rss")
        finally:
            await asyncio.gather(*(ws.close() for ws in sockets))
        step("looking at what is left")
        left = -1
        for _ in range(120):  # kept-alive connections to the replica are closed in their time
            await asyncio.sleep(0.1)
            left = await _upstream_streams(port)
            if left == 0 and open_files(pid) <= files_before + 4:
                break
        return Sockets(
            connections=connections,
            streams=streams,
            idle_mb=idle / 1e6,
            streaming_mb=streaming / 1e6,
            rss_mb=rss / 1e6,
            baseline_mb=baseline / 1e6,
            events=events,
            files_before=files_before,
            files_after=open_files(pid),
            upstream_streams_after=left,
        )


async def _stream(ws: ClientConnection) -> int:
    """One turn on one socket; how many events it had."""
    await ws.send(
        msgspec.json.encode(
            {
                "type": "response.create",
                "model": "mock",
                "input": "Stream to me.",
                "max_output_tokens": 200,
            }
        ).decode()
    )
    count = 0
    async for frame in ws:
        count += 1
        kind = msgspec.json.decode(frame)["type"]
        if kind == "response.completed":
            return count
        if kind in ("error", "response.failed"):
            raise RouterUnreachable(f"a stream failed: {_why(msgspec.json.decode(frame))}")
    raise RouterUnreachable("a WebSocket was closed in the middle of a stream")


def _why(event: dict[str, Any]) -> str:
    error = event.get("error") or event.get("response", {}).get("error") or {}
    return str(error.get("message", "no reason was given"))


async def _upstream_streams(port: int) -> int:
    """The router's own count of the replica's open answers, from its metrics; for a moment now and
    then it is a probe's."""
    from sessile.router.connection import Timeouts
    from sessile.router.engine import Call
    from sessile.router.upstream import Upstream

    upstream = Upstream(
        f"http://127.0.0.1:{port}", Timeouts(connect_s=2.0, first_byte_s=5.0, idle_s=5.0)
    )
    try:
        reply = await upstream.call(Call("GET", "/metrics"), 5.0)
    finally:
        await upstream.aclose()
    lines = reply.body.decode().splitlines()
    return int(
        sum(float(x.split()[-1]) for x in lines if x.startswith("sessile_upstream_streams{"))
    )


async def _load(port: int, requests: int, connections: int, tokens: int) -> list[float]:
    command = [
        sys.executable, "-m", "sessile.lab.load",
        str(port), str(requests), str(connections), str(tokens),
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *guarded(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RouterUnreachable(f"the load generator failed: {said.decode().strip()[-300:]}")
    latencies: list[float] = msgspec.json.decode(out)
    return latencies


def _ms(latencies: list[float], share: float) -> float:
    return (quantile(latencies, share) or 0.0) * 1e3
