"""The router in this process, served on loopback, before an engine that plays a script."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import msgspec
import pytest
import uvicorn
from openai import AsyncOpenAI
from starlette.types import ASGIApp, Receive, Scope, Send

from sessile.api.http_protocol import HttpProtocol
from sessile.api.ws_protocol import WebSocketProtocol
from sessile.app import App, create_app
from sessile.router.replica import ReplicaSpec
from sessile.settings import Settings

NAMES = ("one", "two", "three", "four")


class Cut(Exception):
    """The engine's connection breaks."""


class ScriptedEngine:
    """An OpenAI-compatible engine. Each chat request plays the next script, as it was queued; with
    none left, it says how many messages it was given."""

    def __init__(self) -> None:
        self._scripts: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.running = 0
        self.aborted = 0

    def says(self, *pieces: str, finish: str = "stop") -> None:
        """Queue a reply of text."""
        self.plays(*pieces, _chunk(finish))

    def calls(self, name: str, arguments: str, id: str = "call_1") -> None:
        """Queue a reply that calls a function, its arguments in two pieces."""
        cut = len(arguments) // 2
        pieces = [{"id": id, "type": "function", "function": {"name": name, "arguments": ""}}]
        pieces += [{"function": {"arguments": a}} for a in (arguments[:cut], arguments[cut:])]
        self.plays(
            *(_chunk(tool_calls=[{"index": 0, **piece}]) for piece in pieces),
            _chunk("tool_calls"),
        )

    def plays(self, *steps: str | dict[str, Any] | asyncio.Event | type[Cut]) -> None:
        """Queue a reply step by step: text, a chunk, something to wait for, or the line's end."""
        self._scripts.append(
            [_chunk(content=step) if isinstance(step, str) else step for step in steps]
        )

    def refuses(self, status: int, message: str) -> None:
        """Queue an error."""
        self._scripts.append((status, {"error": {"message": message}}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await _answer(send, 200, {"data": [{"id": "m", "object": "model"}]})
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        request = msgspec.json.decode(body)
        self.asked.append(request)
        if not self._scripts:
            self.says(f"{len(request.get('messages', ()))}")
        script = self._scripts.pop(0)
        if isinstance(script, tuple):
            await _answer(send, *script)
            return
        self.running += 1
        play = self._play if request.get("stream") else self._answer
        playing = asyncio.create_task(play(script, len(request.get("messages", ())), send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((playing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                playing.result()
            else:
                self.aborted += 1
        finally:
            self.running -= 1
            playing.cancel()
            leaving.cancel()

    async def _answer(self, script: list[Any], prompt: int, send: Send) -> None:
        """The same script as one answer that is not streamed."""
        text = ""
        for step in script:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif step is Cut:
                raise Cut
            else:
                text += step["choices"][0]["delta"].get("content", "")
        message = {"role": "assistant", "content": text}
        body = {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": _usage(prompt),
        }
        await _answer(send, 200, body)

    async def _play(self, script: list[Any], prompt: int, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for step in [*script, {"choices": [], "usage": _usage(prompt)}]:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif step is Cut:
                raise Cut
            else:
                data = b"data: " + msgspec.json.encode(step) + b"\n\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


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


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, body: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})


async def _until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - what is waited for is in no position to set an event
        await asyncio.sleep(0.01)


def _usage(prompt: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": 2,
        "total_tokens": prompt + 2,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def _chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """One chunk of a chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
