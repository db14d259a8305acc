"""The fast lane: chat completions, completions and embeddings, as plain ASGI.

A request is decoded once, validated where a wrong type would only fail later and worse, and goes
upstream as the client wrote it. The answer's bytes pass through. Whatever the engine can do, the
client can ask for: unknown fields are not looked at.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from sessile.api.auth import Authenticator
from sessile.api.fields import shown
from sessile.api.hang_up import HangUp, on_disconnect, to_nobody_too
from sessile.api.request import decode_object, header, idempotency_key, read_body
from sessile.api.wire import openai_error, send_error
from sessile.errors import InvalidRequest, NotSupported, SessileError
from sessile.flow import Flow
from sessile.sessions.hints import read_hints
from sessile.sessions.identity import read_claims
from sessile.turn import Turn
from sessile.turn_request import TurnRequest

log = logging.getLogger("sessile.api")

_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
_CHAT = "/v1/chat/completions"
_EMBEDDINGS = "/v1/embeddings"


class FastLane:
    """Serves one path of the OpenAI API over HTTP. Made by `app`, one for each path."""

    def __init__(self, path: str, flow: Flow, auth: Authenticator, max_body_bytes: int) -> None:
        self._path = path
        self._flow = flow
        self._auth = auth
        self._max_body_bytes = max_body_bytes
        self._check: Callable[[dict[str, Any]], None] = (
            _check_chat if path == _CHAT else _check_input
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. A client that hangs up cancels its turn, which stops the engine, unless it
        has declared that its turn is to go on."""
        try:
            detach = on_disconnect(scope["headers"]) == "detach"
            request = self._parse(scope, await read_body(scope, receive, self._max_body_bytes))
        except SessileError as error:
            await send_error(send, error)
            return
        if detach:
            await self._answer(request, to_nobody_too(send))
            return
        with HangUp(receive, self._flow.loop):
            await self._answer(request, send)

    async def _answer(self, request: TurnRequest, send: Send) -> None:
        started = False
        try:
            async with self._flow.serve_turn(request) as turn:
                if self._path == _EMBEDDINGS and turn.status in (404, 405, 501):
                    raise NotSupported(
                        f"the engine that serves {request.model!r} makes no embeddings"
                    )
                chunk = await turn.read()
                started = True
                await send(_head(turn, len(chunk) if turn.whole else None))
                try:
                    while not turn.whole:
                        await send(_body(chunk, more=True))
                        chunk = await turn.read()
                except SessileError as error:
                    turn.receipt.outcome = error.code
                    if not turn.streams:
                        raise
                    chunk = b"data: " + msgspec.json.encode(openai_error(error)) + b"\n\n"
            await send(_body(chunk))
        except SessileError as error:
            if not started:
                await send_error(send, error)
            else:
                # NOTE: returning without the last chunk makes the server cut the connection, the
                # only way left to tell a client that a plain answer is not whole.
                log.warning("answer was cut off why=%r", error.message)

    def _parse(self, scope: Scope, body: bytes) -> TurnRequest:
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        tenant = self._auth.tenant(header(headers, b"authorization"))
        document = decode_object(body)
        model = document.get("model")
        if not isinstance(model, str) or not model:
            raise InvalidRequest("model must be a non-empty string", param="model")
        self._check(document)
        messages = document.get("messages") if self._path == _CHAT else None
        stream = document.get("stream") is True
        options = document.get("stream_options")
        return TurnRequest(
            tenant=tenant,
            path=self._path,
            model=model,
            claims=read_claims(headers, document, messages),
            hints=read_hints(headers, document),
            body=body,
            document=document,
            stream=stream,
            relay_usage=isinstance(options, dict) and options.get("include_usage") is True,
            idempotency_key=idempotency_key(headers, self._path, document),
        )


def _head(turn: Turn, length: int | None) -> Message:
    headers = [(b"content-type", turn.content_type), *turn.headers()]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", "status": turn.status, "headers": headers}


def _body(data: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def _check_chat(document: dict[str, Any]) -> None:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a non-empty list", param="messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequest(f"{where} must be an object", param=where)
        role = message.get("role")
        if role not in _ROLES:
            known = ", ".join(sorted(_ROLES))
            raise InvalidRequest(
                f"{where}.role must be one of {known}, not {shown(role)}", param=f"{where}.role"
            )
        content = message.get("content")
        if not (content is None or isinstance(content, str | list)):
            raise InvalidRequest(
                f"{where}.content must be a string or a list of parts", param=f"{where}.content"
            )
        calls = message.get("tool_calls")
        if not (calls is None or isinstance(calls, list)):
            raise InvalidRequest(f"{where}.tool_calls must be a list", param=f"{where}.tool_calls")
    _check_stream(document)


def _check_input(document: dict[str, Any]) -> None:
    name = "input" if "input" in document else "prompt"
    if not isinstance(document.get(name), str | list):
        raise InvalidRequest(f"{name} must be a string or a list", param=name)
    _check_stream(document)


def _check_stream(document: dict[str, Any]) -> None:
    if not isinstance(document.get("stream"), bool | None):
        raise InvalidRequest("stream must be true or false", param="stream")
    if not isinstance(document.get("stream_options"), dict | None):
        raise InvalidRequest("stream_options must be an object", param="stream_options")
