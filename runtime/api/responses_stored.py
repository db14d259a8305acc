"""What else a response's request may be for than to make it: to count what it would be given, and
to compact a conversation."""

import secrets
from collections.abc import Sequence
from time import time
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from sessile.api.auth import Authenticator
from sessile.api.count import count_tokens
from sessile.api.request import decode_object, read_body
from sessile.api.responses_body import read_request
from sessile.api.responses_context import Contexts, read_turn
from sessile.api.responses_steps import beside, compact
from sessile.errors import NotSupported
from sessile.flow import Flow
from sessile.router.pool import Pool
from sessile.settings import Settings

Headers = Sequence[tuple[bytes, bytes]]

_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


class Surface:
    """The calls. One a router, made by `Responses`."""

    def __init__(self, flow: Flow, pool: Pool, contexts: Contexts) -> None:
        self._flow = flow
        self._pool = pool
        self._contexts = contexts

    async def count(self, tenant: str, headers: Headers, body: dict[str, Any]) -> int:
        """How many tokens the prompt of such a response has. Tools of MCP servers, which are known
        when they have been listed, are not counted: they are refused."""
        asked = read_request(body)
        if asked.toolset.servers:
            raise NotSupported("tokens of MCP tools are not counted beforehand", param="tools")
        asked, context = await self._contexts.find(tenant, asked)
        request = read_turn(tenant, headers, body, asked, context, None)
        return await count_tokens(self._pool, self._flow, beside(request))

    async def compact(self, tenant: str, headers: Headers, body: dict[str, Any]) -> dict[str, Any]:
        """The conversation and the input, as one compaction item."""
        asked = read_request(body)
        asked, context = await self._contexts.find(tenant, asked)
        request = read_turn(tenant, headers, body, asked, context, None)
        made = secrets.token_hex(16)
        items = [*context.items, *asked.items]
        item, usage = await compact(self._flow, request, items, f"cmp_{made}")
        return {
            "id": f"resp_{made}",
            "object": "response.compaction",
            "created_at": int(time()),
            "output": [item],
            "usage": usage or _NO_USAGE,
        }


def stored_routes(surface: Surface, auth: Authenticator, settings: Settings) -> APIRouter:
    """The calls under `/v1/responses`, beside those that make and give responses."""
    routes = APIRouter()
    longest = settings.server.max_body_bytes

    async def body_of(request: Request) -> dict[str, Any]:
        return decode_object(await read_body(request.scope, request.receive, longest))

    @routes.post("/v1/responses/input_tokens")
    async def input_tokens(request: Request) -> Response:
        """How many tokens a response's prompt would have."""
        tenant = auth.tenant_of(request)
        body = await body_of(request)
        counted = await surface.count(tenant, request.scope["headers"], body)
        return _json({"object": "response.input_tokens", "input_tokens": counted})

    @routes.post("/v1/responses/compact")
    async def compacted(request: Request) -> Response:
        """A conversation, summed up by the model in one item that later input may begin with."""
        tenant = auth.tenant_of(request)
        body = await body_of(request)
        return _json(await surface.compact(tenant, request.scope["headers"], body))

    return routes


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
