"""Runs the application in uvicorn: the sockets, the signals, the limits of a connection."""

import asyncio
import gc
import signal
import socket
from collections.abc import Awaitable, Callable

import uvicorn

from sessile.api.http_protocol import HttpProtocol
from sessile.api.ws_protocol import WebSocketProtocol
from sessile.app import App
from sessile.errors import SettingsError
from sessile.settings import Settings


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; raises `SettingsError` with the remedy if the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"server.port: cannot listen on {host}:{port} ({error.strerror}); stop what listens "
            "there, or choose another with --port"
        ) from error
    listener.listen(2048)
    return listener


async def serve(
    app: App,
    settings: Settings,
    *,
    listener: socket.socket | None = None,
    on_ready: Callable[[str], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let running turns finish for `drain_timeout_s`.

    `on_ready` is told the base URL once the port answers. Raises `SettingsError` for a port in use.
    """
    listener = listener or bind(settings.server.host, settings.server.port)
    websocket = settings.websocket
    server = _Server(
        uvicorn.Config(
            app,
            http=HttpProtocol,
            ws=WebSocketProtocol,
            ws_max_size=websocket.max_message_bytes,
            ws_ping_interval=websocket.ping_interval_s,
            ws_ping_timeout=websocket.ping_timeout_s,
            ws_per_message_deflate=False,  # 64 KiB a connection, and CPU on the hot path
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=round(settings.server.drain_timeout_s) or None,
        )
    )
    host, port = listener.getsockname()[:2]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    telling: asyncio.Future[None] | None = None
    try:
        await server.up(serving)
        _spare_the_collector()
        if on_ready is not None and not serving.done():
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            telling = asyncio.ensure_future(on_ready(url))
            # NOTE: a signal may end the serving first; then nobody waits for readiness any more.
            await asyncio.wait((telling, serving), return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        await serving
    finally:
        if telling is not None and telling.cancel():
            await asyncio.gather(telling, return_exceptions=True)
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()


def _spare_the_collector() -> None:
    """Look for garbage in cycles a tenth as often, and never among what the start has made: by
    default that is a fifth of the CPU of a request, and a turn leaves no cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


class _Server(uvicorn.Server):
    """Uvicorn's server, which here neither re-raises the signal that stopped it (the caller still
    has things to stop) nor leaves unsaid when it is up."""

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def up(self, serving: "asyncio.Task[None]") -> None:
        """Wait until the sockets are served, or the server has ended."""
        while not self.started and not serving.done():  # noqa: ASYNC110 (uvicorn has no event)
            await asyncio.sleep(0.01)
