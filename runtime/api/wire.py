"""What errors look like on each wire: one table from class to status and types."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from starlette.types import Send

from sessile import errors
from sessile.errors import SessileError


class Wire(NamedTuple):
    """How one class of error is told: HTTP status, OpenAI type, Anthropic type."""

    status: int
    openai_type: str
    anthropic_type: str


_INVALID = "invalid_request_error"
_ANY = Wire(500, "server_error", "api_error")

WIRE: Mapping[type[SessileError], Wire] = {
    errors.InvalidRequest: Wire(400, _INVALID, _INVALID),
    errors.Unauthorized: Wire(401, "authentication_error", "authentication_error"),
    errors.Forbidden: Wire(403, "permission_error", "permission_error"),
    errors.ModelNotFound: Wire(404, _INVALID, "not_found_error"),
    errors.SessionNotFound: Wire(404, _INVALID, "not_found_error"),
    errors.ResponseNotFound: Wire(404, _INVALID, "not_found_error"),
    errors.ConversationNotFound: Wire(404, _INVALID, "not_found_error"),
    errors.TurnNotFound: Wire(404, _INVALID, "not_found_error"),
    errors.ReplicaNotFound: Wire(404, _INVALID, "not_found_error"),
    errors.SessionBusy: Wire(409, "conflict_error", _INVALID),
    errors.SessionExpired: Wire(410, _INVALID, _INVALID),
    errors.KeyReused: Wire(422, _INVALID, _INVALID),
    errors.BodyTooLarge: Wire(413, _INVALID, "request_too_large"),
    errors.PromptTooLong: Wire(400, _INVALID, _INVALID),
    errors.ConnectionTooOld: Wire(400, _INVALID, _INVALID),
    errors.NotSupported: Wire(501, _INVALID, _INVALID),
    errors.Overloaded: Wire(429, "rate_limit_error", "rate_limit_error"),
    errors.NoReplica: Wire(503, "server_error", "overloaded_error"),
    errors.ReplicaUnreachable: Wire(502, "server_error", "api_error"),
    errors.ReplicaRefused: Wire(502, "server_error", "api_error"),
    errors.AdapterRefused: Wire(400, _INVALID, _INVALID),
    errors.ReplicaTimeout: Wire(504, "server_error", "api_error"),
    errors.StreamBroken: Wire(502, "server_error", "api_error"),
    errors.StoreUnavailable: Wire(503, "server_error", "api_error"),
    errors.TurnLockLost: Wire(409, "conflict_error", _INVALID),
    errors.DiscoveryFailed: Wire(503, "server_error", "api_error"),
    errors.ClientGone: Wire(499, _INVALID, _INVALID),
    errors.TurnCancelled: Wire(409, _INVALID, _INVALID),
    errors.RouterLost: Wire(502, "server_error", "api_error"),
    errors.RouterUnreachable: Wire(502, "server_error", "api_error"),
    errors.SettingsError: Wire(500, "server_error", "api_error"),
}


def wire_of(error: SessileError) -> Wire:
    """The table's row for an error's class."""
    return WIRE.get(type(error), _ANY)


def openai_error(error: SessileError) -> dict[str, Any]:
    """The body that OpenAI's clients read: `{"error": {message, type, param, code}}`."""
    return {
        "error": {
            "message": error.message,
            "type": wire_of(error).openai_type,
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic_error(error: SessileError, request_id: str) -> dict[str, Any]:
    """The body that Anthropic's clients read; `request_id` is the turn's, where there was one."""
    told: dict[str, Any] = {"type": wire_of(error).anthropic_type, "message": error.message}
    if error.param == "thread":
        # The word on which Anthropic's client sends whole conversations instead.
        told["details"] = {"error_code": "thread_unsupported_request"}
    return {"type": "error", "error": told, "request_id": request_id}


def retry_headers(error: SessileError) -> list[tuple[bytes, bytes]]:
    """`Retry-After` where the error knows when to come back; where coming back is of no use, and
    clients take the status for one where it is, the header that official SDKs heed instead."""
    if error.retry_after_s is None:
        row = WIRE.get(type(error))  # none for a fault of ours, which may be gone the next time
        if row is None or error.retryable or (row.status != 409 and row.status < 500):
            return []
        return [(b"x-should-retry", b"false")]
    return [(b"retry-after", str(max(1, round(error.retry_after_s))).encode())]


async def send_error(send: Send, error: SessileError) -> None:
    """The error in OpenAI's shape, with the status of the table."""
    data = msgspec.json.encode(openai_error(error))
    await send(
        {
            "type": "http.response.start",
            "status": wire_of(error).status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(data)).encode()),
                *retry_headers(error),
            ],
        }
    )
    await send({"type": "http.response.body", "body": data})


_TOO_LONG = (
    ("context", "length"), ("context", "size"),
    ("prompt length", "max_num_tokens"), ("prompt_len", "max_seq_len"),  # TensorRT-LLM's
    ("`inputs`", "tokens"),  # TGI's
    ("n_keep", "n_ctx"),  # LM Studio's
)  # fmt: skip
"""Words that stand together in an engine's refusal of a prompt that does not fit."""


def engine_error(status: int, body: bytes) -> SessileError:
    """An engine's own refusal (status 400 and up) as our error, its sentence kept."""
    message = _engine_message(body) or f"the engine answered {status}"
    lowered = message.lower()
    if status in (400, 413, 422) and any(
        first in lowered and second in lowered for first, second in _TOO_LONG
    ):
        return errors.PromptTooLong(message)
    if status == 404:
        return errors.ModelNotFound(message)
    if status == 429:
        return errors.Overloaded(message)
    if status == 501:
        return errors.NotSupported(message)
    if status < 500:
        return errors.InvalidRequest(message)
    return errors.ReplicaRefused(message)


def _engine_message(body: bytes) -> str | None:
    """Engines say it as `error.message`, `message`, `detail` or `error`."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(said, dict):
        return None
    inner = said.get("error")
    for value in (inner.get("message") if isinstance(inner, dict) else inner, said.get("message"),
                  said.get("detail")):  # fmt: skip
        if isinstance(value, str) and value:
            return value
    return None
