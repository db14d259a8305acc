"""`sessile up`: a model, its replicas, a store and the router, started and stopped together."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from sessile.app import App, create_app, make_store
from sessile.engines.embedded_store import embedded_store
from sessile.engines.launch import Launch
from sessile.engines.refusals import Refusals
from sessile.engines.supervisor import Listener, Supervisor
from sessile.models import cache_dir
from sessile.server import serve
from sessile.settings import Settings

_SILENT_S = 600.0  # a large model from a slow disk; a replica that goes on telling may go on


async def up(
    settings: Settings,
    launches: Sequence[Launch],
    listener: socket.socket,
    tell: Callable[[str], None],
    on_ready: Callable[[App, str], Awaitable[None]],
) -> None:
    """Start `launches` and the rest of `settings`, serve until told to stop, stop everything.

    `listener` is the router's socket, bound before anything was started. `tell` is given a line
    on what is going on. Raises `SettingsError`.
    """
    async with AsyncExitStack() as stack:
        store_url = settings.store.url
        if store_url is None:
            store_url = await stack.enter_async_context(embedded_store())
            if store_url is None:
                tell("sessions are kept in memory (install sessile[local] for a store)")
        settings = settings.model_copy(
            update={"store": settings.store.model_copy(update={"url": store_url})}
        )
        supervisor = Supervisor(
            launches,
            Listener(
                lambda name, incarnation: app.pool.set_incarnation(name, incarnation),
                lambda name, why: app.pool.mark_down(name, why),
            ),
            cache_dir() / "logs" / str(listener.getsockname()[1]),
        )
        app = create_app(settings, store=make_store(settings), specs=supervisor.specs)
        await stack.enter_async_context(supervisor)
        stack.callback(tell, f"stopping {counted(len(launches))}")  # it may take a while
        for (model, engine), count in Counter((e.model, e.engine) for e in launches).items():
            tell(f"starting {counted(count)} of {model} ({engine})")

        async def ready(url: str) -> None:
            await _until_ready(app, supervisor, tell)
            await on_ready(app, url)

        await serve(app, settings, listener=listener, on_ready=ready)


def counted(replicas: int) -> str:
    """So many replicas, in words."""
    return "1 replica" if replicas == 1 else f"{replicas} replicas"


async def _until_ready(app: App, supervisor: Supervisor, tell: Callable[[str], None]) -> None:
    """Wait for every replica started here, and tell what they do; raises `SettingsError` if one
    cannot start."""
    waiting = {child.name: child for child in supervisor.children}
    told: dict[str, str | None] = {}
    refusals = Refusals()
    while waiting:
        for name, server in app.pool.servers.items():
            if name in waiting and server.state == "ready":
                del waiting[name]
                supervisor.served(name)
            if name in waiting:
                why = server.replicas[0].why if server.refuses else None
                if line := refusals.look(name, server.spec.engine, why, time.monotonic()):
                    tell(line)
        for name, child in waiting.items():
            if child.stage != told.get(name):
                told[name] = child.stage
                tell(f"{name}: {child.stage}")
        supervisor.check(_SILENT_S)
        await asyncio.sleep(0.02)
