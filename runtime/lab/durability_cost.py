"""What it costs that events are kept: turns over the WebSocket, stored against not stored.

`python -m sessile.lab.durability_cost [--redis URL]`: one router process on a real store, before a
replica in this process whose tokens say when they were sent. Rounds go by fours, plain, durable,
durable, plain, so that a machine that slows down or has other work does that to both; told is the
median of the fours, and the quartiles that they lie between. Each stream has the pace of a real
engine and the streams are evenly apart, so that most batches hold one event of each turn, and each
event comes alone: the dearest case of either kind. CPU is all that the router's process uses, with
what the system does for it; the store's own is not in it. The router has a core that clients,
replica and store are not on: in production these are on other machines, and do not push it off its
core in the middle of what it does.
"""

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median

import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect

from sessile.engines.embedded_store import embedded_store
from sessile.engines.supervisor import free_ports
from sessile.errors import RouterUnreachable, SettingsError
from sessile.lab.asgi import EVENTS, answer, event, finish, read_body, start, write
from sessile.lab.bench import quantile
from sessile.lab.processes import child, cpu_s

_STREAMS = 32
_TOKENS = 100
_PAUSE_S = 0.02
_FOURS = 8


class Round(msgspec.Struct):
    """CPU of the router an event, in microseconds, and how long an event takes from the replica to
    the client."""

    cpu_us: float
    p50_ms: float
    p99_ms: float


class Durability(msgspec.Struct):
    """Medians: of either kind of round, and of what the durable ones of four take against the plain
    ones, `times` their CPU and so many ms more; `fours` has the `times` of each, `quartiles` what
    the middle half of them lies between."""

    plain: Round
    durable: Round
    times: float
    quartiles: tuple[float, float]
    added_p50_ms: float
    added_p99_ms: float
    fours: list[float]
    events: int


class _Stamps:
    """A replica whose every token is the time at which it was sent. Its streams are evenly apart:
    each sends at a place of its own within the pause, by the clock."""

    def __init__(self, streams: int, tokens: int, pause_s: float) -> None:
        self._streams = streams
        self._tokens = tokens
        self._pause_s = pause_s
        self._begun = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            models = {"object": "list", "data": [{"id": "stamps", "object": "model"}]}
            await answer(send, 200, models)
            return
        await read_body(receive)
        await start(send, 200, EVENTS)
        loop, pause_s = asyncio.get_running_loop(), self._pause_s
        place_s = self._begun % self._streams / self._streams * pause_s
        self._begun += 1
        begin = (loop.time() // pause_s + 1) * pause_s + place_s
        for n in range(self._tokens):
            await asyncio.sleep(begin + n * pause_s - loop.time())
            await _chunk(send, {"content": f"{time.monotonic():.6f} "}, None)
        await _chunk(send, {}, "stop")
        await finish(send, b"data: [DONE]\n\n")


async def _chunk(send: Send, delta: dict[str, str], finish: str | None) -> None:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    await write(send, event({"object": "chat.completion.chunk", "choices": [choice]}))


@asynccontextmanager
async def _replica(streams: int, tokens: int, pause_s: float) -> AsyncIterator[str]:
    (port,) = free_ports(1)
    app = _Stamps(streams, tokens, pause_s)
    config = uvicorn.Config(app, port=port, lifespan="off", access_log=False, log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


async def measure(
    redis: str | None, *, streams: int, tokens: int, pause_s: float, fours: int
) -> Durability:
    """Rounds of streams over open WebSockets, four by four."""
    async with AsyncExitStack() as stack:
        *others, last = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, others or [last])
        store = redis or await stack.enter_async_context(embedded_store())
        if store is None:
            raise SettingsError("the store is to be on: install sessile[local], or name a --redis")
        replica = await stack.enter_async_context(_replica(streams, tokens, pause_s))
        (port,) = free_ports(1)
        command = ["-m", "sessile.cli", "serve", "--replica", f"openai={replica}", "--redis", store,
                   "--port", str(port)]  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        os.sched_setaffinity(0, [last])  # which a child is given
        pid = await stack.enter_async_context(child(command, url, "/ready", 20.0))
        os.sched_setaffinity(0, others or [last])
        address = f"ws://127.0.0.1:{port}/v1/responses"
        sockets = [
            await stack.enter_async_context(connect(address, compression=None))
            for _ in range(streams)
        ]
        for stored in (True, False):
            await _round(sockets, stored)
        plain: list[Round] = []
        durable: list[Round] = []
        for _ in range(fours):
            for stored in (False, True, True, False):
                before = cpu_s(pid)
                latencies = await _round(sockets, stored)
                await asyncio.sleep(0.1)  # what is written behind belongs to it
                cpu_us = (cpu_s(pid) - before) / len(latencies) * 1e6
                found = Round(cpu_us, _ms(latencies, 0.5), _ms(latencies, 0.99))
                (durable if stored else plain).append(found)
    both = list(zip(plain, durable, strict=True))
    times = [
        (durable[n].cpu_us + durable[n + 1].cpu_us) / (plain[n].cpu_us + plain[n + 1].cpu_us)
        for n in range(0, 2 * fours, 2)
    ]
    return Durability(
        plain=_middle(plain),
        durable=_middle(durable),
        times=median(times),
        quartiles=(round(quantile(times, 0.25) or 0.0, 3), round(quantile(times, 0.75) or 0.0, 3)),
        added_p50_ms=median(kept.p50_ms - not_kept.p50_ms for not_kept, kept in both),
        added_p99_ms=median(kept.p99_ms - not_kept.p99_ms for not_kept, kept in both),
        fours=[round(one, 3) for one in times],
        events=4 * fours * streams * tokens,
    )


def _middle(rounds: list[Round]) -> Round:
    """The median of each figure."""
    return Round(
        *(median(column) for column in zip(*map(msgspec.structs.astuple, rounds), strict=True))
    )


async def _round(sockets: list[ClientConnection], stored: bool) -> list[float]:
    """One turn on every socket at once; how long each of its tokens took."""
    return sum(await asyncio.gather(*(_turn(socket, stored) for socket in sockets)), [])


async def _turn(socket: ClientConnection, stored: bool) -> list[float]:
    create = {"type": "response.create", "model": "stamps", "input": "Go.", "store": stored}
    await socket.send(msgspec.json.encode(create).decode())
    latencies: list[float] = []
    async for frame in socket:
        now = time.monotonic()
        event = msgspec.json.decode(frame)
        if event["type"] == "response.output_text.delta":
            latencies.append(now - float(event["delta"]))
        elif event["type"] == "response.completed":
            return latencies
        elif event["type"] in ("error", "response.failed"):
            raise RouterUnreachable(f"a turn failed: {event}")
    raise RouterUnreachable("a WebSocket was closed in the middle of a turn")


def _ms(latencies: list[float], share: float) -> float:
    return (quantile(latencies, share) or 0.0) * 1e3


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", help="a running server instead of one of its own")
    parser.add_argument("--streams", type=int, default=_STREAMS, help="turns at once")
    parser.add_argument("--tokens", type=int, default=_TOKENS, help="events of a turn")
    parser.add_argument("--pause", type=float, default=_PAUSE_S, help="seconds between two of them")
    parser.add_argument("--fours", type=int, default=_FOURS, help="times four rounds")
    asked = parser.parse_args()
    found = asyncio.run(
        measure(
            asked.redis, streams=asked.streams, tokens=asked.tokens, pause_s=asked.pause,
            fours=asked.fours,
        )
    )  # fmt: skip
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
