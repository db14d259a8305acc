"""Routers as a client meets them: on a port of this machine, with replicas behind them."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp

from sessile.app import create_app
from sessile.server import bind, serve
from sessile.settings import Settings

Serving = Callable[..., AbstractContextManager[str]]


@contextmanager
def serving(app: ASGIApp, settings: Settings) -> Iterator[str]:
    """The base URL of `app`, served by a loop of its own until the block ends."""
    listener = bind("127.0.0.1", 0)
    up = threading.Event()
    stop: list[Callable[[], object]] = []

    async def run() -> None:
        async def ready(_: str) -> None:
            up.set()

        task = asyncio.create_task(serve(app, settings, listener=listener, on_ready=ready))  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        await asyncio.wait([task])
        up.set()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    port = listener.getsockname()[1]
    thread.start()
    up.wait(30)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop[0]()
        thread.join(30)


def scripted_engine() -> FastAPI:
    """An OpenAI-compatible engine that calls every tool it is given once, and echoes otherwise."""
    api = FastAPI()

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "echo", "object": "model"}]}

    @api.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> JSONResponse | StreamingResponse:
        body = await request.json()
        last = body["messages"][-1]
        delta: dict[str, Any]
        if body.get("tools") and last["role"] == "user":
            delta, reason = {"tool_calls": _calls(body["tools"])}, "tool_calls"
        else:
            delta, reason = {"content": f"echo {_text(last['content'])}"}, "stop"
        prompt = len(json.dumps(body["messages"])) // 4
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": 3,
            "total_tokens": prompt + 3,
            "prompt_tokens_details": {"cached_tokens": prompt // 2},
        }
        head = {"id": "chatcmpl-1", "created": 1, "model": "echo"}
        if body.get("stream"):
            return StreamingResponse(
                _chunks(head, delta, reason, usage), media_type="text/event-stream"
            )
        message = {"role": "assistant", "content": None, **delta}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return JSONResponse(
            {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        )

    return api


async def _chunks(
    head: dict[str, Any], delta: dict[str, Any], reason: str, usage: dict[str, Any]
) -> AsyncIterator[str]:
    head = {**head, "object": "chat.completion.chunk"}
    pieces = [{"role": "assistant", "content": ""}]
    if "content" in delta:
        pieces += [{"content": piece} for piece in delta["content"].partition(" ")]
    else:
        pieces.append(delta)
    for piece in pieces:
        choice = {"index": 0, "delta": piece, "finish_reason": None}
        yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
    end = {"index": 0, "delta": {}, "finish_reason": reason}
    yield f"data: {json.dumps({**head, 'choices': [end]})}\n\n"
    yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


def _calls(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls = []
    for index, tool in enumerate(tools):
        properties = tool["function"]["parameters"].get("properties", {})
        arguments = {
            name: 1 if about.get("type") in ("integer", "number") else "Oslo"
            for name, about in properties.items()
        }
        function = {"name": tool["function"]["name"], "arguments": json.dumps(arguments)}
        calls.append({"index": index, "id": f"call_{index}", "type": "function"})
        calls[-1]["function"] = function
    return calls


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return str(content)


@pytest.fixture(scope="session")
def engines() -> Iterator[list[str]]:
    """Two scripted engines, by `--replica` text."""
    with (
        serving(scripted_engine(), Settings()) as one,
        serving(scripted_engine(), Settings()) as other,
    ):
        yield [f"openai={one}", f"openai={other}"]


def wait_until_ready(url: str, replicas: int) -> None:
    """Return once the router at `url` has found all its replicas ready."""
    for _ in range(600):
        told = httpx2.get(f"{url}/ready").json()
        if told["replicas"]["ready"] == replicas:
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} is not ready: {told}")


@pytest.fixture(scope="session")
def router(engines: list[str]) -> Iterator[str]:
    """The base URL of an open router over the scripted engines."""
    settings = Settings(replica=tuple(engines))
    with serving(create_app(settings), settings) as url:
        wait_until_ready(url, len(engines))
        yield url


@pytest.fixture(scope="session")
def locked_router(engines: list[str]) -> Iterator[str]:
    """The same with keys: `right` is one."""
    settings = Settings(replica=tuple(engines), auth={"api_keys": "right,team=other"})  # type: ignore[arg-type]
    with serving(create_app(settings), settings) as url:
        wait_until_ready(url, len(engines))
        yield url
