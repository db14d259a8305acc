"""A slow line to a server, for benchmarks and tests: a TCP proxy that delays, counts and breaks.

Each direction is one line that all connections share: what is sent takes its time by the line's
rate, behind what was sent before, and arrives half a round trip later. With `slow_start` a
connection begins with ten segments on their way, twice as many a round trip later, and so again
after a pause, as Linux does by default; without it the line is kinder to large requests than real
ones are. Connections are there at once, and nothing is ever lost.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 4096
_MOST_CHUNKS = 512  # on their way at once, in one direction of a connection
_FIRST_WINDOW_BYTES = 10 * 1460
_LEAST_PAUSE_S = 0.2  # beside the round trip, before a connection begins anew


class Link:
    """The proxy while it is served; `up_bytes` is what clients have sent, `down_bytes` what they
    were sent. `target` may be changed: connections that come later go there."""

    def __init__(
        self, target: tuple[str, int], *, round_trip_s: float = 0.0,
        bits_per_s: float | None = None, slow_start: bool = False,
    ) -> None:  # fmt: skip
        self.target = target
        self.port = 0
        self.up_bytes = self.down_bytes = 0
        self.connections = 0
        self._delay_s = round_trip_s / 2
        self._bytes_per_s = None if bits_per_s is None else bits_per_s / 8
        self._slow_start = slow_start
        self._free_at = {True: 0.0, False: 0.0}  # by direction: when the line has sent all
        self._open: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Break all connections, as a network that is gone does."""
        for task in self._open:
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either end closes it or it is cut."""
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        above: asyncio.StreamWriter | None = None
        try:
            with suppress(OSError, asyncio.CancelledError):
                there, above = await asyncio.open_connection(*self.target)
                for end in (writer, above):
                    line: socket.socket = end.get_extra_info("socket")
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pumps = [
                    asyncio.ensure_future(self._pump(reader, above, up=True)),
                    asyncio.ensure_future(self._pump(there, writer, up=False)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._open.discard(task)
            for closing in (writer, above):
                if closing is not None:
                    closing.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        flying: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_CHUNKS)
        landing = asyncio.ensure_future(_land(flying, writer))
        window = _Window(2 * self._delay_s) if self._slow_start else None
        try:
            while data := await reader.read(_CHUNK_BYTES):
                if up:
                    self.up_bytes += len(data)
                else:
                    self.down_bytes += len(data)
                if window is not None:
                    await window.room(len(data))
                sent_at = max(loop.time(), self._free_at[up])
                if self._bytes_per_s is not None:
                    sent_at += len(data) / self._bytes_per_s
                self._free_at[up] = sent_at
                if window is not None:
                    window.sent(len(data), sent_at)
                await flying.put((sent_at + self._delay_s, data))
            await flying.put((loop.time() + self._delay_s, b""))
            await landing
        finally:
            landing.cancel()


class _Window:
    """How much of one direction of a connection may be on its way."""

    def __init__(self, round_trip_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._round_trip_s = round_trip_s
        self._bytes = _FIRST_WINDOW_BYTES
        self._flying = 0
        self._last_at = 0.0
        self._heard = asyncio.Event()

    async def room(self, size: int) -> None:
        """Wait until so much more may be sent."""
        if self._loop.time() - self._last_at > self._round_trip_s + _LEAST_PAUSE_S:
            self._bytes = _FIRST_WINDOW_BYTES
        while self._flying and self._flying + size > self._bytes:
            self._heard.clear()
            await self._heard.wait()

    def sent(self, size: int, at: float) -> None:
        """So much is on its way, and is heard of a round trip later."""
        self._flying += size
        self._last_at = at
        self._loop.call_at(at + self._round_trip_s, self._hear, size)

    def _hear(self, size: int) -> None:
        self._flying -= size
        self._bytes += size
        self._heard.set()


async def _land(flying: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    """Hand on what has arrived, each piece at its time; `b""` is the end."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while True:
            at, data = await flying.get()
            if (wait_s := at - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if not data:
                return
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def serve_link(
    target: tuple[str, int], *, round_trip_s: float = 0.0, bits_per_s: float | None = None,
    slow_start: bool = False,
) -> AsyncIterator[Link]:  # fmt: skip
    """Serve a line to `target` on a free loopback port of this loop until the block ends."""
    link = Link(target, round_trip_s=round_trip_s, bits_per_s=bits_per_s, slow_start=slow_start)
    server = await asyncio.start_server(link.serve, "127.0.0.1", 0)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        server.close()
        link.cut()
        await server.wait_closed()
