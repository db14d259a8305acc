"""Anthropic's Messages API, as plain ASGI: `/v1/messages` and `/v1/messages/count_tokens`.

A message is a turn of the flow like any other: it is placed, counted and remembered as the chat
completion that it means, and the answer's chunks are read into events (`messages_body`,
`messages_events`). Where the engine of the replica speaks this API, and keeps all there that the
client and the router ask for, it is sent the request as it came (`messages_own`) and answers in
events of its own, which are read as chunks; elsewhere it is sent the chat request. Which of the
two it was nobody sees: tenant salt, session and usage are the same, and so is the conversation that
is recognised, and found in the cache, whichever API continues it.
"""

import logging
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from sessile.api.auth import Authenticator
from sessile.api.count import count_tokens
from sessile.api.hang_up import HangUp, on_disconnect, to_nobody_too
from sessile.api.messages_body import Asked, read_request
from sessile.api.messages_events import MessageStream
from sessile.api.messages_own import own_form
from sessile.api.request import decode_object, idempotency_key, read_body
from sessile.api.responses_sequence import Event
from sessile.api.wire import anthropic_error, engine_error, retry_headers, wire_of
from sessile.errors import SessileError
from sessile.flow import Flow
from sessile.router.pool import Pool
from sessile.sessions.hints import read_hints
from sessile.sessions.identity import read_claims
from sessile.turn import Turn
from sessile.turn_request import TurnRequest

log = logging.getLogger("sessile.api")

_CHAT = "/v1/chat/completions"
_PATH = "/v1/messages"
_JSON = (b"content-type", b"application/json")
_SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]

Headers = Sequence[tuple[bytes, bytes]]


class Messages:
    """Serves both paths. Made by `app`, one for each; `counting` is that of `count_tokens`."""

    def __init__(
        self, pool: Pool, flow: Flow, auth: Authenticator, max_body_bytes: int, *, counting: bool
    ) -> None:
        self._pool = pool
        self._flow = flow
        self._auth = auth
        self._max_body_bytes = max_body_bytes
        self._counting = counting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. A client that hangs up cancels its turn, which stops the engine, unless it
        has declared that its turn is to go on.

        The message's id is the turn's, and that of the request.
        """
        message_id = f"msg_{secrets.token_hex(12)}"
        try:
            detach = on_disconnect(scope["headers"]) == "detach"
            body = await read_body(scope, receive, self._max_body_bytes)
            asked, request = self._parse(scope["headers"], body, message_id)
        except SessileError as error:
            await _send_error(send, error, message_id)
            return
        if detach and not self._counting:
            await self._answer(asked, request, to_nobody_too(send))
            return
        with HangUp(receive, self._flow.loop):
            if self._counting:
                await self._count(request, send)
            else:
                await self._answer(asked, request, send)

    def _parse(self, headers: Headers, data: bytes, message_id: str) -> tuple[Asked, TurnRequest]:
        tenant = self._auth.tenant_of_message(headers)
        body = decode_object(data)
        asked = read_request(body, counting=self._counting)
        hints = read_hints(headers, body)
        if hints.hold_s is None and asked.hold_s is not None:
            hints = msgspec.structs.replace(hints, hold_s=asked.hold_s)
        return asked, TurnRequest(
            tenant=tenant,
            path=_CHAT,
            model=asked.model,
            claims=read_claims(headers, body, asked.document["messages"]),
            hints=hints,
            document=asked.document,
            stream=True,
            unheard=not asked.stream,
            relay_usage=True,
            idempotency_key=None if self._counting else idempotency_key(headers, _PATH, body),
            turn=message_id,
            messages=None if self._counting else own_form(body, asked),
        )

    async def _count(self, request: TurnRequest, send: Send) -> None:
        assert request.turn is not None
        try:
            counted = await count_tokens(self._pool, self._flow, request)
            headers = [(b"request-id", request.turn.encode())]
            await _send_json(send, 200, {"input_tokens": counted}, headers)
        except SessileError as error:
            await _send_error(send, error, request.turn)

    async def _answer(self, asked: Asked, request: TurnRequest, send: Send) -> None:
        """The turn, from its first byte to its last event. What fails before anything was sent has
        a status of its own, later it is the stream's last event."""
        assert request.turn is not None
        events: list[Event] = []
        failure: SessileError | None = None
        try:
            async with self._flow.serve_turn(request) as turn:
                if turn.status >= 400:
                    raise engine_error(turn.status, await _rest(turn, b""))
                stream = MessageStream(turn.id, asked)
                events += stream.start()
                chunk = await turn.read()
                if turn.streams:
                    stream.feed(chunk, events)
                else:
                    stream.feed_chunk(await _rest(turn, chunk), events)
                if asked.stream:
                    await _start(send, 200, [*_SSE, *_named(turn)])
                try:
                    while not turn.whole:
                        if asked.stream and events:
                            await _tell(send, events, more=True)
                            events = []
                        if chunk := await turn.read():
                            stream.feed(chunk, events)
                    events += stream.finish()
                except SessileError as error:
                    failure = error
                    turn.receipt.outcome = error.code
                    events += stream.fail(error)
            # NOTE: the turn has been recorded now, so that what follows it finds its session.
            if asked.stream:
                await _tell(send, events, more=False)
            elif failure is not None:
                raise failure
            else:
                await _send_json(send, 200, stream.message, _named(turn))
        except SessileError as error:
            await _send_error(send, error, request.turn)


def _named(turn: Turn) -> list[tuple[bytes, bytes]]:
    return [(b"request-id", turn.id.encode()), *turn.headers()]


async def _rest(turn: Turn, start: bytes) -> bytes:
    return b"".join([start, *[chunk async for chunk in turn]])


async def _tell(send: Send, events: list[Event], more: bool) -> None:
    told = [b"event: %b\ndata: %b\n\n" % (event.type.encode(), event.body) for event in events]
    await send({"type": "http.response.body", "body": b"".join(told), "more_body": more})


async def _start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def _send_json(send: Send, status: int, body: dict[str, Any], headers: Headers) -> None:
    data = msgspec.json.encode(body)
    await _start(send, status, [_JSON, (b"content-length", b"%d" % len(data)), *headers])
    await send({"type": "http.response.body", "body": data})


async def _send_error(send: Send, error: SessileError, message_id: str) -> None:
    """The error in Anthropic's shape, with the status of the table."""
    headers = [(b"request-id", message_id.encode()), *retry_headers(error)]
    await _send_json(send, wire_of(error).status, anthropic_error(error, message_id), headers)
