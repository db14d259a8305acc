"""The Responses API over HTTP, and the one way that a response is made, whoever asks for it.

A response is a turn of the flow like any other: its chat stream is read into events, and its items
are stored with it. What a request means is `responses_body`'s and `responses_items`', what is told
of the answer `responses_events`'; the WebSocket is served by `responses_ws`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import time
from typing import Any, Protocol

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from sessile.accounts import written
from sessile.api.auth import Authenticator
from sessile.api.chat import decode_object, header, idempotency_key, read_body, send_error
from sessile.api.comparison import diagnosed, find_compared
from sessile.api.hang_up import HangUp
from sessile.api.mcp_client import McpServers
from sessile.api.responses_body import Asked, read_request
from sessile.api.responses_context import Contexts, read_turn
from sessile.api.responses_events import Event, ResponseStream
from sessile.api.responses_steps import Steps
from sessile.api.responses_stored import Surface, stored_routes
from sessile.api.responses_ws import Sockets
from sessile.api.wire import engine_error
from sessile.errors import (
    InvalidRequest,
    NotSupported,
    PromptTooLong,
    ResponseNotFound,
    SessileError,
    StoreError,
)
from sessile.flow import Flow
from sessile.router.pool import Pool
from sessile.sessions.store import Store
from sessile.sessions.transcript import Link, Transcripts, new_response_id
from sessile.settings import Settings
from sessile.turn import Transcript, Turn

log = logging.getLogger("sessile.api")

_SSE_HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]

Headers = Sequence[tuple[bytes, bytes]]


class Audience(Protocol):
    """Who is told of a response as it is made. Its methods may wait: the engine then waits too."""

    async def open(self, turn: Turn) -> None:
        """The answer has begun; called once, before any event."""

    async def tell(self, events: list[Event]) -> None:
        """The next events, in their order."""


class Made(msgspec.Struct, frozen=True):
    """A response that has ended, and why it failed if it did."""

    response: dict[str, Any]
    error: SessileError | None


class Responses:
    """Makes responses. One a router, made by `responses_routes`."""

    def __init__(
        self, flow: Flow, pool: Pool, store: Store, settings: Settings,
        clock: Callable[[], float] = time,
    ) -> None:  # fmt: skip
        self._flow = flow
        self._pool = pool
        self._store = store
        self._settings = settings
        self._clock = clock
        self._transcripts = Transcripts(store)
        self._contexts = Contexts(store, self._transcripts, settings.sessions)

    async def make(
        self,
        tenant: str,
        headers: Headers,
        body: dict[str, Any],
        audience: Audience,
        *,
        once: str | None = None,
        stream_id: str | None = None,
        stop: Callable[[], bool] | None = None,
        forks: bool = False,
        remember: bool = False,
    ) -> Made:
        """Run the turn that `body` asks for, telling `audience` of it to the last event.

        Raises a `SessileError` while nothing has been told; after that a failure is an event like
        others. The last event is told when the turn has been stored, so that its successor may
        come at once, at any router. Cancelling stops the engine, and stores nothing.

        Once `stop` says so the response is ended as steered, where that is safe. One that `forks`
        is a session of its own, started by that of its parent. With `remember` a response that is
        not stored can be continued at this router, until it is forgotten.

        An engine is called once, and again after each reply that called MCP tools: each call is a
        turn of the flow, under the one id of the response.
        """
        asked = read_request(body)
        id = new_response_id()
        stream: ResponseStream | None = None
        failure: SessileError | None = None
        session: str | None = None
        told = False
        comparison = asked.cache.comparison
        compared = None
        if comparison is not None:
            compared = await find_compared(self._store, self._transcripts, tenant, comparison)
        async with (
            self._contexts.writing(tenant, asked, id),
            McpServers(asked.toolset.servers, self._settings) as servers,
        ):
            asked, context = await self._contexts.find(tenant, asked)
            request = read_turn(tenant, headers, body, asked, context, id, forks=forks)
            steps = Steps(self._flow, self._pool, servers, asked, context, request)
            await steps.begin()
            while stream is None or not stream.ended:
                output = steps.made if stream is None else stream.response["output"]
                request = steps.next(output, session)
                request.idempotency_key = None if told else once
                try:
                    async with self._flow.serve_turn(request) as turn:
                        if turn.status >= 400:
                            raise engine_error(turn.status, await _rest(turn, b""))
                        events: list[Event] = []
                        if stream is None:
                            session = turn.session
                            stream = self._stream(asked, turn, steps, stream_id)
                            events = stream.start()
                            for item in steps.made:
                                stream.place(item, events)
                        chunk = await turn.read()
                        if turn.content_type.startswith(b"text/event-stream"):
                            stream.feed(chunk, events)
                        else:
                            stream.feed_chunk(await _rest(turn, chunk), events)
                        if not told:
                            await audience.open(turn)
                            told = True
                        await audience.tell(events)
                        events = []
                        calls: list[dict[str, Any]] = []
                        try:
                            while chunk := await turn.read():
                                stream.feed(chunk, events)
                                if events:
                                    await audience.tell(events)
                                    events = []
                                if stop is not None and stop() and stream.may_stop:
                                    turn.receipt.outcome = "steered"
                                    events = stream.stop("steered", self._clock())
                                    break
                            calls = stream.pause(events)
                            if calls and stream.waits:
                                await _run(steps, calls, stream, events, audience)
                                events = []
                            if not stream.ended and (not calls or stream.waits):
                                if comparison is not None:
                                    found = diagnosed(turn, stream.response, compared)
                                    stream.response["prompt_cache_diagnostics"] = found
                                events += stream.finish(self._clock())
                        except SessileError as error:
                            turn.receipt.outcome = error.code
                            failure = error
                            events += stream.fail(error, self._clock())
                        if stream.ended and asked.store:
                            self._keep(turn, asked, stream.response)
                        elif stream.ended and remember:
                            self._remember(turn, asked, stream.response)
                    if not stream.ended:
                        await _run(steps, calls, stream, events, audience)
                        events = []
                        stream.go_on()
                except SessileError as error:
                    if not told:
                        if isinstance(error, PromptTooLong) and steps.shorten():
                            continue
                        raise
                    # A call after the first could not even begin, or was refused.
                    assert stream is not None
                    failure = error
                    events = stream.fail(error, self._clock())
                    if asked.store:
                        await self._keep_failed(turn, asked, stream.response, error)
            await self._contexts.append(tenant, asked, stream.response)
            await audience.tell(events)
        return Made(stream.response, failure)

    @property
    def surface(self) -> Surface:
        """What else there is to be done with responses than to make them."""
        return Surface(self._flow, self._pool, self._store, self._transcripts, self._contexts)

    async def find(self, tenant: str, response: str) -> dict[str, Any]:
        """A stored response; raises `ResponseNotFound`."""
        record = await self._store.get_turn(tenant, response)
        if record is None or record.response is None:
            raise ResponseNotFound(f"there is no stored response {response!r}", param="response_id")
        return record.response

    def forget(self, tenant: str, response: str) -> None:
        """A response that was remembered without being stored can be continued no longer."""
        self._transcripts.forget(tenant, response)

    def _stream(
        self, asked: Asked, turn: Turn, steps: Steps, stream_id: str | None
    ) -> ResponseStream:
        response = {
            **asked.response,
            "id": turn.id,
            "created_at": int(self._clock()),
            "model": turn.request.model,
        }
        return ResponseStream(
            response, stream_id, steps.called,
            seals=asked.seals_reasoning, silent=not asked.cache.generate,
        )  # fmt: skip

    def _keep(self, turn: Turn, asked: Asked, response: dict[str, Any]) -> None:
        """Have the turn stored with what it adds to its conversation."""
        turn.transcript = Transcript(
            parent=asked.previous,
            instructions=asked.instructions,
            input_items=asked.items,
            output_items=response["output"],
            response=response,
        )
        self._remember(turn, asked, response)

    def _remember(self, turn: Turn, asked: Asked, response: dict[str, Any]) -> None:
        """Let its successor find it without the store."""
        if response["status"] != "failed":
            link = Link(
                turn.session, turn.receipt.model, asked.previous, asked.items, response["output"],
                asked.conversation,
            )  # fmt: skip
            self._transcripts.remember(turn.request.tenant, turn.id, link)

    async def _keep_failed(
        self, turn: Turn, asked: Asked, response: dict[str, Any], error: SessileError
    ) -> None:
        """Store a response whose last call of an engine never became a turn; `turn` is the one
        before it, which has been recorded."""
        self._keep(turn, asked, response)
        turn.receipt.outcome = error.code
        end, record = written(turn, None)
        end = msgspec.structs.replace(
            end, fence=None, prompt_tokens=None, cached_tokens=None, completion_tokens=None
        )
        try:
            await self._store.commit_turn(end, record)
        except StoreError as lost:
            log.warning("response was not stored turn=%s why=%r", turn.id, lost.message)


def responses_routes(
    flow: Flow, pool: Pool, store: Store, auth: Authenticator, settings: Settings
) -> APIRouter:
    """`/v1/responses` over HTTP and as a WebSocket."""
    routes = APIRouter(tags=["responses"])
    responses = Responses(flow, pool, store, settings)
    routes.include_router(stored_routes(responses.surface, auth, settings))
    longest = settings.server.max_body_bytes

    @routes.post("/v1/responses")
    async def create(request: Request) -> Response:
        """Make a response, as one JSON object or as a stream of events."""
        headers: Headers = request.scope["headers"]
        tenant = auth.tenant(header(headers, b"authorization"))
        body = decode_object(await read_body(request.scope, request.receive, longest))
        for name in ("stream_id", "generate"):
            if name in body:
                raise InvalidRequest(f"{name} belongs to the WebSocket", param=name)
        return _Exchange(responses, tenant, headers, body)

    @routes.get("/v1/responses/{response_id}")
    async def retrieve(request: Request, response_id: str, stream: bool = False) -> Response:
        """A stored response."""
        tenant = auth.tenant(header(request.scope["headers"], b"authorization"))
        if stream:
            raise NotSupported("a stored response cannot be streamed again", param="stream")
        found = await responses.find(tenant, response_id)
        return Response(msgspec.json.encode(found), media_type="application/json")

    routes.add_websocket_route(
        "/v1/responses",
        Sockets(responses, auth, settings.websocket, settings.server.cors_origins),  # type: ignore[arg-type]
    )
    return routes


class _Exchange(Response):
    """One response over HTTP, told to the client as it is made. A client that hangs up cancels
    it."""

    def __init__(
        self, responses: Responses, tenant: str, headers: Headers, body: dict[str, Any]
    ) -> None:
        super().__init__()
        self._responses = responses
        self._tenant = tenant
        self._request_headers = headers
        self._document = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with HangUp(receive, asyncio.get_running_loop()):
            streamed = self._document.get("stream") is True
            audience = _Streaming(send) if streamed else _Waiting()
            try:
                made = await self._responses.make(
                    self._tenant, self._request_headers, self._document, audience,
                    once=idempotency_key(self._request_headers),
                )  # fmt: skip
                if streamed:
                    await send({"type": "http.response.body", "body": b""})
                elif made.error is not None:
                    await send_error(send, made.error)
                else:
                    await _send_json(send, made.response, audience.headers)
            except SessileError as error:
                # NOTE: raised only while nothing has been told, so the status line is still ours.
                await send_error(send, error)


class _Waiting:
    """A client that wants the whole response at once."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    async def open(self, turn: Turn) -> None:
        self.headers = turn.headers()

    async def tell(self, events: list[Event]) -> None:
        pass


class _Streaming(_Waiting):
    """A client that reads server-sent events."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    async def open(self, turn: Turn) -> None:
        await self._send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [*_SSE_HEADERS, *turn.headers()],
            }
        )

    async def tell(self, events: list[Event]) -> None:
        told = [b"event: %b\ndata: %b\n\n" % (event.type.encode(), event.body) for event in events]
        await self._send({"type": "http.response.body", "body": b"".join(told), "more_body": True})


async def _run(
    steps: Steps,
    calls: list[dict[str, Any]],
    stream: ResponseStream,
    events: list[Event],
    audience: Audience,
) -> None:
    """Tell of the MCP calls that the model has made, run them, and tell what came of them."""
    await audience.tell(events)
    await steps.run(calls)
    settled: list[Event] = []
    for call in calls:
        stream.settle(call, settled)
    await audience.tell(settled)


async def _rest(turn: Turn, start: bytes) -> bytes:
    parts = [start]
    while chunk := await turn.read():
        parts.append(chunk)
    return b"".join(parts)


async def _send_json(send: Send, body: dict[str, Any], headers: Headers) -> None:
    data = msgspec.json.encode(body)
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(data)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": data})
