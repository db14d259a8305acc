"""What is kept of an accepted response, so that any router can run it again. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sessile.api.mcp_tools import public
from sessile.api.responses_body import Asked, read_request
from sessile.sessions import hints, identity
from sessile.sessions.store import OnceKey

_KEPT = identity.HEADERS | hints.HEADERS  # never who asks: the tenant is known

Headers = list[tuple[bytes, bytes]]


class _Record(msgspec.Struct, array_like=True):
    turn: str
    created_at: int
    body: dict[str, Any]
    headers: Headers
    once: OnceKey | None
    stream_id: str | None
    forks: bool = False
    detached: bool = False
    steers: list[str] = []


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it was accepted: its id and time, what it asks for, and how it was asked. One
    that `forks` is a session of its own, started by that of its parent; one that is `detached` runs
    on without its client. `steers` are the keys of those that it takes in."""

    turn: str
    created_at: int
    asked: Asked
    body: dict[str, Any]
    headers: Headers
    once: OnceKey | None = None
    stream_id: str | None = None
    forks: bool = False
    detached: bool = False
    steers: list[str] = []

    def skeleton(self, model: str) -> dict[str, Any]:
        """The object that will answer it, before anything is made."""
        told = {"id": self.turn, "created_at": self.created_at, "model": model}
        return {**self.asked.response, "output": [], **told}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


def write_accepted(accepted: Accepted) -> bytes:
    """As it is kept in the log: without what only its own router may know, whoever asks and the
    keys of MCP servers."""
    kept = [(name, value) for name, value in accepted.headers if name in _KEPT]
    body = accepted.body
    if accepted.asked.toolset.servers:
        body = {**body, "tools": [public(tool) for tool in body["tools"]]}
    return _encode(
        _Record(
            accepted.turn, accepted.created_at, body, kept, accepted.once, accepted.stream_id,
            accepted.forks, accepted.detached, accepted.steers,
        )
    )  # fmt: skip


def read_accepted(data: bytes) -> Accepted:
    """What `write_accepted` gave."""
    record = _decode(data)
    return Accepted(
        turn=record.turn, created_at=record.created_at, asked=read_request(record.body),
        body=record.body, headers=record.headers, once=record.once, stream_id=record.stream_id,
        forks=record.forks, detached=record.detached, steers=record.steers,
    )  # fmt: skip


def response_in(kind: bytes, event: bytes) -> dict[str, Any] | None:
    """The response that an event carries, None for one that carries none."""
    if kind not in _WITH_RESPONSE:
        return None
    body: Mapping[str, Any] = msgspec.json.decode(event)
    found = body.get("response")
    return found if isinstance(found, dict) else None


_WITH_RESPONSE = frozenset(
    b"response." + name
    for name in (b"created", b"queued", b"in_progress", b"completed", b"incomplete", b"failed")
)
