"""A replica for tests: it speaks enough of the OpenAI API, remembers what it was asked, caches
prefixes as an engine does, and goes wrong exactly as a test says. What it says depends on the
prompt alone. As SGLang it goes on with a reply that was begun elsewhere, counts tokens (a word
each), tells its load, and stops a request by its id.

It is a real ASGI application on a real port: `async with serve_fake() as replica`, or in a process
of its own `python -m sessile.lab.fake_replica --port N`, where `POST /fake/faults` and `GET
/fake/seen` stand in for the handle. It decides what is answered; it measures nothing, which is the
mock replica's part.
"""

import argparse
import asyncio
import json
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any

import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sessile.api.messages_body import read_request
from sessile.api.messages_events import MessageStream
from sessile.api.responses_sequence import Event
from sessile.errors import ReplicaRefused
from sessile.lab.fake_adapters import FakeAdapters

MODEL = "fake"
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_MESSAGES = "/v1/messages"
_CHARS_PER_TOKEN = 4
_ECHO = "echo: "
_CALL = re.compile(r"call (\w+) (\{.*\})(?: (\d+) times)?", re.DOTALL)
_GARBAGE = b"data: {not json\n\n: nothing\n\nevent\n\n"
_WORDS = {
    400: "This model's maximum context length is exceeded.",
    429: "Too many requests.",
    500: "The engine broke.",
    503: "The engine is not available.",
}


class Fault(msgspec.Struct, kw_only=True, frozen=True):
    """What goes wrong with one request. Events are counted from the first of the stream.

    `status` is answered instead of a reply (400 as an engine's refusal of a prompt that does not
    fit). `hang` answers nothing until the client hangs up. `drop_after` cuts the TCP connection
    after so many events, 0 before the first byte. `garbage_after` sends bytes there that are no
    event stream, and goes on. `error_after` ends the stream there with the error of an
    engine whose core has died. `pause_s` is waited before each event, or before a whole answer,
    `linger_s` behind the last event, before the stream ends. With `at_rank`, only there.
    """

    status: int | None = None
    hang: bool = False
    drop_after: int | None = None
    garbage_after: int | None = None
    error_after: int | None = None
    pause_s: float = 0.0
    linger_s: float = 0.0
    at_rank: int | None = None


class Seen(msgspec.Struct):
    """One request as it arrived, and what became of it: running, done, aborted or dropped."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    outcome: str = "running"
    rank: int = 0


class FakeReplica:
    """The application and its handle. `always` is the fault of each request for which `fail` has
    queued none; `context_tokens` is where prompts are refused. A prefill of `tokens_per_s`, None
    for none, is in the cache once it is done. `faults` is a queue
    that several replicas share. A `deaf` one goes on when its client hangs up. Each of its `ranks`
    has a cache of its own; a request that names none goes to them in turn. One that `accepts` so
    many tokens a step tells so to who asks. One with `messages` is of a version that speaks
    Anthropic's Messages, as streams, in which it refuses, too. `url` is known once it is served.
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
        self._cached: list[set[bytes]] = [set() for _ in range(ranks)]

    def forget(self) -> None:
        """Empty the prefix cache, as a restart does."""
        for cached in self._cached:
            cached.clear()

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
        path, body = scope["path"], await _body(receive)
        if path in ("/health", "/ready"):
            await _send(send, 200 if self.healthy else 503, {})
        elif path == "/v1/models":
            cards = [self._card(), *self.adapters.cards(self.model)]
            await _send(send, 200, {"object": "list", "data": cards})
        elif path == "/server_info":
            info = {"version": self.version, "random_seed": self._name, "dp_size": self.ranks}
            algorithm = None if self.accepts is None else "NGRAM"
            more = {"max_loaded_loras": self.adapters.most, "speculative_algorithm": algorithm}
            await _send(send, 200, info | more)
        elif path.startswith("/v1/loads"):
            await _send(send, 200, {"loads": [self._load(rank) for rank in range(self.ranks)]})
        elif path == "/tokenize":
            asked = msgspec.json.decode(body, type=dict[str, Any])
            await _send(send, 200, {"count": _count(asked)})
        elif path == "/abort_request":
            rid = msgspec.json.decode(body, type=dict[str, Any])["rid"]
            if self.misses_aborts:
                self.misses_aborts -= 1
            elif rid in self._stops:
                self._stops[rid].set()
            await _send(send, 200, {})
        elif path == "/fake/seen":
            await _send(send, 200, {"running": self.running, "aborted": self.aborted,
                                    "seen": self.seen})  # fmt: skip
        elif path == "/fake/faults":
            faults = msgspec.json.decode(body, type=dict[str, Any])
            self.fail(*msgspec.convert(faults.get("next", []), list[Fault]))
            self.always = msgspec.convert(faults.get("always", self.always), Fault)
            await _send(send, 200, {})
        elif path in _PATHS or (path == _MESSAGES and self.messages):
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            seen = Seen(path, headers, msgspec.json.decode(body, type=dict[str, Any]))
            seen.rank = int(headers.get("x-data-parallel-rank", len(self.seen) % self.ranks))
            self.seen.append(seen)
            await self._serve(scope, receive, send, seen)
        elif (told := await self.adapters.answer(path, body)) is not None:
            await _send(send, *told)
        else:
            await _send(send, 404, _error(404, f"there is no {path}"))

    async def _serve(self, scope: Scope, receive: Receive, send: Send, seen: Seen) -> None:
        """Answer until the end or until the client is gone, whichever is first."""
        fault = self._next.popleft() if self._next else self.always
        if fault.at_rank not in (None, seen.rank):
            fault = Fault()
        answering = asyncio.ensure_future(self._answer(scope, send, seen, fault))
        stopped = self._stops[seen.body.get("rid", "")] = asyncio.Event()
        leaving = asyncio.ensure_future(stopped.wait() if self.deaf else _gone(receive))
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
        body, said = _begun(seen.body if asked is None else asked.document)
        prompt = _prompt(body)
        seen.prompt_tokens = max(1, sum(map(len, prompt)) // _CHARS_PER_TOKEN) + _words(said)
        if fault.hang:
            await asyncio.Event().wait()
        if fault.drop_after == 0:
            _drop(scope, seen)
            return
        delta, finish = _reply(body, said)
        if "content" in delta and not _echo(body).startswith(said):
            fault = Fault(status=400)  # it is asked to go on with what it would never have said
        if not 0 <= seen.rank < self.ranks:
            await _send(send, 400, _error(400, f"there is no rank {seen.rank}"))
            return
        if (lacks := self.adapters.lacks(body)) is not None:
            await _send(send, 400, _error(400, lacks))
            return
        status = fault.status or (400 if seen.prompt_tokens > self.context_tokens else None)
        if status is not None:
            refusal = _error(status, _WORDS.get(status, "It went wrong."))
            if own is not None and status < 500:
                await self._stream(scope, send, seen, Fault(), [refusal], own)
            else:
                await _send(send, status, refusal)
            return
        space = str(body.get("lora_path") or "")
        cached = self._cached[seen.rank]
        seen.cached_tokens = _match(cached, space, prompt, seen.prompt_tokens)
        if seen.path == "/v1/embeddings":
            await _send(send, 200, self._embeddings(body, seen))
            return
        if self.tokens_per_s is not None:
            await asyncio.sleep((seen.prompt_tokens - seen.cached_tokens) / self.tokens_per_s)
        cached.update(_keys(space, [*prompt, _text({"role": "assistant", **delta})]))
        chat = seen.path != "/v1/completions"
        pieces = _pieces(delta)
        usage = _usage(seen, len(pieces))
        if not body.get("stream"):
            await asyncio.sleep(fault.pause_s)
            if fault.drop_after is not None:
                _drop(scope, seen)
                return
            whole = {"message": {"role": "assistant", "content": None, **delta}}
            choice = _choice(whole if chat else {"text": delta.get("content", "")}, finish)
            kind = "chat.completion" if chat else "text_completion"
            await _send(send, 200, {**self._head(kind), "choices": [choice], "usage": usage})
            return
        head = self._head("chat.completion.chunk" if chat else "text_completion")
        choices = [
            _choice({"delta": piece} if chat else {"text": piece.get("content", "")}, None)
            for piece in pieces
        ]
        choices.append(_choice({"delta": {}} if chat else {"text": ""}, finish))
        chunks = [{**head, "choices": [choice]} for choice in choices]
        if self.accepts is not None and body.get("return_spec_tokens_details"):
            details = {"spec_tokens_details": {"spec_accept_length": self.accepts}}
            chunks.append({**head, "choices": [], "sglext": details})
        if (body.get("stream_options") or {}).get("include_usage") or asked is not None:
            chunks.append({**head, "choices": [], "usage": usage})
        await self._stream(scope, send, seen, fault, chunks, own)

    async def _stream(
        self, scope: Scope, send: Send, seen: Seen, fault: Fault, chunks: list[dict[str, Any]],
        own: MessageStream | None,
    ) -> None:  # fmt: skip
        begun = own.start() if own is not None else []
        end = b"data: [DONE]\n\n" if own is None else b""
        await _start(send, 200, b"text/event-stream")
        for number, chunk in enumerate(chunks):
            await asyncio.sleep(fault.pause_s)
            if number == fault.drop_after:
                _drop(scope, seen)
                return
            if number == fault.error_after:
                error = {"error": {"message": "the engine core died", "code": 500}}
                chunk = error
            broken = number == fault.error_after
            data = b"data: " + msgspec.json.encode(chunk) + b"\n\n"
            if own is not None:
                try:
                    own.feed(data, begun)
                except ReplicaRefused as error:
                    begun += own.fail(error)
                    broken = True
                data, begun = _told(begun), []
            if number == fault.garbage_after:
                data = _GARBAGE + data
            await send({"type": "http.response.body", "body": data, "more_body": True})
            if broken:
                break
        else:
            end = _told(own.finish()) if own is not None else end
        await send({"type": "http.response.body", "body": end, "more_body": True})
        if fault.linger_s:
            await asyncio.sleep(fault.linger_s)
        await send({"type": "http.response.body", "body": b""})

    def _load(self, rank: int) -> dict[str, int]:
        running = sum(seen.outcome == "running" and seen.rank == rank for seen in self.seen)
        return {"dp_rank": rank, "num_running_reqs": running, "num_waiting_reqs": 0}

    def _embeddings(self, body: dict[str, Any], seen: Seen) -> dict[str, Any]:
        given = body.get("input") or ""
        texts = given if isinstance(given, list) else [given]
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": [byte / 255 for byte in _digest(b"", str(text))[:8]],
            }
            for index, text in enumerate(texts)
        ]
        return {"object": "list", "model": self.model, "data": data, "usage": _usage(seen, 0)}

    def _card(self) -> dict[str, Any]:
        return {"id": self.model, "object": "model", "created": 1, "owned_by": "sessile"}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"fake-{len(self.seen)}", "object": kind, "created": 1, "model": self.model}


def _told(events: list[Event]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event.type.encode(), event.body) for event in events
    )


def _match(cached: set[bytes], space: str, prompt: list[str], prompt_tokens: int) -> int:
    """Tokens of the longest run of leading messages that was served before in that `space`; as an
    engine, at least one token is always computed."""
    found = size = 0
    for text, key in zip(prompt, _keys(space, prompt), strict=True):
        size += len(text)
        if key in cached:
            found = size // _CHARS_PER_TOKEN
    return min(found, prompt_tokens - 1)


def _prompt(body: dict[str, Any]) -> list[str]:
    if "messages" in body:
        return [_text(message) for message in body["messages"]]
    return [str(body.get("prompt") or body.get("input") or "")]


def _text(message: dict[str, Any]) -> str:
    """A message as the cache sees it: without the ids that differ from call to call."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    named = "".join(f"{call['name']}{call['arguments']}" for call in calls)
    return f"{message.get('role')}: {content}{named}"


def _begun(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The request without the reply that it begins, and that reply: a last message that is to be
    continued, or what a text prompt repeats of itself."""
    messages = body.get("messages")
    if messages and body.get("continue_final_message") is True:
        return {**body, "messages": messages[:-1]}, messages[-1]["content"]
    prompt = body.get("prompt")
    if isinstance(prompt, str) and (at := prompt.rfind(_ECHO)) > 0:
        asked, said = prompt[:at], prompt[at:]
        if (_ECHO + asked).startswith(said):
            return {**body, "prompt": asked}, said
    return body, ""


def _echo(body: dict[str, Any]) -> str:
    """All that could be said."""
    last = (body.get("messages") or [{"role": "user", "content": body.get("prompt")}])[-1]
    return _ECHO + _text(last).partition(": ")[2]


def _words(text: str) -> int:
    return len(text.split(" ")) if text else 0


def _count(body: dict[str, Any]) -> int:
    """The tokens of a text, or of a chat's prompt."""
    if "prompt" in body:
        return _words(body["prompt"])
    return max(1, sum(map(len, _prompt(body))) // _CHARS_PER_TOKEN)


def _reply(body: dict[str, Any], said: str) -> tuple[dict[str, Any], str]:
    """What is answered after what was `said` of it, and why it ends: a function call if the user
    asks to `call NAME {json}`, or so `N times`, each after the last one's result, and there are
    tools; else an echo of at most `max_tokens` words."""
    whole = _echo(body)
    messages = body.get("messages") or [{"role": "user", "content": body.get("prompt")}]
    results = 0  # messages since the user spoke
    while results < len(messages) and messages[-1 - results].get("role") in ("tool", "assistant"):
        results += 1
    asked = messages[-1 - results] if results < len(messages) else {}
    called = sum(message.get("role") == "tool" for message in messages[len(messages) - results :])
    call = _CALL.search(_text(asked)) if asked.get("role") == "user" else None
    if call and body.get("tools") and called < int(call[3] or 1):
        function = {"name": call[1], "arguments": call[2]}
        name = f"call_{call[1]}_{called}" if called else f"call_{call[1]}"
        made = {"index": 0, "id": name, "type": "function", "function": function}
        return {"tool_calls": [made]}, "tool_calls"
    words = whole[len(said) :].split(" ")
    most = body.get("max_tokens") or body.get("max_completion_tokens") or 64
    if said:
        most += 1  # the first of them is what was before the first space: nothing
    return {"content": " ".join(words[:most])}, "stop" if len(words) <= most else "length"


def _pieces(delta: dict[str, Any]) -> list[dict[str, Any]]:
    """The deltas of a streamed reply: a word each, or the call's name and its arguments."""
    if "content" in delta:
        words = delta["content"].split(" ")
        pieces = [word if n == 0 else f" {word}" for n, word in enumerate(words)]
        return [{"content": piece} for piece in pieces if piece]
    call = delta["tool_calls"][0]
    function = call["function"]
    return [
        {"tool_calls": [{**call, "function": {"name": function["name"], "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": function["arguments"]}}]},
    ]


def _choice(content: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "finish_reason": finish}


def _usage(seen: Seen, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": seen.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": seen.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": seen.cached_tokens},
    }


def _error(status: int, message: str) -> dict[str, Any]:
    code = "context_length_exceeded" if status == 400 else None
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _keys(space: str, texts: list[str]) -> list[bytes]:
    keys, key = [], space.encode()
    for text in texts:
        key = _digest(key, text)
        keys.append(key)
    return keys


def _digest(before: bytes, text: str) -> bytes:
    return blake2b(before + text.encode(), digest_size=16).digest()


def _drop(scope: Scope, seen: Seen) -> None:
    seen.outcome = "dropped"
    scope["extensions"]["sessile.abort"]["abort"]()


async def _body(receive: Receive) -> bytes:
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    return b"".join(parts)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, content_type: bytes) -> None:
    headers = [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send(send: Send, status: int, body: Any) -> None:
    await _start(send, status, b"application/json")
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})


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
