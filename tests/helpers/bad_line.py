"""A network between a client and a router that can be made to fail."""

import asyncio
from collections.abc import Callable


class Line:
    """A TCP relay that can be cut, as a bad network is. While it is `deaf`, what the client says is
    lost, while it is `dumb`, what it is told. `served` counts its connections."""

    def __init__(self, url: str) -> None:
        self._target = int(url.rpartition(":")[2])
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.refuses = self.deaf = self.dumb = False
        self.served = 0

    async def __aenter__(self) -> "Line":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Every connection ends at once, without a farewell."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        self.served += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}
        await asyncio.gather(
            _pipe(reader, back, lambda: self.deaf), _pipe(there, writer, lambda: self.dumb)
        )
        self._writers -= {writer, back}


async def _pipe(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, loses: Callable[[], bool]
) -> None:
    try:
        while data := await source.read(65536):
            if not loses():
                sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()
