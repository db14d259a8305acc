"""The nouns of a session: keys, records, bindings, turns and receipts. No behaviour, no I/O."""

from typing import Any, Literal

import msgspec


class SessionKey(msgspec.Struct, frozen=True, gc=False):
    """Names one session for one model; every stored fact of a session hangs under it.

    `tenant` is derived by the server from the API key, `session` is the client's id or ours.
    A session that speaks to two models has two keys, and so two bindings.
    """

    tenant: str
    model: str
    session: str

    @property
    def text(self) -> str:
        """The key as one string."""
        return f"{self.tenant}\x1f{self.model}\x1f{self.session}"

    @property
    def attribution(self) -> str:
        """The session as engines are told of it: what they store for it comes back under it."""
        return self.session if self.tenant == "default" else f"{self.tenant}/{self.session}"

    @classmethod
    def read(cls, text: str) -> "SessionKey":
        """The key that `text` gave. Raises `ValueError` for what no key gives."""
        tenant, model, session = text.split("\x1f", 2)
        return cls(tenant, model, session)


class Binding(msgspec.Struct, frozen=True, gc=False):
    """Which replica a session belongs to, fenced.

    `incarnation` changes at each start of the replica: a binding to an older one means that the
    KV cache is gone. `epoch` grows by one at every rebind: a writer holding an older epoch loses.
    """

    replica: str
    incarnation: str
    epoch: int


class SessionRecord(msgspec.Struct, kw_only=True):
    """The stored fact of a session; the user's handle on it is `sessile.Session`.

    `head` is the id of its last finished turn, `context_tokens` the prompt plus the reply of that
    turn: what a replica that ran it should hold. Times are Unix seconds.
    """

    tenant: str
    session: str
    model: str
    state: Literal["open", "closed"] = "open"
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


class Receipt(msgspec.Struct, kw_only=True, gc=False):
    """What the caller is told of a turn's decision and of what came of it.

    `None` means unknown: the engine did not report it. Times in seconds; `started_at` is Unix time.
    `ttft_s` is from the request to the first token, `queue_s` of it in the router's queue, and
    `replica_ttft_s` the part from sending it to the replica, which is what `predicted_ttft_s`
    foresaw. `continued` is how often the answer went on at another replica after its own was lost,
    `replicas` then all that made it, in order; what is reported of the cache is the last one's.
    `acceptance_length` is tokens a decoding step, where the replica speculates and tells.
    Where `model` has a release, `variant` is the one that served the turn, and `left` the one that
    its session was moved from for this turn.
    """

    turn: str
    session: str | None
    model: str
    policy: str
    variant: str | None = None
    left: str | None = None
    replica: str | None = None
    incarnation: str | None = None
    reason: str | None = None
    attempts: int = 0
    continued: int = 0
    replicas: tuple[str, ...] = ()
    outcome: str = "running"
    status: int | None = None
    started_at: float = 0.0
    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    duration_s: float | None = None
    predicted_cached_tokens: int | None = None
    predicted_ttft_s: float | None = None
    replica_ttft_s: float | None = None
    cached_tokens: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    acceptance_length: float | None = None
    store: Literal["ok", "degraded"] = "ok"


class TurnRecord(msgspec.Struct, kw_only=True):
    """One stored turn: its receipt, and for a Responses turn the transcript it added.

    `parent` is the turn it follows (`previous_response_id`); walking parents gives the whole
    conversation. `input_items` holds only what this turn brought, `response` the finished object.
    """

    turn: str
    tenant: str
    session: str | None
    model: str
    parent: str | None = None
    instructions: str | None = None
    input_items: list[dict[str, Any]] = []
    output_items: list[dict[str, Any]] = []
    response: dict[str, Any] | None = None
    receipt: Receipt | None = None
