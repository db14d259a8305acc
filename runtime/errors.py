"""Every error that Sessile raises, as one tree; nothing here knows a protocol or a status code.

    SessileError
    ├── RequestError               the caller can mend it
    │   ├── InvalidRequest         the request does not say what it must
    │   ├── Unauthorized           no key, or not one of ours
    │   ├── Forbidden              a known caller, but not for this
    │   ├── ModelNotFound          no replica of the pool serves that model
    │   ├── SessionNotFound        no such session for this tenant
    │   ├── ResponseNotFound       no such response for this tenant
    │   ├── ConversationNotFound   no such conversation, or item of it, for this tenant
    │   ├── TurnNotFound           no such turn for this tenant
    │   ├── ReplicaNotFound        no such replica in the pool
    │   ├── SessionBusy            another turn of the session is running
    │   ├── SessionExpired         the session was closed, or is too old
    │   ├── KeyReused              the idempotency key was used for another request
    │   ├── BodyTooLarge           the request body is over the limit
    │   ├── PromptTooLong          the prompt does not fit in the model's context
    │   ├── ConnectionTooOld       the WebSocket has reached its age limit
    │   └── NotSupported           the engine, or this version, cannot do it
    ├── CapacityError              nothing is wrong but the time
    │   ├── Overloaded             too much is waiting already
    │   └── NoReplica              no replica of the model is ready
    ├── ReplicaError               a replica failed
    │   ├── ReplicaUnreachable     it did not accept the connection, or dropped it before an answer
    │   ├── ReplicaRefused         it answered, and the answer was no
    │   ├── AdapterRefused         it would not load the adapter that the turn asks for
    │   ├── ReplicaTimeout         it accepted and then said nothing for too long
    │   └── StreamBroken           it died while its answer was on the way
    ├── StoreError                 the session store failed
    │   ├── StoreUnavailable       it is slow, gone, or the breaker is open
    │   └── TurnLockLost           the turn's fencing number is no longer the newest
    ├── DiscoveryFailed            where replicas are found could not be read
    ├── ClientGone                 the client hung up, and its turn was to end with it
    ├── TurnCancelled              the turn was cancelled, as somebody asked
    ├── RouterLost                 the router that ran the turn is gone, and could not be replaced
    ├── RouterUnreachable          no router answers at the address the SDK or the CLI was given
    └── SettingsError              a setting cannot be used; said before any socket opens

`code` is stable and travels on the wire: the SDK raises the same class from it (`from_code`).
"""

from typing import ClassVar


class SessileError(Exception):
    """Any error of Sessile; `str(error)` is one sentence that a caller can act on."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class RequestError(SessileError):
    """The request cannot be served as it is; sending it again unchanged cannot help."""

    code = "request_error"


class InvalidRequest(RequestError):
    """The request does not say what it must; `param` names the field where there is one."""

    code = "invalid_request"


class Unauthorized(RequestError):
    """No API key, or not one of those configured."""

    code = "invalid_api_key"


class Forbidden(RequestError):
    """The caller may not do this, whoever it is (a browser's foreign origin, say)."""

    code = "forbidden"


class ModelNotFound(RequestError):
    """No replica of the pool serves the model that was asked for."""

    code = "model_not_found"


class SessionNotFound(RequestError):
    """The session does not exist for this tenant."""

    code = "session_not_found"


class ResponseNotFound(RequestError):
    """The response does not exist for this tenant."""

    code = "previous_response_not_found"


class ConversationNotFound(RequestError):
    """The conversation, or the item of it, does not exist for this tenant."""

    code = "conversation_not_found"


class TurnNotFound(RequestError):
    """The turn does not exist for this tenant, or its receipt has expired."""

    code = "turn_not_found"


class ReplicaNotFound(RequestError):
    """The pool has no replica of that id."""

    code = "replica_not_found"


class KeyReused(RequestError):
    """The idempotency key was used before, for another request."""

    code = "idempotency_key_reused"


class SessionBusy(RequestError):
    """Another turn of the session holds the turn lock."""

    code = "session_busy"
    retryable = True


class SessionExpired(RequestError):
    """The session was closed or has expired; open a new one."""

    code = "session_expired"


class BodyTooLarge(RequestError):
    """The request body, or the WebSocket frame, is over the limit."""

    code = "body_too_large"


class PromptTooLong(RequestError):
    """The prompt does not fit in the model's context."""

    code = "context_length_exceeded"


class ConnectionTooOld(RequestError):
    """The WebSocket begins no more responses: a new one goes on by `previous_response_id`."""

    code = "websocket_connection_limit_reached"


class NotSupported(RequestError):
    """The engine behind this model, or this version of Sessile, cannot do what was asked."""

    code = "not_supported"


class CapacityError(SessileError):
    """Nothing is wrong with the request; there is no room for it now."""

    code = "capacity_error"
    retryable = True


class Overloaded(CapacityError):
    """Too much is waiting already."""

    code = "overloaded"


class NoReplica(CapacityError):
    """No replica of the model is ready."""

    code = "no_replica"


class ReplicaError(SessileError):
    """A replica failed; the request itself may be fine."""

    code = "replica_error"
    retryable = True


class ReplicaUnreachable(ReplicaError):
    """The replica did not accept the connection, or dropped it before any answer."""

    code = "replica_unreachable"


class ReplicaRefused(ReplicaError):
    """The replica answered that it cannot serve now."""

    code = "replica_refused"


class AdapterRefused(ReplicaError):
    """The replica would not load the adapter that was asked for, and says why."""

    code = "adapter_refused"
    retryable = False


class ReplicaTimeout(ReplicaError):
    """The replica said nothing for too long."""

    code = "replica_timeout"


class StreamBroken(ReplicaError):
    """The replica died after a part of its answer had been sent."""

    code = "stream_broken"


class StoreError(SessileError):
    """The session store failed."""

    code = "store_error"
    retryable = True


class StoreUnavailable(StoreError):
    """The store is slow, gone, or held off by the breaker; turns go on without it."""

    code = "store_unavailable"


class TurnLockLost(StoreError):
    """A newer turn has taken the session's turn lock; this one's result was not written."""

    code = "turn_lock_lost"


class DiscoveryFailed(SessileError):
    """A source of replicas could not be read; those that it listed last stay."""

    code = "discovery_failed"
    retryable = True


class ClientGone(SessileError):
    """The client hung up, and its turn was to end with it."""

    code = "client_gone"


class TurnCancelled(SessileError):
    """The turn was cancelled, as somebody asked."""

    code = "turn_cancelled"


class RouterLost(SessileError):
    """The router that ran the turn is gone; what it had told stays, the rest is not known."""

    code = "router_lost"
    retryable = True


class RouterUnreachable(SessileError):
    """No router answers at that address; the message names it and how to start one."""

    code = "router_unreachable"
    retryable = True


class SettingsError(SessileError):
    """A setting cannot be used; the message names it and its value."""

    code = "settings_error"


def leaves(root: type[SessileError] = SessileError) -> list[type[SessileError]]:
    """Every class of the tree that has no subclass."""
    below = root.__subclasses__()
    return [leaf for child in below for leaf in leaves(child)] if below else [root]


def from_code(code: str, message: str, **context: object) -> SessileError:
    """The error that `code` names, as the SDK raises it; an unknown code gives `SessileError`."""
    for leaf in leaves():
        if leaf.code == code:
            return leaf(message, **context)  # type: ignore[arg-type]
    return SessileError(message, **context)  # type: ignore[arg-type]
