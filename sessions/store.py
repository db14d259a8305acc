"""What a session store must do, as a protocol; `memory_store` is the reference, `redis_store` the
one that many routers share.

Every method may raise `StoreUnavailable`, at once or after the store's own short time-out, and
never hangs: the caller goes on without. Commands issued in the same tick of the loop travel in one
round trip, so `asyncio.gather(store.claim(...), store.acquire(...))` costs one.
"""

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from sessile.sessions.conversation import Conversations
from sessile.sessions.record import Binding, SessionKey, SessionRecord, TurnRecord
from sessile.sessions.stream_log import LogLimits, StreamLog

NEWS_LIVE = 10
"""How many times longer than reports news are kept."""
NEWS_AT_ONCE = 256
"""How many pieces of news are told at once, at most."""


class StoreLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long each kind of fact lives, in seconds from its last use."""

    ttl_s: float = 24 * 3600.0
    binding_ttl_s: float = 3600.0
    turn_ttl_s: float = 24 * 3600.0
    idempotency_ttl_s: float = 600.0
    events: LogLimits = LogLimits()


class Claim(msgspec.Struct, frozen=True):
    """What `claim` found or made.

    `binding` is the one in force: ours if `won`, else the one that was there first.
    `state` and `context_tokens` are the record's (an unknown session is open, with 0 tokens).
    """

    binding: Binding
    won: bool
    state: Literal["open", "closed"]
    context_tokens: int


class Assignment(msgspec.Struct, frozen=True):
    """To which variant of a served name a session belongs. `left` is the one that it was moved from
    by this very call, `new` says that nothing was known of it before."""

    variant: str
    left: str | None = None
    new: bool = False


class TurnEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished turn changes in its session's record; written in one step.

    `fence` is the turn lock's number, None for a turn that took no lock. `lineage` are the keys
    (see `sessions.prefix`) under which a later request finds this session without naming it, asking
    for `served` (None: the key's model). Token counts are None where the engine did not say.
    """

    key: SessionKey
    turn: str
    binding: Binding | None
    fence: int | None = None
    stateful: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    parent: str | None = None
    lineage: Sequence[str] = ()
    served: str | None = None


class OnceKey(NamedTuple):
    """An idempotency key. `asked` is a digest of what was asked under it, empty where that is not
    compared."""

    key: str
    asked: str = ""


class Running(NamedTuple):
    """The turn that runs under an idempotency key, the digest that this was taken with, and whether
    its lease does; the router of one whose lease has run out may be gone."""

    turn: str
    asked: str
    leased: bool = True


class HeldKey(NamedTuple):
    """An idempotency key that was given to a turn, which runs."""

    tenant: str
    key: str
    turn: str


class StoredResult(msgspec.Struct, frozen=True):
    """The answer kept under an idempotency key, whole: what the repeated request is given."""

    turn: str
    status: int
    content_type: str
    body: bytes
    asked: str = ""


class Told(msgspec.Struct, frozen=True):
    """What `exchange` gives of the other routers.

    `reports` are the newest of those that live, by router; `news` are pairs of a router and what it
    told, in the order in which they came; `seen` goes with the next call.
    """

    reports: dict[str, bytes]
    news: list[tuple[str, bytes]]
    seen: str


class Store(Protocol):
    """Keeps sessions, bindings, turn locks, turns and lineage, all with an expiry."""

    async def open(self) -> None:
        """Connect and load the scripts; a store that cannot be reached opens degraded, no raise."""

    async def aclose(self) -> None:
        """Write what is queued, within the time-out, and let go of the connection."""

    @property
    def available(self) -> bool:
        """Whether the last word from the store was good (False while the breaker is open)."""

    @property
    def available_since(self) -> float:
        """When it last came to be available, on the monotonic clock: what it confirmed before may
        be gone, since it may have been restarted empty."""

    @property
    def conversations(self) -> Conversations:
        """The conversations of the Responses API, kept beside the sessions."""

    @property
    def events(self) -> StreamLog:
        """The log of the events of turns."""

    # -- the binding: three atomic steps, nothing else ever writes it

    async def claim(self, key: SessionKey, replica: str, incarnation: str) -> Claim:
        """Bind the session to `replica` at epoch 1 if it is bound nowhere; tell what is in force.

        An existing binding is left as it is, and its expiry renewed.
        """

    async def refresh(self, key: SessionKey, binding: Binding) -> Binding | None:
        """Renew the expiry if `binding` is still exactly what is stored.

        Returns the binding in force, which may be another's, or None: a binding that has
        expired is not revived.
        """

    async def rebind(
        self, key: SessionKey, seen: Binding, replica: str, incarnation: str
    ) -> Binding:
        """Move the session to `replica` at `seen.epoch + 1` if `seen` is still in force or gone.

        Returns the binding in force afterwards: another's where the comparison failed.
        """

    # -- which variant of a served name a session belongs to

    async def assign(
        self, key: SessionKey, variants: Sequence[str], keeping: Collection[str], proposal: str
    ) -> Assignment:
        """The variant of the session `key`, whose model is the served name; one word for all
        routers, kept as long as the session is.

        It is the one that was said before, else the first of `variants` that the session has a
        record or a binding under; if that is one of `keeping`, or closed there, or none of
        `variants`, it stays. Else it is `proposal` from now on.
        """

    # -- the turn lock

    async def acquire(self, key: SessionKey, turn: str, ttl_s: float) -> int | None:
        """Take the session's turn lock; its fencing number (growing for ever), or None if another
        turn holds it. The turn that holds it already is given a higher number: it was taken over.
        """

    async def release(self, key: SessionKey, turn: str) -> None:
        """Give the lock back if `turn` still holds it."""

    # -- turns and sessions

    def end_turn(self, end: TurnEnd, record: TurnRecord) -> None:
        """Queue the end of a turn: record, binding's expiry, lineage and the turn itself.

        Never waits and never raises; it is written within a few milliseconds, in one round trip
        with others. What could not be written is counted in `lost_writes`.
        """

    async def commit_turn(self, end: TurnEnd, record: TurnRecord) -> None:
        """The same, awaited: for stateful turns, whose successor may come at once, at any router.

        Raises `TurnLockLost` if `end.fence` is not the newest number of the session's turn lock:
        the session's record is then as it was. The turn itself is kept, since it did run.
        """

    @property
    def lost_writes(self) -> int:
        """How many queued turn ends could not be written since the store was opened."""

    def put_turn(self, record: TurnRecord) -> None:
        """Queue a turn that changes nothing in its session: one that was not brought to its end.
        As `end_turn`, it never waits."""

    async def get_turn(self, tenant: str, turn: str) -> TurnRecord | None:
        """The stored turn, None if it expired or belongs to another tenant."""

    async def delete_turn(self, tenant: str, turn: str) -> bool:
        """Drop a stored turn with all that it added; False if there is none."""

    async def create_session(self, record: SessionRecord) -> bool:
        """Store a new session; False if one of that tenant, model and id is there already."""

    async def find_session(self, tenant: str, session: str) -> list[SessionRecord]:
        """The records of that session id, one for each model it has spoken to; none if it
        expired or belongs to another tenant."""

    async def close_session(self, key: SessionKey) -> bool:
        """Mark it closed and drop its binding; False if there is none. Closing twice is fine."""

    async def list_sessions(self, tenant: str, limit: int) -> list[SessionRecord]:
        """The tenant's sessions, the most recently used first."""

    async def find_lineage(self, tenant: str, model: str, keys: Sequence[str]) -> str | None:
        """The session that the first known of `keys` (deepest first) leads to."""

    # -- what routers tell each other

    async def exchange(
        self, router: str, report: bytes, ttl_s: float, *, news: bytes = b"", seen: str = ""
    ) -> Told:
        """Leave this router's report for the others, and its news if there are any; take theirs.

        A report that is not renewed for `ttl_s` is gone, so that a router that was killed is
        forgotten. News are kept for `NEWS_LIVE` times as long, and told to each other router once:
        those since `seen`, all that there are for "". A long backlog takes several calls; what is
        gone by then, or was lost with the store, is never told.
        """

    async def put_adapter(self, name: str, data: bytes) -> None:
        """Keep what is said of the LoRA adapter of that name, for all routers."""

    async def adapters(self) -> dict[str, bytes]:
        """What was said of each, last; it lives as long as sessions do since anybody asked."""

    async def put_release(self, served: str, seen: bytes | None, data: bytes) -> bytes:
        """Say what a served name means, if `seen` is what was said last (None: nothing), and tell
        what is said now: another's words where that was not so."""

    async def releases(self) -> dict[str, bytes]:
        """What was said of each served name, last; kept as adapters are."""

    async def put_figures(self, release: str, router: str, data: bytes) -> None:
        """Keep what this router has counted of a release; its own last counts are replaced."""

    async def figures(self, release: str) -> dict[str, bytes]:
        """What routers have counted of it, those too that are gone."""

    # -- idempotency

    async def begin_once(
        self, tenant: str, once: OnceKey, turn: str
    ) -> StoredResult | Running | None:
        """Reserve an idempotency key for `turn`.

        None: it is ours for the time of a lease, run the turn. `Running`: that turn is running
        under it. A `StoredResult`: it has been answered.
        """

    async def renew_once(self, held: Sequence[HeldKey]) -> None:
        """The turns run still: the lease and the expiry of each one's key begin anew. A key that is
        another turn's by now, or nobody's, is left as it is."""

    async def end_once(self, held: HeldKey, result: StoredResult | None) -> None:
        """The turn has ended, or is gone: keep its answer under the key, or with None free the key
        for another try. A key that is another turn's by now is left as it is."""
