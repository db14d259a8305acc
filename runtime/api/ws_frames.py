"""Frames of the Responses WebSocket: what a client's must be, how an error is told. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from sessile.api.hang_up import OnDisconnect, on_disconnect, read_on_disconnect
from sessile.api.lanes import Lane
from sessile.api.request import checked_key, once_key
from sessile.api.wire import openai_error, retry_headers, wire_of
from sessile.errors import InvalidRequest, SessileError
from sessile.sessions.store import OnceKey

_LONGEST_STREAM_ID = 256
_PATH = "/v1/responses"

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def error_frame(error: SessileError, lane: Lane) -> bytes:
    """The event that tells an error."""
    body: dict[str, Any] = {"type": "error", "status": wire_of(error).status, **openai_error(error)}
    if waits := retry_headers(error):
        body["error"]["headers"] = {name.decode(): value.decode() for name, value in waits}
    if lane is not None:
        body["stream_id"] = lane
    return msgspec.json.encode(body)


def in_lane(event: bytes, lane: Lane) -> bytes:
    """An event as it is told in that lane, whichever it was made for."""
    body = _decode(event)
    if body.get("stream_id") == lane:
        return event
    body.pop("stream_id", None)
    return msgspec.json.encode(body if lane is None else {**body, "stream_id": lane})


def read_frame(text: str) -> dict[str, Any]:
    """The JSON object of a frame. Raises `InvalidRequest`."""
    try:
        frame = _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"the frame is not a JSON object: {error}") from error
    if frame.get("type") not in ("response.create", "response.steer"):
        raise InvalidRequest("type must be response.create or response.steer", param="type")
    return frame


def take_key(frame: dict[str, Any]) -> str | None:
    """The `idempotency_key` of a `response.steer`, which is no part of what it says. Raises
    `InvalidRequest`."""
    key = frame.pop("idempotency_key", None)
    return None if key is None else checked_key(key, "idempotency_key")


def take_once(frame: dict[str, Any]) -> OnceKey | None:
    """The key of a `response.create`, with a digest of what it asks for, which is that of the same
    request over HTTP: its type and its lane are no part of that. Raises `InvalidRequest`."""
    key = frame.pop("idempotency_key", None)
    if key is None:
        return None
    asked = {name: value for name, value in frame.items() if name not in ("type", "stream_id")}
    return once_key(key, "idempotency_key", _PATH, asked)


def take_on_disconnect(
    frame: dict[str, Any], headers: Sequence[tuple[bytes, bytes]]
) -> OnDisconnect:
    """What becomes of the response if its client goes: as the frame declares, which is no part of
    what it asks for, else as the handshake did for all. Raises `InvalidRequest`."""
    declared = frame.pop("on_disconnect", None)
    if declared is None:
        return on_disconnect(headers)
    return read_on_disconnect(declared, "on_disconnect")


def read_lane(frame: dict[str, Any]) -> Lane:
    """The lane of a `response.create`. Raises `InvalidRequest` for a frame that can be in none."""
    lane = frame.get("stream_id")
    if not isinstance(lane, str | None) or len(lane or "") > _LONGEST_STREAM_ID:
        raise InvalidRequest(
            f"stream_id must be a string of at most {_LONGEST_STREAM_ID} characters",
            param="stream_id",
        )
    if frame.get("stream") is False:
        raise InvalidRequest("a WebSocket always streams: leave stream out", param="stream")
    return lane
