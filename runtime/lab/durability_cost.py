"""What it costs that events are kept: turns over the WebSocket, stored against not stored.

`python -m sessile.lab.durability_cost [--redis URL]`: one router process on a real store, before a
replica in this process whose tokens say when they were sent. A pair is a round of either kind, one
right after the other, the two in turn first, so that a machine that slows down or has other work
does that to both; told is the median of the pairs. Each stream has the pace of a real engine, so
that most batches hold one event of each turn: the dearest case. CPU is the router's alone; the
store's own is not in it.
"""

import argparse
import asyncio
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
_ROUNDS = 12


class Round(msgspec.Struct):
    """CPU of the router an event, in microseconds, and how long an event takes from the replica to
    the client."""

    cpu_us: float
    p50_ms: float
    p99_ms: float


class Durability(msgspec.Struct):
    """Medians: of either kind of round, and of what the durable one of a pair takes against the
    plain one, `times` its CPU and so many ms more; `pairs` has the `times` of each. As `times`, of
    the cheapest durable round and the cheapest plain one, is `times_of_least`: what else a machine
    does can only add to a round's CPU."""

    plain: Round
    durable: Round
    times: float
    times_of_least: float
    added_p50_ms: float
    added_p99_ms: float
    pairs: list[float]
    events: int


class _Stamps:
    """A replica whose every token is the time at which it was sent."""

    def __init__(self, tokens: int, pause_s: float) -> None:
        self._tokens = tokens
        self._pause_s = pause_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            models = {"object": "list", "data": [{"id": "stamps", "object": "model"}]}
            await answer(send, 200, models)
            return
        await read_body(receive)
        await start(send, 200, EVENTS)
        for _ in range(self._tokens):
            await asyncio.sleep(self._pause_s)
            await _chunk(send, {"content": f"{time.monotonic():.6f} "}, None)
        await _chunk(send, {}, "stop")
        await finish(send, b"data: [DONE]\n\n")


async def _chunk(send: Send, delta: dict[str, str], finish: str | None) -> None:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    await write(send, event({"object": "chat.completion.chunk", "choices": [choice]}))


@asynccontextmanager
async def _replica(tokens: int, pause_s: float) -> AsyncIterator[str]:
    (port,) = free_ports(1)
    app = _Stamps(tokens, pause_s)
    config = uvicorn.Config(app, port=port, lifespan="off", access_log=False, log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


async def measure(
    redis: str | None, *, streams: int, tokens: int, pause_s: float, rounds: int
) -> Durability:
    """Pairs of rounds of streams over open WebSockets."""
    async with AsyncExitStack() as stack:
        store = redis or await stack.enter_async_context(embedded_store())
        if store is None:
            raise SettingsError("the store is to be on: install sessile[local], or name a --redis")
        replica = await stack.enter_async_context(_replica(tokens, pause_s))
        (port,) = free_ports(1)
        command = ["-m", "sessile.cli", "serve", "--replica", f"openai={replica}", "--redis", store,
                   "--port", str(port)]  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        pid = await stack.enter_async_context(child(command, url, "/ready", 20.0))
        address = f"ws://127.0.0.1:{port}/v1/responses"
        sockets = [
            await stack.enter_async_context(connect(address, compression=None))
            for _ in range(streams)
        ]
        await _round(sockets, True)
        plain: list[Round] = []
        durable: list[Round] = []
        for pair in range(rounds):
            for stored in (False, True) if pair % 2 == 0 else (True, False):
                before = cpu_s(pid)
                latencies = await _round(sockets, stored)
                await asyncio.sleep(0.1)  # what is written behind belongs to it
                cpu_us = (cpu_s(pid) - before) / len(latencies) * 1e6
                found = Round(cpu_us, _ms(latencies, 0.5), _ms(latencies, 0.99))
                (durable if stored else plain).append(found)
    both = list(zip(plain, durable, strict=True))
    times = [kept.cpu_us / not_kept.cpu_us for not_kept, kept in both]
    return Durability(
        plain=_middle(plain),
        durable=_middle(durable),
        times=median(times),
        times_of_least=min(kept.cpu_us for kept in durable) / min(one.cpu_us for one in plain),
        added_p50_ms=median(kept.p50_ms - not_kept.p50_ms for not_kept, kept in both),
        added_p99_ms=median(kept.p99_ms - not_kept.p99_ms for not_kept, kept in both),
        pairs=[round(one, 3) for one in times],
        events=2 * rounds * streams * tokens,
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
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="rounds of each kind")
    asked = parser.parse_args()
    found = asyncio.run(
        measure(
            asked.redis, streams=asked.streams, tokens=asked.tokens, pause_s=asked.pause,
            rounds=asked.rounds,
        )
    )  # fmt: skip
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
