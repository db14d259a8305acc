"""What listening to KV events costs the router: `python -m sessile.lab.feed_cost`.

A process of its own publishes, over a real socket, what an engine with a full cache tells: a
session stores a run of blocks below its last, and an older run is evicted. CPU is that of the
listening process, all threads included. An engine puts what one step of its scheduler did into one
message; a message for each event is the worst case.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from itertools import count
from typing import Any

import msgspec
import uvloop
import zmq

from sessile.engines.supervisor import free_ports
from sessile.lab.processes import cpu_s, memory_bytes
from sessile.router.blocks import BlockTree
from sessile.router.engine import FeedSource
from sessile.router.kv_feed import Listener

_BLOCK_TOKENS = 16
_CAPACITY_BLOCKS = 50_000
_SESSIONS = 200
_TICK_S = 0.002
_LAST = "last"  # the session of the last event


class FeedCost(msgspec.Struct):
    """CPU for 10,000 events, and the memory of the tree that they built."""

    cpu_ms_per_10k_events: float
    events: int
    events_per_s: float
    blocks_per_event: int
    events_per_message: int
    blocks: int
    memory_mb: float


async def measure(events: int, rate: float, run: int, batch: int) -> FeedCost:
    """Listen to so many events a second, each of a run of so many blocks, so many a message."""
    (port,) = free_ports(1)
    tree, pid = BlockTree(), os.getpid()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    source = FeedSource(endpoint=f"tcp://127.0.0.1:{port}")
    listening = asyncio.create_task(Listener("r", source, tree, context).run())
    publishing = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
        [sys.executable, "-m", "sessile.lab.feed_cost",
         "--publish", str(port), "--events", str(events), "--rate", str(rate), "--run", str(run),
         "--batch", str(batch)]
    )  # fmt: skip
    memory = memory_bytes(pid)
    try:
        while not tree.blocks:  # noqa: ASYNC110 - the publisher is another process
            await asyncio.sleep(0.001)
        began, cpu = time.monotonic(), cpu_s(pid)
        while not tree.held_tokens(_LAST):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        spent_s, lasted_s = cpu_s(pid) - cpu, time.monotonic() - began
        return FeedCost(
            cpu_ms_per_10k_events=spent_s / events * 1e7,
            events=events,
            events_per_s=events / lasted_s,
            blocks_per_event=run,
            events_per_message=batch,
            blocks=tree.blocks,
            memory_mb=(memory_bytes(pid) - memory) / 1e6,
        )
    finally:
        publishing.terminate()
        publishing.wait()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        context.destroy(linger=0)


def publish(port: int, events: int, rate: float, run: int, batch: int) -> None:
    """Be the engine, once somebody listens."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
    socket.set_hwm(100_000)  # as engines do
    socket.bind(f"tcp://127.0.0.1:{port}")
    socket.recv()  # a subscription
    told = _told(events, run)
    batches = [told[start : start + batch] for start in range(0, len(told), batch)]
    payloads = [msgspec.msgpack.encode([time.time(), batch, 0]) for batch in batches]
    began = time.monotonic()
    for seq, payload in enumerate(payloads):
        while seq * batch > (time.monotonic() - began) * rate:
            time.sleep(_TICK_S)
        socket.send_multipart([b"", seq.to_bytes(8, "big"), payload])
    socket.recv()  # until nobody does


def _told(events: int, run: int) -> list[dict[str, Any]]:
    """Sessions take turns; once the cache is full, each run pushes out the deepest of the longest
    idle session that has one."""
    keys = count(1 << 40)
    chains: list[list[list[int]]] = [[] for _ in range(_SESSIONS)]
    turn = held = 0
    told: list[dict[str, Any]] = [{"type": "AllBlocksCleared"}]
    while len(told) < events:
        if held >= _CAPACITY_BLOCKS:
            idle = next(chains[n % _SESSIONS] for n in count(turn + 1) if chains[n % _SESSIONS])
            told.append(_removed(idle.pop()))
            held -= run
        turn += 1
        chain = chains[turn % _SESSIONS]
        fresh = [next(keys) for _ in range(run)]
        told.append(_stored(fresh, chain[-1][-1] if chain else None, f"session-{turn % _SESSIONS}"))
        chain.append(fresh)
        held += run
    told.append(_stored([next(keys)], None, _LAST))
    return told


def _stored(keys: list[int], parent: int | None, session: str) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": keys,
        "parent_block_hash": parent,
        "token_ids": [50_000] * (_BLOCK_TOKENS * len(keys)),
        "block_size": _BLOCK_TOKENS,
        "lora_id": None,
        "medium": "GPU",
        "session_id": session,
    }


def _removed(keys: list[int]) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": keys, "medium": "GPU"}


def main() -> None:
    """Measure, or publish for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=10_000.0, help="events a second")
    parser.add_argument("--run", type=int, default=4, help="blocks an event")
    parser.add_argument("--batch", type=int, default=10, help="events a message")
    parser.add_argument("--publish", type=int, metavar="PORT", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.publish:
        publish(asked.publish, asked.events, asked.rate, asked.run, asked.batch)
    else:
        cost = uvloop.run(measure(asked.events, asked.rate, asked.run, asked.batch))
        print(msgspec.json.format(msgspec.json.encode(cost)).decode())


if __name__ == "__main__":
    main()
