"""Replicas that cost little and take their time: the simulator's engine, served over HTTP.

`python -m sessile.lab.timed_replica '{"kv_tokens": 60000}' PORT PORT ...` serves one on each port,
all from one process; the JSON is a `Hardware`. Each keeps a prefix cache of bounded memory,
prefills one prompt after another, and says of itself what SGLang does. The text of its answers
means nothing.
"""

import asyncio
import sys
from itertools import count
from typing import Any

import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send

from sessile.lab.asgi import EVENTS, answer, event, finish, hung_up, read_body, start, write
from sessile.lab.sim_engine import Hardware, Request, SimEngine
from sessile.sessions.prefix import BLOCK_BYTES, read_prompt

MODEL = "timed"
_BYTES_PER_TOKEN = 4
_BLOCK_TOKENS = BLOCK_BYTES // _BYTES_PER_TOKEN


class TimedReplica:
    """One replica, an ASGI application. Lives on one loop, whose time is the engine's."""

    def __init__(self, hardware: Hardware, name: str) -> None:
        self._engine = SimEngine(hardware, _BLOCK_TOKENS, self._first, self._ended)
        self._name = name
        self._ids = count()
        self._steps: dict[str, asyncio.Queue[Request | None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            told = self._told(scope["path"])
            await answer(send, 404 if told is None else 200, told or {})
            return
        document = msgspec.json.decode(await read_body(receive))
        if scope["path"] == "/v1/chat/completions":
            await self._chat(document, receive, send)
        else:  # an abort; the closed connection says it too
            await answer(send, 200, {})

    def _told(self, path: str) -> dict[str, Any] | None:
        engine = self._engine
        load = {
            "num_running_reqs": engine.running,
            "num_waiting_reqs": engine.waiting,
            "num_used_tokens": engine.held_tokens,
            "max_total_num_tokens": engine.hardware.kv_tokens,
            "max_running_requests": engine.hardware.slots,
        }
        pages: dict[str, dict[str, Any]] = {
            "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]},
            "/server_info": {"version": "timed", "random_seed": self._name},
            "/ready": {},
            "/v1/loads": {"loads": [load]},
        }
        return pages.get(path)

    async def _chat(self, document: dict[str, Any], receive: Receive, send: Send) -> None:
        prompt = read_prompt(document, "")
        request = Request(
            f"r{next(self._ids)}", prompt.blocks, prompt.blocks,
            max(1, prompt.size // _BYTES_PER_TOKEN), document.get("max_tokens") or 16,
        )  # fmt: skip
        steps = self._steps[request.id] = asyncio.Queue()
        now = asyncio.get_running_loop().time()
        self._engine.send(request, now)
        self._watch()
        work = asyncio.create_task(_play(request, steps, bool(document.get("stream")), send))
        gone = asyncio.create_task(hung_up(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            gone.cancel()
            if self._steps.pop(request.id, None) is not None:
                self._engine.cancel(request, asyncio.get_running_loop().time())
                self._watch()

    def _first(self, request: Request, now: float) -> None:
        self._steps[request.id].put_nowait(request)

    def _ended(self, request: Request, now: float) -> None:
        self._steps.pop(request.id).put_nowait(None)

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        when = self._engine.next_at()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(when, self._advance, when) if when is not None else None

    def _advance(self, when: float) -> None:
        self._timer = None
        # NOTE: a loop's timers may come a hair before their time.
        self._engine.advance(max(when, asyncio.get_running_loop().time()))
        self._watch()


async def _play(
    request: Request, steps: "asyncio.Queue[Request | None]", stream: bool, send: Send
) -> None:
    head = {"id": request.id, "created": 1, "model": MODEL}
    usage = {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": request.output_tokens,
        "total_tokens": request.prompt_tokens + request.output_tokens,
    }
    await steps.get()
    usage_now = {**usage, "prompt_tokens_details": {"cached_tokens": request.cached_tokens}}
    if not stream:
        await steps.get()
        message = {"role": "assistant", "content": "token"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        whole = {**head, "object": "chat.completion", "choices": choices, "usage": usage_now}
        await answer(send, 200, whole)
        return
    await start(send, 200, EVENTS)
    head["object"] = "chat.completion.chunk"
    delta = {"role": "assistant", "content": "token"}
    first = [{"index": 0, "delta": delta, "finish_reason": None}]
    await write(send, event({**head, "choices": first}))
    await steps.get()
    last = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    await write(send, event({**head, "choices": last}))
    await finish(send, event({**head, "choices": [], "usage": usage_now}) + b"data: [DONE]\n\n")


async def _main(hardware: Hardware, ports: list[int]) -> None:
    """Serve until a signal ends one of them."""
    servers = []
    for port in ports:
        config = uvicorn.Config(
            TimedReplica(hardware, f"timed-{port}"), port=port, lifespan="off", access_log=False,
            log_config=None, timeout_keep_alive=75, timeout_graceful_shutdown=1,
        )  # fmt: skip
        servers.append(asyncio.create_task(uvicorn.Server(config).serve()))
    await asyncio.wait(servers, return_when=asyncio.FIRST_COMPLETED)


if __name__ == "__main__":
    asyncio.run(
        _main(msgspec.json.decode(sys.argv[1], type=Hardware), [int(p) for p in sys.argv[2:]])
    )
