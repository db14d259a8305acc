"""The Responses API as a WebSocket, as `client.responses.connect()` of OpenAI's SDK speaks it.

Decided here: who may connect, what a frame must be, and that the turns of one connection run one
after another. How a response is made is `responses.Responses`'. A connection that is idle holds no
task but the server's own, which waits for its next frame.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from starlette.types import Message, Receive, Scope, Send

from sessile.api.auth import Authenticator
from sessile.api.chat import header
from sessile.api.responses_events import Event
from sessile.api.wire import openai_error, retry_headers, wire_of
from sessile.errors import Forbidden, InvalidRequest, NotSupported, Overloaded, SessileError
from sessile.settings import WebSocketSettings

if TYPE_CHECKING:
    from sessile.api.responses import Answer, Responses

log = logging.getLogger("sessile.api")

_MOST_WAITING = 16
_LONGEST_STREAM_ID = 256
_KEY_PROTOCOL = "openai-insecure-api-key."
_SLOW_READER = 1013

_decode = msgspec.json.Decoder(dict[str, Any]).decode


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
                await _Connection(
                    self._responses, tenant, scope["headers"], receive, send, self._settings
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


class _SlowReader(ConnectionError):
    """The client has not read for `send_timeout_s`, and is as good as gone."""


class _Connection:
    """One open WebSocket. The server's task reads its frames for as long as it is open; a task of
    its own makes responses while there are any to make."""

    __slots__ = (
        "_closed", "_headers", "_reading", "_receive", "_responses", "_send", "_settings",
        "_tenant", "_waiting", "_waiting_bytes", "_working",
    )  # fmt: skip

    def __init__(
        self,
        responses: "Responses",
        tenant: str,
        headers: Sequence[tuple[bytes, bytes]],
        receive: Receive,
        send: Send,
        settings: WebSocketSettings,
    ) -> None:
        self._responses = responses
        self._tenant = tenant
        self._headers = headers
        self._receive = receive
        self._send = send
        self._settings = settings
        self._waiting: deque[tuple[dict[str, Any], int]] = deque()
        self._waiting_bytes = 0
        self._working: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[Any] | None = None
        self._closed = False

    async def serve(self) -> None:
        """Read frames until the client is gone, which stops the turn that is running for it."""
        self._reading = asyncio.current_task()
        try:
            while (message := await self._receive())["type"] != "websocket.disconnect":
                try:
                    self._take(message)
                except SessileError as error:
                    await self._refuse(error, None)
        except _SlowReader:
            await self._close_slow()
        except OSError:
            log.debug("client went while it was told of an error")
        except asyncio.CancelledError:
            if not self._closed:
                raise
            assert self._reading is not None
            self._reading.uncancel()
        finally:
            self._closed = True
            if self._working is not None:
                self._working.cancel()
                await asyncio.gather(self._working, return_exceptions=True)

    # -- frames

    def _take(self, message: Message) -> None:
        """Queue what a frame asks for. Raises what is wrong with it, and harms nothing."""
        text = message.get("text")
        if text is None:
            raise InvalidRequest("frames must be text, each one JSON object")
        try:
            frame = _decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise InvalidRequest(f"the frame is not a JSON object: {error}") from error
        kind = frame.get("type")
        if kind == "response.steer":
            raise NotSupported("response.steer is not supported", param="type")
        if kind != "response.create":
            raise InvalidRequest("type must be response.create", param="type")
        if len(self._waiting) >= _MOST_WAITING or (
            self._waiting and self._waiting_bytes + len(text) > self._settings.max_message_bytes
        ):
            raise Overloaded(
                f"{len(self._waiting)} requests wait on this connection already", retry_after_s=1.0
            )
        self._waiting.append((frame, len(text)))
        self._waiting_bytes += len(text)
        if self._working is None:
            self._working = asyncio.create_task(self._work())

    # -- turns

    async def _work(self) -> None:
        """Make the responses that wait, first come, first served."""
        try:
            while self._waiting:
                frame, size = self._waiting.popleft()
                self._waiting_bytes -= size
                await self._respond(frame)
        except _SlowReader:
            await self._close_slow()
        except OSError:
            # The client is gone: `serve` is being told so, and ends.
            log.debug("client went while it was told of a response")
        finally:
            self._working = None

    async def _respond(self, frame: dict[str, Any]) -> None:
        stream_id = frame.get("stream_id")
        try:
            if not isinstance(stream_id, str | None) or len(stream_id or "") > _LONGEST_STREAM_ID:
                stream_id = None
                raise InvalidRequest(
                    f"stream_id must be a string of at most {_LONGEST_STREAM_ID} characters",
                    param="stream_id",
                )
            if frame.get("stream") is False:
                raise InvalidRequest("a WebSocket always streams: leave stream out", param="stream")
            await self._responses.make(
                self._tenant, self._headers, frame, self, stream_id=stream_id
            )
        except SessileError as error:
            await self._refuse(error, stream_id)
        except OSError:
            raise
        except Exception:  # a fault of ours in one turn: the connection and those behind it live on
            log.exception("response failed tenant=%s", self._tenant)
            await self._refuse(SessileError("the router failed; its log says why"), stream_id)

    async def open(self, turn: "Answer") -> None:
        """The answer has begun."""

    async def tell(self, events: list[Event]) -> None:
        """Send the events; waits while the client does not read, and the engine waits too."""
        await self._send_all([event.body.decode() for event in events])

    # -- sending

    async def _refuse(self, error: SessileError, stream_id: str | None) -> None:
        body: dict[str, Any] = {
            "type": "error", "status": wire_of(error).status, **openai_error(error),
        }  # fmt: skip
        if waits := retry_headers(error):
            body["error"]["headers"] = {name.decode(): value.decode() for name, value in waits}
        if stream_id is not None:
            body["stream_id"] = stream_id
        await self._send_all([msgspec.json.encode(body).decode()])

    async def _send_all(self, texts: list[str]) -> None:
        try:
            async with asyncio.timeout(self._settings.send_timeout_s):
                for text in texts:
                    await self._send({"type": "websocket.send", "text": text})
        except TimeoutError as error:
            raise _SlowReader from error

    async def _close_slow(self) -> None:
        """Tell a client that does not read to come back later, if it reads that at least."""
        log.warning("client read too slowly timeout_s=%g", self._settings.send_timeout_s)
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(self._settings.send_timeout_s):
                await self._send(
                    {
                        "type": "websocket.close",
                        "code": _SLOW_READER,
                        "reason": "events were not read in time",
                    }
                )
        if not self._closed:
            self._closed = True
            assert self._reading is not None
            if self._reading is not asyncio.current_task():
                self._reading.cancel()


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
