"""A replica for tests: it speaks enough of the OpenAI API, remembers what it was asked, caches
prefixes as an engine does, and goes wrong exactly as a test says. What it says depends on the
prompt alone. As SGLang it goes on with a reply that was begun elsewhere, counts tokens (a word
each), tells its load, and stops a request by its id.

It is a real ASGI application on a real port: `async with serve_fake() as replica`, or in a process
of its own `python -m sessile.lab.fake_replica --port N`, where `POST /fake/faults` and `GET
/fake/seen` stand in for the handle. It decides what is answered; it measures nothing, which is the
mock replica's part. What it says is in `fake_replies`, how that looks in `fake_shapes`, and what
can go wrong in `fake_faults`.
"""

import argparse
import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sessile.api.messages_body import read_request
from sessile.api.messages_events import MessageStream
from sessile.lab.asgi import answer, hung_up, read_body
from sessile.lab.fake_adapters import FakeAdapters
from sessile.lab.fake_cache import PrefixCache
from sessile.lab.fake_faults import Fault, Seen, drop, stream
from sessile.lab.fake_replies import (
    begun,
    count,
    count_prompt,
    count_words,
    echo,
    reply,
    text,
    texts,
)
from sessile.lab.fake_shapes import chunks, embeddings, error, whole

__all__ = ["FakeReplica", "Fault", "Seen", "serve_fake"]

MODEL = "fake"
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_MESSAGES = "/v1/messages"


class FakeReplica:
    """The application and its handle. `always` is the fault of each request for which `fail` has
    queued none; `context_tokens` is where prompts are refused. A prefill of `tokens_per_s`, None
    for none, is in the cache once it is done. `faults` is a queue that several replicas share. A
    `deaf` one goes on when its client hangs up. Each of its `ranks` has a cache of its own; a
    request that names none goes to them in turn. One that `accepts` so many tokens a step tells so
    to who asks. One with `messages` is of a version that speaks Anthropic's Messages, as streams,
    in which it refuses, too. `url` is known once it is served.
    """

    def __init__(
        self, *, model: str = MODEL, context_tokens: int = 1_000_000, always: Fault | None = None,
        tokens_per_s: float | None = None, faults: deque[Fault] | None = None,
        deaf: bool = False, ranks: int = 1, accepts: float | None = None, messages: bool = False,
    ) -> None:  # fmt: skip
        self.model = model
        self.context_tokens = context_tokens
        self.tokens_per_s = tokens_per_s
        self.always = always or Fault()
        self.healthy = True
        self.version = "0.5.23" if messages else "fake"
        self.messages = messages
        self.url = ""
        self.server: uvicorn.Server | None = None
        self.seen: list[Seen] = []
        self.deaf = deaf
        self.accepts = accepts
        self.misses_aborts = 0
        self.used_tokens: Iterator[int] | None = None  # as it reports its memory, look by look
        self._stops: dict[str, asyncio.Event] = {}
        self._next: deque[Fault] = deque() if faults is None else faults
        self.adapters = FakeAdapters()
        self.restart(ranks)

    def fail(self, *faults: Fault) -> None:
        """Queue faults, one for each of the next requests; `Fault()` lets one through."""
        self._next.extend(faults)

    def restart(self, ranks: int) -> None:
        """Begin anew, with so many data-parallel ranks."""
        self.ranks = ranks
        self._name = secrets.token_hex(8)  # of this start
        self._caches = [PrefixCache() for _ in range(ranks)]

    def forget(self) -> None:
        """Empty the prefix cache, as a restart does."""
        for cache in self._caches:
            cache.clear()

    @property
    def connections(self) -> int:
        """Connections that are open now, idle ones too."""
        return len(self.server.server_state.connections) if self.server else 0

    async def until(self, true: Callable[["FakeReplica"], bool]) -> None:
        """Wait for something that must come true, as `lambda r: r.running == 0`."""
        while not true(self):  # noqa: ASYNC110 - it is computed, there is no one to set an event
            await asyncio.sleep(0.01)

    @property
    def running(self) -> int:
        """Requests at work now."""
        return sum(seen.outcome == "running" for seen in self.seen)

    @property
    def aborted(self) -> int:
        """Requests whose client hung up before the end."""
        return sum(seen.outcome == "aborted" for seen in self.seen)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, body = scope["path"], await read_body(receive)
        if path in _PATHS or (path == _MESSAGES and self.messages):
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            seen = Seen(path, headers, _read(body))
            seen.rank = int(headers.get("x-data-parallel-rank", len(self.seen) % self.ranks))
            self.seen.append(seen)
            await self._serve(scope, receive, send, seen)
            return
        if path in ("/health", "/ready"):
            told: tuple[int, Any] | None = (200 if self.healthy else 503, {})
        elif (page := self._page(path, body)) is not None:
            told = (200, page)
        else:
            told = await self.adapters.answer(path, body)
        await answer(send, *(told or (404, error(404, f"there is no {path}"))))

    def _page(self, path: str, body: bytes) -> dict[str, Any] | None:
        """What it tells of itself, as SGLang does, and what stands in for the handle."""
        if path.startswith("/v1/loads"):
            return {"loads": [self._load(rank) for rank in range(self.ranks)]}
        match path:
            case "/v1/models":
                card = {"id": self.model, "object": "model", "created": 1, "owned_by": "sessile"}
                return {"object": "list", "data": [card, *self.adapters.cards(self.model)]}
            case "/server_info":
                return {
                    "version": self.version, "random_seed": self._name, "dp_size": self.ranks,
                    "max_loaded_loras": self.adapters.most,
                    "speculative_algorithm": None if self.accepts is None else "NGRAM",
                }  # fmt: skip
            case "/tokenize":
                return {"count": count(_read(body))}
            case "/abort_request":
                rid = _read(body)["rid"]
                if self.misses_aborts:
                    self.misses_aborts -= 1
                elif rid in self._stops:
                    self._stops[rid].set()
                return {}
            case "/fake/seen":
                return {"running": self.running, "aborted": self.aborted, "seen": self.seen}
            case "/fake/faults":
                faults = _read(body)
                self.fail(*msgspec.convert(faults.get("next", []), list[Fault]))
                self.always = msgspec.convert(faults.get("always", self.always), Fault)
                return {}
        return None

    def _load(self, rank: int) -> dict[str, int]:
        running = sum(seen.outcome == "running" and seen.rank == rank for seen in self.seen)
        used = {} if self.used_tokens is None else {"num_used_tokens": next(self.used_tokens)}
        return {"dp_rank": rank, "num_running_reqs": running, "num_waiting_reqs": 0, **used}

    async def _serve(self, scope: Scope, receive: Receive, send: Send, seen: Seen) -> None:
        """Answer until the end or until the client is gone, whichever is first."""
        fault = self._next.popleft() if self._next else self.always
        if fault.at_rank not in (None, seen.rank):
            fault = Fault()
        answering = asyncio.ensure_future(self._answer(scope, send, seen, fault))
        stopped = self._stops[seen.body.get("rid", "")] = asyncio.Event()
        leaving = asyncio.ensure_future(stopped.wait() if self.deaf else hung_up(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
            if seen.outcome == "dropped":
                await leaving
        finally:
            if seen.outcome == "running":
                seen.outcome = "done" if answering.done() else "aborted"
            answering.cancel()
            leaving.cancel()

    async def _answer(self, scope: Scope, send: Send, seen: Seen, fault: Fault) -> None:
        asked = read_request(seen.body) if seen.path == _MESSAGES else None
        own = MessageStream(f"msg_fake{len(self.seen)}", asked) if asked is not None else None
        body, said = begun(seen.body if asked is None else asked.document)
        prompt = texts(body)
        seen.prompt_tokens = count_prompt(prompt) + count_words(said)
        if fault.hang:
            await asyncio.Event().wait()
        if fault.drop_after == 0:
            drop(scope, seen)
            return
        delta, finish = reply(body, said)
        if "content" in delta and not echo(body).startswith(said):
            fault = Fault(status=400)  # it is asked to go on with what it would never have said
        lacks = self.adapters.lacks(body)
        if not 0 <= seen.rank < self.ranks:
            lacks = f"there is no rank {seen.rank}"
        if lacks is not None:
            await answer(send, 400, error(400, lacks))
            return
        status = fault.status or (400 if seen.prompt_tokens > self.context_tokens else None)
        if status is not None:
            if own is not None and status < 500:
                await stream(scope, send, seen, Fault(), [error(status)], own)
            else:
                await answer(send, status, error(status))
            return
        space, cache = str(body.get("lora_path") or ""), self._caches[seen.rank]
        seen.cached_tokens = cache.match(space, prompt, seen.prompt_tokens)
        if seen.path == "/v1/embeddings":
            await answer(send, 200, embeddings(self.model, body, seen))
            return
        if self.tokens_per_s is not None:
            await asyncio.sleep((seen.prompt_tokens - seen.cached_tokens) / self.tokens_per_s)
        cache.insert(space, [*prompt, text({"role": "assistant", **delta})])
        head = {"id": f"fake-{len(self.seen)}", "created": 1, "model": self.model}
        if body.get("stream"):
            options = body.get("stream_options") or {}
            made = chunks(
                head, seen, delta, finish,
                accepts=self.accepts if body.get("return_spec_tokens_details") else None,
                usage=asked is not None or bool(options.get("include_usage")),
            )  # fmt: skip
            await stream(scope, send, seen, fault, made, own)
            return
        await asyncio.sleep(fault.pause_s)
        if fault.drop_after is not None:
            drop(scope, seen)
        else:
            await answer(send, 200, whole(head, seen, delta, finish))


def _read(body: bytes) -> dict[str, Any]:
    return msgspec.json.decode(body, type=dict[str, Any])


class _Droppable(HttpToolsProtocol):
    """uvicorn's protocol, with its connection's abort as an extension of the scope."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"sessile.abort": {"abort": self.transport.abort}}


def _server(replica: FakeReplica, port: int) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            replica, host="127.0.0.1", port=port, http=_Droppable, ws="none", lifespan="off",
            access_log=False, log_config=None, timeout_graceful_shutdown=1,
        )
    )  # fmt: skip


@asynccontextmanager
async def serve_fake(**script: Any) -> AsyncIterator[FakeReplica]:
    """Serve a `FakeReplica(**script)` on a free loopback port of this loop until the block ends."""
    replica = FakeReplica(**script)
    server = replica.server = _server(replica, 0)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.005)
    try:
        replica.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield replica
    finally:
        server.should_exit = True
        await serving


def main() -> None:
    """Serve one on `--port` until a signal; `--always` is a fault in JSON."""
    parser = argparse.ArgumentParser(prog="python -m sessile.lab.fake_replica")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--context", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--always", type=json.loads, default={})
    given = parser.parse_args()
    replica = FakeReplica(
        model=given.model,
        context_tokens=given.context,
        ranks=given.ranks,
        always=msgspec.convert(given.always, Fault),
    )
    _server(replica, given.port).run()


if __name__ == "__main__":
    main()
