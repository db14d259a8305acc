"""`sessile up`: a model, its replicas, a store and the router, started and stopped together."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from sessile import models
from sessile.app import App, create_app, make_store
from sessile.engines.embedded_store import embedded_store
from sessile.engines.scratch import private_folder
from sessile.engines.supervisor import Listener, ReplicaPlan, Supervisor
from sessile.errors import SettingsError
from sessile.server import serve
from sessile.settings import PoolSettings, Settings

_DEFAULT_MODEL = "smollm2-135m"
_DEFAULT_REPLICAS = 2
_READY_S = 120.0


def plan(settings: Settings, progress: models.Progress) -> list[ReplicaPlan]:
    """The replicas that `up` is to start, their models pulled, the cores shared out among them.

    Without any replica in `settings`: two of the small model. It blocks, for it comes before the
    event loop, where Ctrl-C ends a pull at once. Raises `SettingsError`.
    """
    pools = [pool for pool in settings.pool if not pool.found]
    if not (settings.pool or settings.replica or settings.discover):
        pools = [PoolSettings(model=_DEFAULT_MODEL, replicas=_DEFAULT_REPLICAS)]
    count = sum(pool.replicas or 1 for pool in pools)
    threads = max(1, len(os.sched_getaffinity(0)) // max(count, 1)) if _linux() else 1
    plans: list[ReplicaPlan] = []
    for pool in pools:
        alias, path = models.resolve(pool.model or _DEFAULT_MODEL)
        file = path or models.pull(alias, progress)
        for _ in range(pool.replicas or 1):
            plans.append(
                ReplicaPlan(
                    id=f"local-{len(plans)}", model=Path(file), alias=alias, threads=threads,
                    context_tokens=pool.context_tokens, slots=pool.slots,
                )
            )  # fmt: skip
    return plans


async def up(
    settings: Settings,
    plans: Sequence[ReplicaPlan],
    listener: socket.socket,
    tell: Callable[[str], None],
    on_ready: Callable[[App, str], Awaitable[None]],
) -> None:
    """Start `plans` and the rest of `settings`, serve until told to stop, stop everything.

    `listener` is the router's socket, bound before anything was started. `tell` is given a line
    on what is going on. Raises `SettingsError`.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(private_folder())
        store_url = settings.store.url
        if store_url is None:
            store_url = await stack.enter_async_context(embedded_store())
            if store_url is None:
                tell("sessions are kept in memory (install sessile[local] for a store)")
        settings = settings.model_copy(
            update={"store": settings.store.model_copy(update={"url": store_url})}
        )
        supervisor = Supervisor(
            plans,
            Listener(
                lambda name, incarnation: app.pool.set_incarnation(name, incarnation),
                lambda name, why: app.pool.mark_down(name, why),
            ),
            folder,
        )
        app = create_app(settings, store=make_store(settings), specs=supervisor.specs)
        await stack.enter_async_context(supervisor)
        if plans:
            tell(f"starting {len(plans)} replicas of {plans[0].alias}")

        async def ready(url: str) -> None:
            await _until_ready(app, supervisor)
            await on_ready(app, url)

        await serve(app, settings, listener=listener, on_ready=ready)


def _linux() -> bool:
    return hasattr(os, "sched_getaffinity")


async def _until_ready(app: App, supervisor: Supervisor) -> None:
    """Wait for every replica started here; raises `SettingsError` if one cannot start."""
    mine = {spec.id for spec in supervisor.specs}
    try:
        async with asyncio.timeout(_READY_S):
            while any(r.id in mine and r.state != "ready" for r in app.pool):
                supervisor.check()
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        late = [f"{r.id} ({r.why})" for r in app.pool if r.id in mine and r.state != "ready"]
        raise SettingsError(f"not ready after {_READY_S:.0f} s: {', '.join(late)}") from error
