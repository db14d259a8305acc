"""A turn's events as server-sent events: replayed from any number on, then followed.

`id:` is the event's number, so that a browser's `EventSource` takes up a stream by itself.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from sessile.api.auth import Authenticator
from sessile.api.hang_up import HangUp
from sessile.api.request import header
from sessile.durable import Durable
from sessile.errors import SessileError
from sessile.event_feed import Told, kind_of, number_of

log = logging.getLogger("sessile.api")

SSE_HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]

Headers = Sequence[tuple[bytes, bytes]]


def sse(events: Iterable[Told]) -> bytes:
    """Numbered events as they go over the wire."""
    return b"".join(
        [b"id: %d\nevent: %b\ndata: %b\n\n" % (n, kind_of(body), body) for n, body in events]
    )


def seen(headers: Headers, starting_after: str | None) -> int:
    """The number of the last event that a client has seen, -1 for none: what its `EventSource`
    remembers is newer than what the address says. Raises `InvalidRequest`."""
    remembered = header(headers, b"last-event-id")
    if remembered:
        return number_of(remembered, "Last-Event-ID")
    return number_of(starting_after, "starting_after")


class Replay(Response):
    """The events of a turn behind number `after`, to its end. Its client may come and go."""

    def __init__(self, turns: Durable, tenant: str, turn: str, after: int) -> None:
        super().__init__()
        self._turns = turns
        self._tenant = tenant
        self._turn = turn
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*SSE_HEADERS, (b"x-sessile-turn", self._turn.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        feed = self._turns.feed
        with HangUp(receive, asyncio.get_running_loop()):
            try:
                async for events in feed.follow(self._tenant, self._turn, self._after):
                    body = {"type": "http.response.body", "body": sse(events), "more_body": True}
                    await send(body)
            except SessileError as error:
                # NOTE: without a last chunk the connection is cut: the client comes back by itself.
                log.warning("replay was cut off turn=%s why=%r", self._turn, error.message)
                return
            await send({"type": "http.response.body", "body": b""})


def event_routes(turns: Durable, auth: Authenticator) -> APIRouter:
    """`/sessile/v1/turns/{turn}/events`, whatever protocol the turn was asked for in."""
    routes = APIRouter(prefix="/sessile/v1", tags=["sessile"])

    @routes.get("/turns/{turn}/events")
    async def events(request: Request, turn: str, starting_after: str | None = None) -> Response:
        """The events behind a number, to the turn's end."""
        headers: Headers = request.scope["headers"]
        tenant = auth.tenant(header(headers, b"authorization"))
        after = seen(headers, starting_after)
        await turns.feed.check(tenant, turn, after)
        return Replay(turns, tenant, turn, after)

    return routes
