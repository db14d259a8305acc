"""Turns that run by themselves, whatever protocol they were asked for in: found by their session,
steered and stopped."""

from typing import Any

from fastapi import APIRouter, Request

from sessile.api.auth import Authenticator
from sessile.api.request import checked_key, decode_object, read_body
from sessile.api.responses import Responses
from sessile.api.responses_kept import KeptResponses
from sessile.api.responses_steered import steer_by_http
from sessile.settings import Settings


def run_routes(responses: Responses, auth: Authenticator, settings: Settings) -> APIRouter:
    """`/sessile/v1/running/{session}`, and `/sessile/v1/turns/{turn}/steer` and `/cancel`."""
    routes = APIRouter(prefix="/sessile/v1", tags=["sessile"])
    kept = KeptResponses(responses)
    longest = settings.server.max_body_bytes

    @routes.get("/running/{session:path}")
    async def running(request: Request, session: str) -> dict[str, Any]:
        """The session's turn that runs now, to be followed by its events; null if there is none."""
        tenant, log = auth.tenant_of(request), responses.store.events
        turn = await log.newest(tenant, session)
        live = None if turn is None else responses.turns.writer.find(tenant, turn)
        if live is not None:
            ended = live.ended
        else:
            standing = None if turn is None else await log.look(tenant, turn)
            ended = standing is None or standing.state == "ended"
        return {"session": session, "turn": None if ended else turn}

    @routes.post("/turns/{turn}/steer")
    async def steer(request: Request, turn: str) -> dict[str, Any]:
        """Say something into it, at whichever router it runs, once under its key; the event that a
        WebSocket would be told."""
        tenant = auth.tenant_of(request)
        body = decode_object(await read_body(request.scope, request.receive, longest))
        key = body.get("idempotency_key")
        if key is not None:
            checked_key(key, "idempotency_key")
        given, log = body.get("input"), responses.store.events
        return await steer_by_http(responses.turns, log, tenant, turn, given, key)

    @routes.post("/turns/{turn}/cancel")
    async def cancel(request: Request, turn: str) -> dict[str, Any]:
        """Stop it, at whichever router it runs; its response. One that has ended stays as it is."""
        tenant = auth.tenant_of(request)
        found = await kept.find(tenant, turn)
        if found["status"] in ("queued", "in_progress"):
            found = await kept.stop(tenant, turn)
        return found

    return routes
