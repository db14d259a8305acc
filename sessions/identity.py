"""Which session a request belongs to, by what the request itself says; pure, no look-up.

Agents name their session in many ways. All are accepted, in one order, and the first that is
present wins; hints that only group requests name no conversation. With none of these the lineage
of the messages tells (`sessions.prefix`), for which the store is asked elsewhere.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sessile.errors import InvalidRequest
from sessile.sessions.prefix import Lineage

_HEADERS = (
    b"x-session-id",
    b"x-claude-code-session-id",
    b"session-id",
    b"session_id",
    b"x-session-affinity",
    b"x-amp-thread-id",
    b"x-dynamo-session-id",
    b"x-smg-routing-key",
    b"x-litellm-session-id",
)
_PARENT_HEADERS = (b"x-parent-session-id", b"x-dynamo-parent-session-id")
_RANK = {name: rank for rank, name in enumerate(_HEADERS)}
_PARENT_RANK = {name: rank for rank, name in enumerate(_PARENT_HEADERS)}
HEADERS = frozenset(_HEADERS + _PARENT_HEADERS)
"""All that `read_claims` looks at."""
_LONGEST_ID = 256
_CLAUDE_CODE_USER = re.compile(r"_session_([0-9a-fA-F-]{36})$")


class SessionClaims(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of its session.

    `explicit` names a conversation. `group` only asks for placement beside others of the same
    group. `parent` is the session that this one was started by. `lineage` stands in where nothing
    was named explicitly.
    """

    explicit: str | None = None
    parent: str | None = None
    group: str | None = None
    lineage: Lineage | None = None


def read_claims(
    headers: Iterable[tuple[bytes, bytes]],
    body: Mapping[str, Any],
    messages: Iterable[Mapping[str, Any]] | None = None,
) -> SessionClaims:
    """The claims of one request: ASGI headers (lower-case names), decoded body, its messages.

    Raises `InvalidRequest` for an id that cannot be one (empty, over 256 characters, control
    characters) and for one header that comes twice with different values.
    """
    explicit, parent = _from_headers(headers)
    if explicit is None:
        explicit = _from_body(body)
    lineage = None
    if explicit is None and messages is not None:
        lineage = Lineage(messages)
    return SessionClaims(explicit=explicit, parent=parent, group=_group(body), lineage=lineage)


def checked_id(value: object, name: str) -> str:
    """`value` as a session id; raises `InvalidRequest` naming `name`."""
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{name} must be a non-empty string", param=name)
    if len(value) > _LONGEST_ID:
        raise InvalidRequest(
            f"{name} is {len(value)} characters long; at most {_LONGEST_ID} are accepted",
            param=name,
        )
    if not value.isprintable():
        raise InvalidRequest(f"{name} holds a control character", param=name)
    return value


def _from_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str | None, str | None]:
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in _RANK and name not in _PARENT_RANK:
            continue
        if found.setdefault(name, value) != value:
            shown = name.decode()
            raise InvalidRequest(f"the header {shown} came twice, with two values", param=shown)
    if not found:
        return None, None
    return _first(found, _RANK), _first(found, _PARENT_RANK)


def _first(found: Mapping[bytes, bytes], rank: Mapping[bytes, int]) -> str | None:
    names = sorted((name for name in found if name in rank), key=rank.__getitem__)
    if not names:
        return None
    name = names[0].decode()
    try:
        value = found[names[0]].decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the header {name} is not UTF-8", param=name) from error
    return checked_id(value, name)


def _from_body(body: Mapping[str, Any]) -> str | None:
    value = body.get("session_id")
    if value is not None:
        return checked_id(value, "session_id")
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        value = metadata.get("session_id")
        if value is not None:
            return checked_id(value, "metadata.session_id")
        user = metadata.get("user_id")
        if isinstance(user, str):
            return _packed(user)
    return None


def _packed(user: str) -> str | None:
    """The session that Claude Code packs in a user id: at its end, or, in newer versions, in a
    JSON object. Any other user id names no conversation."""
    if packed := _CLAUDE_CODE_USER.search(user):
        return packed[1]
    if not user.startswith("{"):
        return None
    try:
        value = msgspec.json.decode(user).get("session_id")
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    return checked_id(value, "metadata.user_id") if isinstance(value, str) and value else None


def _group(body: Mapping[str, Any]) -> str | None:
    for name in ("prompt_cache_key", "user", "safety_identifier"):
        value = body.get(name)
        if isinstance(value, str) and value:
            return value[:_LONGEST_ID]
    return None
