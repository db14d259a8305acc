"""The router's HTTP calls that the SDK and the command line make, and how their answers read.

Sans-I/O: a `Call` says what to send and as what to read the answer; `http` sends it.
"""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from sessile.errors import ReplicaRefused, RouterUnreachable, SessileError, Unauthorized, from_code
from sessile.sessions.record import Receipt

T = TypeVar("T")


class Model(msgspec.Struct):
    """One entry of `/v1/models`."""

    id: str


class Models(msgspec.Struct):
    data: list[Model]


class SessionInfo(msgspec.Struct, kw_only=True):
    """A session as the router shows it: its record, and where it is bound."""

    session: str
    model: str
    state: str = "open"
    created_at: float = 0.0
    last_turn_at: float = 0.0
    turns: int = 0
    head: str | None = None
    parent: str | None = None
    program: str | None = None
    context_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    metadata: dict[str, Any] = {}
    replica: str | None = None
    hit_rate: float | None = None


class SessionList(msgspec.Struct):
    sessions: list[SessionInfo]


class TurnInfo(msgspec.Struct, kw_only=True):
    """What of a stored turn a later turn needs."""

    turn: str
    instructions: str | None = None
    output_items: list[dict[str, Any]] = []

    @property
    def calls(self) -> bool:
        """Whether it ends with calls that its client is to answer."""
        return any(item.get("type") == "function_call" for item in self.output_items)


class ResponseInfo(msgspec.Struct):
    """What of a response its session's handle needs."""

    id: str
    model: str
    instructions: str | None = None


class RunningTurn(msgspec.Struct):
    """The session's turn that runs now, if there is one."""

    session: str
    turn: str | None = None


class ReplicaInfo(msgspec.Struct, kw_only=True):
    """A replica as the router shows it. None: the engine does not say; `rank` is that of a replica
    which is one data-parallel rank of its server."""

    id: str
    url: str
    engine: str
    state: str
    server: str | None = None
    rank: int | None = None
    models: list[str] = []
    incarnation: str | None = None
    version: str | None = None
    context_tokens: int | None = None
    in_flight: int = 0
    sessions: int = 0
    load: dict[str, Any] | None = None
    kv: dict[str, Any] | None = None
    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    hit_rate: float | None = None
    speculates: bool | None = None
    acceptance_length: float | None = None
    failures: int = 0
    why: str | None = None
    warning: str | None = None


class AdapterInfo(msgspec.Struct, kw_only=True):
    """A LoRA adapter as the router shows it: where it is loaded, and who refused it and why."""

    name: str
    base: str
    path: str | None = None
    loaded: list[str] = []
    refused: dict[str, str] = {}


class AdapterInfos(msgspec.Struct):
    adapters: list[AdapterInfo]


class SideInfo(msgspec.Struct, kw_only=True):
    """A variant of a release as the router shows it; times in seconds, None: not known yet."""

    variant: str
    percent: float
    moves_in_s: float | None = None
    ready: int = 0
    replicas: list[str] = []
    sessions: int = 0
    swapped: int = 0
    turns: int = 0
    errors: int = 0
    refused: int = 0
    ttft_p50_s: float | None = None
    ttft_p90_s: float | None = None
    tokens_per_s: float | None = None
    completion_tokens: int = 0
    hit_rate: float | None = None


class ReleaseInfo(msgspec.Struct, kw_only=True):
    """What a model's name means, with the figures of its variants."""

    model: str
    state: str
    source: str
    target: str
    in_force_in_s: float = 0.0
    deadline_s: float | None = None
    routers: int = 1
    variants: list[SideInfo] = []


class ReleaseList(msgspec.Struct):
    releases: list[ReleaseInfo]


class Lease(msgspec.Struct):
    """Whether a session's KV memory is held now; it is not while a turn runs, or long after one."""

    session: str
    seconds: float
    held: bool


class ReplicaList(msgspec.Struct):
    replicas: list[ReplicaInfo]


class Ready(msgspec.Struct):
    """`/ready`: `status` is ready, degraded, starting or down; `discovery` says of each source that
    it is `ok`, or why it cannot be read."""

    status: str
    store: str = "ok"
    replicas: dict[str, int] = {}
    discovery: dict[str, str] = {}


@dataclass(frozen=True)
class Call(Generic[T]):
    """One HTTP request, and the type of its answer; `accepts` are the statuses that carry one."""

    method: str
    path: str
    answer: type[T]
    body: dict[str, Any] | None = None
    headers: dict[str, str] | None = None
    accepts: tuple[int, ...] = (200, 201, 202, 204)

    def content(self) -> bytes | None:
        """The body as bytes."""
        return None if self.body is None else msgspec.json.encode(self.body)

    def read(self, status: int, body: bytes) -> T:
        """The answer; raises the error that the router tells of."""
        if status not in self.accepts:
            raise read_error(status, body)
        try:
            return msgspec.json.decode(body or b"null", type=self.answer)
        except msgspec.MsgspecError as error:
            raise ReplicaRefused(
                f"{self.path} was not answered as a Sessile router does: {error}"
            ) from error


_V1 = "/sessile/v1"


def list_models() -> Call[Models]:
    return Call("GET", "/v1/models", Models)


def ready() -> Call[Ready]:
    return Call("GET", "/ready", Ready, accepts=(200, 503))


def list_sessions(limit: int) -> Call[SessionList]:
    return Call("GET", f"{_V1}/sessions?limit={limit}", SessionList)


def show_session(session: str) -> Call[SessionInfo]:
    return Call("GET", f"{_V1}/sessions/{_part(session)}", SessionInfo)


def fork_session(session: str, n: int) -> Call[SessionList]:
    return Call("POST", f"{_V1}/sessions/{_part(session)}/fork", SessionList, {"n": n})


def close_session(session: str) -> Call[SessionInfo]:
    return Call("POST", f"{_V1}/sessions/{_part(session)}/close", SessionInfo)


def lease_session(session: str, seconds: float) -> Call[Lease]:
    path = f"{_V1}/sessions/{_part(session)}/lease"
    return Call("POST", path, Lease, {"seconds": seconds})


def show_turn(turn: str) -> Call[TurnInfo]:
    return Call("GET", f"{_V1}/turns/{_part(turn)}", TurnInfo)


def show_receipt(turn: str) -> Call[Receipt]:
    return Call("GET", f"{_V1}/turns/{_part(turn)}/receipt", Receipt)


def begin_response(body: dict[str, Any], key: str, headers: dict[str, str]) -> Call[ResponseInfo]:
    body = {**body, "background": True}
    return Call("POST", "/v1/responses", ResponseInfo, body, {**headers, "Idempotency-Key": key})


def find_running(session: str) -> Call[RunningTurn]:
    return Call("GET", f"{_V1}/running/{_part(session)}", RunningTurn)


def describe_response(response: str) -> Call[ResponseInfo]:
    return Call("GET", f"/v1/responses/{_part(response)}", ResponseInfo)


def show_response(response: str) -> Call[dict[str, Any]]:
    return Call("GET", f"/v1/responses/{_part(response)}", dict[str, Any])


def follow_response(response: str, after: int) -> Call[Any]:
    """Its events behind number `after`, as server-sent events; all of them behind -1."""
    behind = "" if after < 0 else f"&starting_after={after}"
    return Call("GET", f"/v1/responses/{_part(response)}?stream=true{behind}", object)


def steer_turn(turn: str, text: str, key: str) -> Call[dict[str, Any]]:
    """Say something into a turn, at whichever router; what a WebSocket would be told."""
    body = {"input": text, "idempotency_key": key}
    return Call("POST", f"{_V1}/turns/{_part(turn)}/steer", dict[str, Any], body)


def cancel_turn(turn: str) -> Call[Any]:
    return Call("POST", f"{_V1}/turns/{_part(turn)}/cancel", object)


def list_replicas() -> Call[ReplicaList]:
    return Call("GET", f"{_V1}/replicas", ReplicaList)


def add_replica(
    engine: str, url: str, id: str | None = None, pool: str | None = None, standby: bool = False
) -> Call[ReplicaInfo]:
    body = {"engine": engine, "url": url, "id": id, "pool": pool, "standby": standby}
    return Call("POST", f"{_V1}/replicas", ReplicaInfo, body)


def drain_replica(id: str) -> Call[ReplicaInfo]:
    return Call("POST", f"{_V1}/replicas/{_part(id)}/drain", ReplicaInfo)


def resume_replica(id: str) -> Call[ReplicaInfo]:
    return Call("POST", f"{_V1}/replicas/{_part(id)}/resume", ReplicaInfo)


def remove_replica(id: str) -> Call[Any]:
    return Call("DELETE", f"{_V1}/replicas/{_part(id)}", object)


def list_releases() -> Call[ReleaseList]:
    return Call("GET", f"{_V1}/releases", ReleaseList)


def begin_swap(model: str, to: str, percent: float, deadline_s: float | None) -> Call[ReleaseInfo]:
    body = {"model": model, "to": to, "percent": percent, "deadline_s": deadline_s}
    return Call("POST", f"{_V1}/releases", ReleaseInfo, body)


def grow_swap(model: str, percent: float) -> Call[ReleaseInfo]:
    path = f"{_V1}/releases/{_part(model)}/share"
    return Call("POST", path, ReleaseInfo, {"percent": percent})


def finish_swap(model: str, deadline_s: float | None) -> Call[ReleaseInfo]:
    path = f"{_V1}/releases/{_part(model)}/finish"
    return Call("POST", path, ReleaseInfo, {"deadline_s": deadline_s})


def roll_back_swap(model: str, deadline_s: float | None) -> Call[ReleaseInfo]:
    path = f"{_V1}/releases/{_part(model)}/roll-back"
    return Call("POST", path, ReleaseInfo, {"deadline_s": deadline_s})


def list_adapters() -> Call[AdapterInfos]:
    return Call("GET", f"{_V1}/adapters", AdapterInfos)


def add_adapter(name: str, base: str, path: str) -> Call[AdapterInfo]:
    return Call("POST", f"{_V1}/adapters", AdapterInfo, {"name": name, "base": base, "path": path})


def remove_adapter(name: str) -> Call[Any]:
    return Call("DELETE", f"{_V1}/adapters/{_part(name)}", object)


def read_error(status: int, body: bytes) -> SessileError:
    """An error answer of the router, as the class that its code names."""
    try:
        told = msgspec.json.decode(body)["error"]
        message, code = str(told["message"]), str(told.get("code") or "")
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        code, message = "", f"the router answered {status}"
    error = from_code(code, message)
    if type(error) is SessileError and status == 401:
        return Unauthorized(message)
    return error


def unreachable(url: str, error: BaseException) -> RouterUnreachable:
    """The error for an address where nobody answers."""
    reason = str(error) or type(error).__name__
    return RouterUnreachable(
        f"no router answers at {url} ({reason}); start one with `sessile up`, or give its address"
        " as base_url or SESSILE_URL"
    )


def _part(value: str) -> str:
    return quote(value, safe="")
