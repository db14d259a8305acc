"""What every protocol reads of an HTTP request: its headers, its key, its body as an object."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from starlette.types import Receive, Scope

from sessile.errors import BodyTooLarge, InvalidRequest
from sessile.sessions.store import OnceKey

_OBJECT = msgspec.json.Decoder(dict[str, Any])
_LONGEST_KEY = 256
_HOW_TOLD = ("stream", "stream_options")


def decode_object(body: bytes) -> dict[str, Any]:
    """A request body as a JSON object; raises `InvalidRequest` saying what it is instead."""
    try:
        return _OBJECT.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body must be a JSON object: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error


def header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The header's value, None without; raises `InvalidRequest` if it came with two values."""
    found: bytes | None = None
    for key, value in headers:
        if key == name:
            if found is not None and found != value:
                shown = name.decode()
                raise InvalidRequest(f"the header {shown} came twice, with two values", param=shown)
            found = value
    return None if found is None else found.decode("latin-1")


def idempotency_key(
    headers: Sequence[tuple[bytes, bytes]], path: str, body: Mapping[str, Any]
) -> OnceKey | None:
    """The `Idempotency-Key` of a request, with a digest of what is asked: how the answer is to be
    told is no part of that. Raises `InvalidRequest` for one that cannot be one."""
    key = header(headers, b"idempotency-key")
    return None if key is None else once_key(key, "idempotency-key", path, body)


def once_key(key: object, param: str, path: str, body: Mapping[str, Any]) -> OnceKey:
    """A key, given as `param`, under which the body is asked for."""
    asked = [path, {name: value for name, value in body.items() if name not in _HOW_TOLD}]
    digest = blake2b(msgspec.json.encode(asked, order="sorted"), digest_size=12)
    return OnceKey(checked_key(key, param), digest.hexdigest())


def checked_key(key: object, param: str) -> str:
    """An idempotency key; raises `InvalidRequest` for what cannot be one."""
    if not (isinstance(key, str) and 0 < len(key) <= _LONGEST_KEY and key.isprintable()):
        raise InvalidRequest(
            f"an idempotency key must be 1 to {_LONGEST_KEY} printable characters", param=param
        )
    return key


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises `BodyTooLarge` as soon as it is known to be over `limit` bytes."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    parts = [body]
    size = len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the client hung up before the body was whole")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is over {limit} bytes, the most accepted here")
