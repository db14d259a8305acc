"""The handshake of a Responses WebSocket: who may connect, and how that is answered.

What is said over an open connection is `responses_ws`'.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from starlette.types import Receive, Scope, Send

from sessile.api.auth import Authenticator
from sessile.api.browser import declared
from sessile.api.request import header
from sessile.api.responses_ws import Connection
from sessile.api.wire import openai_error, wire_of
from sessile.api.ws_outbox import line_of
from sessile.errors import Forbidden, Overloaded, SessileError
from sessile.settings import WebSocketSettings

if TYPE_CHECKING:
    from sessile.api.responses import Responses

_KEY_PROTOCOL = "openai-insecure-api-key."


class Sockets:
    """Serves all WebSockets of a router, as an ASGI endpoint. Made by `responses_routes`."""

    def __init__(
        self,
        responses: "Responses",
        auth: Authenticator,
        settings: WebSocketSettings,
        origins: Sequence[str],
    ) -> None:
        self._responses = responses
        self._auth = auth
        self._settings = settings
        self._origins = frozenset(origins)
        self.connections = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, from its handshake to its end; nothing of it is left afterwards."""
        most = self._settings.max_connections
        if self.connections >= most:
            body = openai_error(Overloaded(f"all {most} WebSocket connections are taken"))
            body["error"]["code"] = "websocket_connection_limit_reached"
            await _deny(send, 503, body)
            return
        try:
            tenant = self._admit(scope)
        except SessileError as error:
            await _deny(send, wire_of(error).status, openai_error(error))
            return
        self.connections += 1
        try:
            if (await receive())["type"] == "websocket.connect":
                await send(
                    {
                        "type": "websocket.accept",
                        "subprotocol": _chosen(scope.get("subprotocols", ())),
                    }
                )
                await Connection(
                    self._responses,
                    tenant,
                    declared(scope["headers"], scope.get("query_string", b"")),
                    receive,
                    send,
                    self._settings,
                    line_of(scope),
                ).serve()
        finally:
            self.connections -= 1

    def _admit(self, scope: Scope) -> str:
        """The caller's tenant. Browsers send cookies and their address to any server a page names,
        so a page must be of this server or of a listed origin. Raises `Forbidden`,
        `Unauthorized`."""
        headers = scope["headers"]
        origin = header(headers, b"origin")
        if origin is not None and not self._origins & {origin, "*"}:
            host = header(headers, b"host")
            if not host or urlsplit(origin).netloc.lower() != host.lower():
                raise Forbidden(
                    f"pages of {origin[:200]} may not connect; server.cors_origins lists who may"
                )
        protocols = scope.get("subprotocols", ())
        return self._auth.tenant(header(headers, b"authorization"), protocols)


def _chosen(offered: Sequence[str]) -> str | None:
    """The sub-protocol to answer with: a browser takes no connection that answers none of its own.
    The one that holds a key is sent back only where there is no other."""
    plain = [name for name in offered if not name.startswith(_KEY_PROTOCOL)]
    return next(iter([*plain, *offered]), None)


async def _deny(send: Send, status: int, body: dict[str, Any]) -> None:
    """Refuse the handshake with an HTTP answer."""
    data = msgspec.json.encode(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
    ]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": data})
