"""The router in this process, served on loopback, before engines of the test's."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from starlette.types import ASGIApp
from websockets.asyncio.client import connect

from lane_lines import Lines
from scripted_engine import Cut, ScriptedEngine
from sessile import AsyncClient
from sessile.api.http_protocol import HttpProtocol
from sessile.api.ws_protocol import WebSocketProtocol
from sessile.app import App, create_app
from sessile.lab.fake_replica import FakeReplica
from sessile.router.replica import ReplicaSpec
from sessile.settings import Settings
from swap_site import Site

NAMES = ("one", "two", "three", "four")


class Router:
    """A served router and its engines, `one`, `two` and so on; `engine` is the first."""

    cut = Cut

    def __init__(self, app: App, engines: list[Any], url: str) -> None:
        self.app = app
        self.engines = dict(zip(NAMES, engines, strict=False))
        self.engine = engines[0] if engines else None
        self.url = url

    @property
    def ws_url(self) -> str:
        """Where the Responses WebSocket is."""
        return self.url.replace("http", "ws", 1) + "/v1/responses"

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for something that must come true; the test's own time-out says that it did not."""
        await _until(true)

    @property
    def states(self) -> dict[str, str]:
        """Each replica's state, by id."""
        return {replica.id: replica.state for replica in self.app.pool}

    async def until_pool(self, **states: str) -> None:
        """Wait until the pool is just so."""
        await _until(lambda: self.states == states)

    async def turn(self, http: httpx2.AsyncClient, session: str, **fields: Any) -> httpx2.Response:
        """One turn of a session, whatever is answered."""
        messages = [{"role": "user", "content": session}]
        return await http.post(
            f"{self.url}/v1/chat/completions", json={"model": "m", "messages": messages, **fields},
            headers={"x-session-id": session},
        )  # fmt: skip


Start = Callable[..., Awaitable[Router]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts routers with settings of the test's, before engines of their own or, `beside`
    another, before that one's; `engines` may be applications too. Fails a test that leaves a task
    behind."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def start(
            engines: int | Sequence[Any] = 1, beside: Router | None = None, kind: str = "openai",
            **settings: Any,
        ) -> Router:  # fmt: skip
            scripted = (
                [ScriptedEngine() for _ in range(engines)]
                if isinstance(engines, int)
                else list(engines)
            )
            specs = (
                [replica.spec for replica in beside.app.pool]
                if beside
                else [
                    ReplicaSpec(
                        id=name,
                        engine=kind,
                        url=await stack.enter_async_context(_served(engine)),
                    )
                    for name, engine in zip(NAMES, scripted, strict=False)
                ]
            )
            tree = Settings(**settings)
            app = create_app(tree, specs=specs)
            url = await stack.enter_async_context(_served(app, tree))
            await _until(lambda: len(app.pool.candidates("m")) >= len(specs))
            return Router(app, list(beside.engines.values()) if beside else scripted, url)

        yield start
    mine = asyncio.current_task()
    await _until(lambda: not asyncio.all_tasks() - before - {mine})


@pytest.fixture
def scripted() -> ScriptedEngine:
    """An engine to put behind pages of one's own."""
    return ScriptedEngine()


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[tuple[Any, str]]]]:
    """Serves an application, else a new scripted engine, until the test ends; gives it and its
    URL."""
    async with AsyncExitStack() as stack:

        async def serve(app: Any = None) -> tuple[Any, str]:
            served = app or ScriptedEngine()
            return served, await stack.enter_async_context(_served(served))

        yield serve


@pytest.fixture
async def router(start: Start) -> Router:
    """A router with the default settings."""
    return await start()


@pytest.fixture
async def make_site(start: Start, serve: Any) -> AsyncIterator[Callable[..., Awaitable[Site]]]:
    """Makes sites: so many replicas of m in each pool, so many routers."""
    async with AsyncExitStack() as stack:

        async def make_site(blue=1, green=1, routers=1, kind="sglang", other="m", **settings):
            fakes = {
                "blue": [FakeReplica(model="m") for _ in range(blue)],
                "green": [FakeReplica(model=other) for _ in range(green)],
            }
            pools = [
                {
                    "name": name, "engine": kind, "standby": name == "green",
                    "urls": [(await serve(fake))[1] for fake in of],
                }
                for name, of in fakes.items() if of
            ]  # fmt: skip
            made, clients = [], []
            for _ in range(routers):
                router = await start(0, pool=pools, **settings)
                made.append(router)
                await router.until(lambda r=router: all(x.state == "ready" for x in r.app.pool))
                http = httpx2.AsyncClient(base_url=router.url, timeout=30, trust_env=False)
                clients.append(await stack.enter_async_context(http))
            return Site(made, fakes, clients)

        yield make_site


@pytest.fixture
async def lines(router: Router) -> AsyncIterator[Lines]:
    """A WebSocket to the router."""
    async with connect(router.ws_url) as ws:
        yield Lines(ws)


@pytest.fixture
def store(redis_server: Any) -> dict[str, Any]:
    """Settings of a router that keeps all in the test's Redis, with a short breaker."""
    return {"url": redis_server.url, "timeout_s": 0.5, "retry_after_s": 0.1}


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """A client without a router of its own; tests give whole URLs."""
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
async def client(router: Router) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client of the router."""
    async with AsyncOpenAI(base_url=router.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(router: Router) -> AsyncIterator[AsyncAnthropic]:
    """Anthropic's client of the router."""
    async with AsyncAnthropic(base_url=router.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def sdk(router: Router) -> AsyncIterator[AsyncClient]:
    """The SDK's client of the router."""
    async with AsyncClient(router.url) as sdk:
        yield sdk


@asynccontextmanager
async def _served(app: ASGIApp, settings: Settings | None = None) -> AsyncIterator[str]:
    settings = settings or Settings()
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=settings.websocket.max_message_bytes,
        ws_per_message_deflate=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await _until(lambda: server.started or serving.done())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def _until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - what is waited for is in no position to set an event
        await asyncio.sleep(0.01)
