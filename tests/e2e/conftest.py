"""Routers as a client meets them: on a port of this machine, with replicas behind them."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp

from sessile.engines.guard import guarded
from sessile.engines.supervisor import free_ports


@contextmanager
def serving(app: ASGIApp, lifespan: Literal["on", "off"] = "off") -> Iterator[str]:
    """The base URL of `app`, served by a thread until the block ends."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan=lifespan))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[str]]:
    """`serving`, for tests that bring a server of their own."""
    return serving


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
    with serving(scripted_engine()) as one, serving(scripted_engine()) as other:
        yield [f"openai={one}", f"openai={other}"]


@contextmanager
def launched(log: Path, replicas: int, *command: str, **variables: str) -> Iterator[str]:
    """The base URL of `sessile COMMAND` in a process of its own, which Ctrl-C ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    sessile = str(Path(sys.executable).with_name("sessile"))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sessile, *command, "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
        )
        try:
            for _ in range(1000):
                if process.poll() is not None or ready_replicas(url) == replicas:
                    break
                time.sleep(0.1)
            assert process.poll() is None and ready_replicas(url) == replicas, log.read_text()
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            finally:
                process.kill()


class Mortal:
    """A router process that can be killed and started again where it was."""

    def __init__(self, *options: str, **variables: str) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        sessile = str(Path(sys.executable).with_name("sessile"))
        self._command = guarded([sessile, "serve", *options, "--port", str(port)])
        settings = {"SESSILE_EVENTS__LEASE_S": "1", "SESSILE_STORE__TIMEOUT_S": "0.5"}
        self._variables = {**os.environ, **settings, **variables}
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and return once it is ready."""
        self._process = _started(self._command, self._variables)
        while ready_replicas(self.url) == 0:
            assert self._process.poll() is None, "the router has ended"
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _started(command: list[str], variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, env=variables)


@pytest.fixture
def mortal() -> Iterator[Callable[..., Mortal]]:
    """Makes routers that a test kills; those that live are killed after it."""
    made: list[Mortal] = []

    def make(*options: str, **variables: str) -> Mortal:
        made.append(Mortal(*options, **variables))
        return made[-1]

    yield make
    for router in made:
        router.kill()


def ready_replicas(url: str) -> int:
    """How many replicas the router at `url` has found ready; 0 if there is no router yet."""
    try:
        return int(httpx2.get(f"{url}/ready").json()["replicas"]["ready"])
    except httpx2.TransportError:
        return 0


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes write."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def router(engines: list[str], logs: Path) -> Iterator[str]:
    """The base URL of an open `sessile serve` over the scripted engines."""
    options = [part for engine in engines for part in ("--replica", engine)]
    with launched(logs / "serve.log", len(engines), "serve", *options) as url:
        yield url


@pytest.fixture(scope="session")
def locked_router(engines: list[str], logs: Path) -> Iterator[str]:
    """The same with keys: `right` is one, `other` another tenant's."""
    options = [part for engine in engines for part in ("--replica", engine)]
    keys = "right,team=other"
    with launched(
        logs / "locked.log", len(engines), "serve", *options, SESSILE_AUTH__API_KEYS=keys
    ) as url:
        yield url


@pytest.fixture(scope="session")
def sessile_up(logs: Path) -> Iterator[str]:
    """The base URL of a real `sessile up`: two embedded replicas of the real small model."""
    with launched(logs / "up.log", 2, "up") as url:
        yield url
