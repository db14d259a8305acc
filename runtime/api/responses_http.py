"""The Responses API over HTTP: made, found, followed and cancelled."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from sessile.api.auth import Authenticator
from sessile.api.event_stream import SSE_HEADERS, Replay, seen, sse
from sessile.api.hang_up import HangUp, on_disconnect
from sessile.api.request import decode_object, idempotency_key, read_body
from sessile.api.responses import Responses
from sessile.api.responses_fields import check_query
from sessile.api.responses_job import Answer, Put
from sessile.api.responses_kept import KeptResponses
from sessile.api.responses_listing import listed_items, page_of_all, read_page
from sessile.api.responses_sequence import Event
from sessile.api.responses_stored import stored_routes
from sessile.api.wire import send_error
from sessile.api.ws_handshake import Sockets
from sessile.errors import InvalidRequest, SessileError
from sessile.event_feed import number_in
from sessile.settings import Settings

Headers = Sequence[tuple[bytes, bytes]]

_PATH = "/v1/responses"


def responses_routes(responses: Responses, auth: Authenticator, settings: Settings) -> APIRouter:
    """`/v1/responses` over HTTP and as a WebSocket."""
    routes = APIRouter(tags=["responses"])
    routes.include_router(stored_routes(responses.surface, auth, settings))
    kept = KeptResponses(responses)
    longest = settings.server.max_body_bytes

    @routes.post("/v1/responses")
    async def create(request: Request) -> Response:
        """Make a response, as one JSON object or as a stream of events, or in the background."""
        headers: Headers = request.scope["headers"]
        tenant = auth.tenant_of(request)
        body = decode_object(await read_body(request.scope, request.receive, longest))
        for name in ("stream_id", "generate"):
            if name in body:
                raise InvalidRequest(f"{name} belongs to the WebSocket", param=name)
        if body.get("background") is not True:
            return _Exchange(responses, tenant, headers, body)
        made = await responses.begin(tenant, headers, body, idempotency_key(headers, _PATH, body))
        if body.get("stream") is True:
            return Replay(responses.turns, tenant, made, -1)
        return _json(await kept.find(tenant, made), made)

    @routes.get("/v1/responses/{response_id}")
    async def retrieve(
        request: Request, response_id: str, stream: bool = False, starting_after: str | None = None,
        include_obfuscation: bool = False,
    ) -> Response:  # fmt: skip
        """A response that is stored or runs: its object, or its events behind a number."""
        tenant = auth.tenant_of(request)
        named = request.query_params
        check_query(named.getlist("include") + named.getlist("include[]"), include_obfuscation)
        after = seen(request.scope["headers"], starting_after)
        if not stream:
            return _json(await kept.find(tenant, response_id), response_id)
        await kept.check(tenant, response_id, after)
        return Replay(responses.turns, tenant, response_id, after)

    @routes.get("/v1/responses/{response_id}/input_items")
    async def input_items(
        request: Request,
        response_id: str,
        order: str | None = None,
        after: str | None = None,
        limit: str | None = None,
    ) -> Response:
        """What a response that is stored or runs was given."""
        newest_first, most = read_page(order, limit, "desc")
        given = await kept.given(auth.tenant_of(request), response_id)
        items = listed_items(given, response_id)
        page = page_of_all(items, after=after, limit=most, newest_first=newest_first)
        return _json(page, response_id)

    @routes.post("/v1/responses/{response_id}/cancel")
    async def cancel(request: Request, response_id: str) -> Response:
        """Stop a response that runs in the background."""
        tenant = auth.tenant_of(request)
        return _json(await kept.cancel(tenant, response_id), response_id)

    @routes.delete("/v1/responses/{response_id}")
    async def delete(request: Request, response_id: str) -> Response:
        """Forget a stored response, and its events."""
        await kept.delete(auth.tenant_of(request), response_id)
        told = {"id": response_id, "object": "response", "deleted": True}
        return _json(told, response_id)

    routes.add_websocket_route(
        "/v1/responses",
        Sockets(responses, auth, settings.websocket, settings.server.cors_origins),  # type: ignore[arg-type]
    )
    return routes


class _Exchange(Response):
    """One response over HTTP, told to the client as it is made. A client that hangs up cancels
    it, unless it has declared otherwise."""

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
                    once=idempotency_key(self._request_headers, _PATH, self._document),
                    streams=streamed,
                    detach=on_disconnect(self._request_headers) == "detach",
                )  # fmt: skip
            except SessileError as error:
                if not audience.opened or not streamed:
                    await send_error(send, error)
                # NOTE: else without a last chunk the connection is cut: the client comes back.
                return
            if streamed:
                await send({"type": "http.response.body", "body": b""})
            elif made.error is not None:
                await send_error(send, made.error)
            else:
                await _send_json(send, made.response, audience.headers)


class _Waiting:
    """A client that wants the whole response at once."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.opened = False

    async def open(self, turn: Answer) -> None:
        self.headers = turn.headers()
        self.opened = True

    def prompt(self) -> Put | None:
        """A stretch of an HTTP body is always waited for."""
        return None

    async def tell(self, events: list[Event]) -> None:
        pass


class _Streaming(_Waiting):
    """A client that reads server-sent events."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    async def open(self, turn: Answer) -> None:
        await super().open(turn)
        headers = [*SSE_HEADERS, *self.headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def tell(self, events: list[Event]) -> None:
        told = sse((number_in(event.body), event.body) for event in events)
        await self._send({"type": "http.response.body", "body": told, "more_body": True})


def _json(body: dict[str, Any], turn: str) -> Response:
    data = msgspec.json.encode(body)
    return Response(data, media_type="application/json", headers={"x-sessile-turn": turn})


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
