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

from sessile.api.auth import Authenticator
from sessile.api.chat import decode_object, header, idempotency_key, read_body, send_error
from sessile.api.comparison import diagnosed, find_compared
from sessile.api.hang_up import HangUp
from sessile.api.responses_body import Asked, chat_body, read_request
from sessile.api.responses_events import Event, ResponseStream
from sessile.api.responses_ws import Sockets
from sessile.api.wire import engine_error
from sessile.errors import InvalidRequest, NotSupported, ResponseNotFound, SessileError
from sessile.flow import Flow
from sessile.prewarm import LAST
from sessile.sessions.hints import read_hints
from sessile.sessions.identity import SessionClaims, read_claims
from sessile.sessions.store import Store
from sessile.sessions.transcript import Link, Transcripts, new_response_id
from sessile.settings import Settings
from sessile.turn import Transcript, Turn, TurnRequest

log = logging.getLogger("sessile.api")

_CHAT = "/v1/chat/completions"
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

    def __init__(self, flow: Flow, store: Store, clock: Callable[[], float] = time) -> None:
        self._flow = flow
        self._store = store
        self._clock = clock
        self._transcripts = Transcripts(store)

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
        """
        asked = read_request(body)
        request = await self._request(tenant, headers, body, asked, forks)
        request.idempotency_key = once
        comparison = asked.cache.comparison
        compared = None
        if comparison is not None:
            compared = await find_compared(self._store, self._transcripts, tenant, comparison)
        failure: SessileError | None = None
        async with self._flow.serve_turn(request) as turn:
            if turn.status >= 400:
                raise engine_error(turn.status, await _rest(turn, b""))
            stream = ResponseStream(
                {
                    **asked.response,
                    "id": turn.id,
                    "created_at": int(self._clock()),
                    "model": request.model,
                },
                stream_id,
                silent=not asked.cache.generate,
            )
            events = stream.start()
            chunk = await turn.read()
            if turn.content_type.startswith(b"text/event-stream"):
                stream.feed(chunk, events)
            else:
                stream.feed_chunk(await _rest(turn, chunk), events)
            await audience.open(turn)
            await audience.tell(events)
            events = []
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
                else:
                    if comparison is not None:
                        found = diagnosed(turn, stream.response, compared)
                        stream.response["prompt_cache_diagnostics"] = found
                    events = stream.finish(self._clock())
            except SessileError as error:
                turn.receipt.outcome = error.code
                failure = error
                events += stream.fail(error, self._clock())
            if asked.store:
                self._keep(turn, asked, stream.response)
            elif remember:
                self._remember(turn, asked, stream.response)
        await audience.tell(events)
        return Made(stream.response, failure)

    async def find(self, tenant: str, response: str) -> dict[str, Any]:
        """A stored response; raises `ResponseNotFound`."""
        record = await self._store.get_turn(tenant, response)
        if record is None or record.response is None:
            raise ResponseNotFound(f"there is no stored response {response!r}", param="response_id")
        return record.response

    def forget(self, tenant: str, response: str) -> None:
        """A response that was remembered without being stored can be continued no longer."""
        self._transcripts.forget(tenant, response)

    async def _request(
        self, tenant: str, headers: Headers, body: dict[str, Any], asked: Asked, forks: bool
    ) -> TurnRequest:
        past: list[list[dict[str, Any]]] = []
        model = asked.model
        session: str | None = None
        if asked.previous is not None:
            links = await self._transcripts.walk(tenant, asked.previous)
            for link in links:
                past += (link.input_items, link.output_items)
            session = links[-1].session
            model = model or links[-1].model
        if model is None:
            raise InvalidRequest("model must be a non-empty string", param="model")
        document = chat_body(asked, model, past)
        claims = _claims(headers, body, document, asked.previous is not None, session)
        if forks:
            parent = claims.explicit or claims.parent
            claims = msgspec.structs.replace(claims, explicit=None, parent=parent)
        hints = read_hints(headers, {**body, "max_tokens": body.get("max_output_tokens")})
        generate, hold_s = asked.cache.generate, asked.cache.hold_s
        if not generate or hold_s is not None:
            hints = msgspec.structs.replace(
                hints,
                hold_s=hints.hold_s if hold_s is None else hold_s,
                priority=hints.priority if generate else LAST,
                output_tokens=hints.output_tokens if generate else 1,
            )
        return TurnRequest(
            tenant=tenant,
            path=_CHAT,
            model=model,
            claims=claims,
            hints=hints,
            document=document,
            stream=True,
            relay_usage=True,
            # What only prepares a session is in no turn's way: it takes no lock.
            stateful=asked.previous is not None and generate,
            turn=new_response_id(),
        )

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
                turn.session, turn.receipt.model, asked.previous, asked.items, response["output"]
            )
            self._transcripts.remember(turn.request.tenant, turn.id, link)


def responses_routes(
    flow: Flow, store: Store, auth: Authenticator, settings: Settings
) -> APIRouter:
    """`/v1/responses` over HTTP and as a WebSocket."""
    routes = APIRouter(tags=["responses"])
    responses = Responses(flow, store)
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


def _claims(
    headers: Headers,
    body: dict[str, Any],
    document: dict[str, Any],
    continues: bool,
    session: str | None,
) -> SessionClaims:
    """The session that the request names, else that of the response it follows, else, for a
    request that carries its whole history, what its messages tell. One that names a session and
    follows a response of another is a fork of that other."""
    claims = read_claims(headers, body, None if continues else document["messages"])
    if session is None or claims.explicit == session:
        return claims
    if claims.explicit is None:
        return msgspec.structs.replace(claims, explicit=session)
    return msgspec.structs.replace(claims, parent=claims.parent or session)


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
