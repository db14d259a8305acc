"""How an engine is spoken to, and what its replicas say of themselves."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from sessile.router.adapters import Adapter


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica said of itself, and when. None: the engine does not report it."""

    at: float
    running: int | None = None
    waiting: int | None = None
    used_tokens: int | None = None
    capacity_tokens: int | None = None
    slots: int | None = None
    computed: float | None = None
    """Changes with what it computes, and only then; what it counts is its own. None too where
    `used_tokens` changes so."""


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one reply as the engine reported them; None is unknown, never zero."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    acceptance_length: float | None = None
    """Tokens a step, of an engine that speculates: those of the draft that it accepted, and the one
    that is certain."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica says it is: its models, and an incarnation that changes at each start.

    `incarnation` is None where the engine gives nothing to tell two starts apart; a session then
    stays bound through a restart, and only its next turn's cached tokens tell.
    """

    models: tuple[str, ...]
    adapters: tuple[Adapter, ...] = ()
    """Those that it has loaded; they are not among its models."""
    most_adapters: int | None = None
    """How many it can have loaded, where it says so."""
    incarnation: str | None = None
    context_tokens: int | None = None
    ranks: int = 1
    """Its data-parallel ranks, each of which has KV memory and a queue of its own."""
    version: str | None = None
    counts_cached: bool = False
    """Whether it says that each answer will tell what was found cached, if anything was."""
    host_ratio: float = 0.0
    """The host cache, as a multiple of the KV memory; 0 where there is none."""
    holds_sessions: bool = False
    """Whether it evicts what sessions have there after all else, until they are released."""
    names_sessions: bool = False
    """Whether its KV events tell for which session, of those that it was told of, they store."""
    speculates: bool | None = None
    """Whether it decodes speculatively; None where it does not say."""
    acceptance_length: float | None = None
    """Tokens a step, over all that it has run, where it says so."""
    orders: Literal["low_first", "high_first"] | None = None
    """How it orders requests that carry a priority, if it does."""
    lacks: frozenset[str] = frozenset()
    """Which of `router.needs` its model has not, where it says so."""
    warning: str | None = None
    """What its operator should know: it serves, but not as sessions need it."""


Headers = Sequence[tuple[bytes, bytes]]
"""Header names, in lower case, and values, as they go over the wire."""


class Call(msgspec.Struct, frozen=True):
    """One HTTP request to a replica, by path below its base URL."""

    method: Literal["GET", "POST"]
    path: str
    body: bytes = b""


class Reply(msgspec.Struct, frozen=True):
    """One whole HTTP answer of a replica."""

    status: int
    body: bytes


Steps = Generator[Call, Reply, None]
"""Calls to one replica, each made from the replies to those before; `ReplicaRefused` ends them."""


class Own(msgspec.Struct, frozen=True):
    """A request to a path of the engine's for the very API that the client speaks."""

    path: str
    document: Mapping[str, Any]
    headers: Headers = ()


class FollowUp(msgspec.Struct, frozen=True):
    """The request that goes on with an answer from its text; `tokens` is how many that text has,
    None where the replica does not say."""

    path: str
    document: Mapping[str, Any]
    tokens: int | None


FollowUps = Generator[Call, Reply, FollowUp]
"""As `Steps`, ending in the request that they make up."""


class FeedSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where one rank of a replica publishes its KV events over ZMQ, and replays them, if it does;
    `topic` is the prefix to subscribe to."""

    endpoint: str
    replay: str | None = None
    topic: str = ""
    rank: int = 0


class Engine(Protocol):
    """How one kind of engine is spoken to. Sans-I/O: it names calls and reads replies.

    One stateless instance serves all replicas of its kind, or all that are the same rank of their
    servers. The `read_*` methods are given the replies to the calls of the same name, in order, and
    raise `ReplicaRefused` on an answer that they cannot use.
    """

    kind: str
    """The name in `--replica KIND=URL` and in the TOML."""

    embeddings: bool
    """Whether the engine may serve `/v1/embeddings`."""

    folds: bool
    """Whether a plain completion is to be asked for as a stream and put together by the router,
    since the engine is slow to notice that the client of a plain one has gone."""

    loads_adapters: bool
    """Whether the engine may load LoRA adapters while it runs."""

    fetch_command: str | None
    """What its operator runs, with a model's name behind it, to have one more model there while it
    runs; None where it serves what it was started with."""

    def detect_calls(self) -> tuple[Call, ...]:
        """What is asked of a replica that comes up whose engine nobody has named; nothing of one
        that is known."""

    def detected(self, replies: tuple[Reply, ...]) -> "Engine":
        """The adapter of the engine that answers there."""

    def at_rank(self, rank: int) -> "Engine":
        """The adapter of one data-parallel rank: its requests go to that rank, and what it reads of
        load and KV events is that rank's."""

    def identity_calls(self) -> tuple[Call, ...]:
        """What is asked of a replica that comes up, and now and then after; may be slow while
        it is busy."""

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity: ...

    def health_call(self) -> Call:
        """A cheap call that tells whether the replica takes requests, loading and draining told."""

    def read_health(self, reply: Reply) -> None:
        """Raises `ReplicaUnreachable` unless the replica takes requests."""

    def load_calls(self) -> tuple[Call, ...]: ...

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load: ...

    def feed_calls(self) -> tuple[Call, ...]:
        """What is asked, once a start, to find the KV events; nothing where there are none."""

    def read_feed(self, replies: tuple[Reply, ...], host: str) -> tuple[FeedSource, ...]:
        """The publishers, one a rank. `host` is that of the replica's URL, in brackets if it is an
        IPv6 address; it stands in for a wildcard."""

    def fields(self, *, turn: str, session: str | None, salt: str | None) -> Mapping[str, Any]:
        """Body fields to set on a generation request, over whatever the client sent.

        `turn` becomes the engine's request id where it takes one, `session` its attribution,
        `salt` the tenant's cache namespace.
        """

    def call_fields(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Body fields that have the replica make the call that a chat request demands; none where
        it demands none, or where the engine holds to it by itself."""

    def headers(self, session: str | None) -> Headers:
        """Headers to send beside the fields, where a field would be refused by older versions."""

    def messages(
        self, body: Mapping[str, Any], fields: Mapping[str, Any], identity: Identity
    ) -> Own | None:
        """The Anthropic Messages request of `body` for a replica that speaks that API, with all
        that `fields` would set on the chat request in its place; None where it does not speak it,
        or would leave something aside there."""

    def adapter_fields(self, name: str) -> Mapping[str, Any]:
        """Body fields that run a request with an adapter; none where the model's name does."""

    def acceptance_fields(self) -> Mapping[str, Any]:
        """Body fields that have a replica that speculates tell of each answer what it accepted, in
        an object of its own in the stream; none where it always tells, or never."""

    def adapter_call(self, adapter: Adapter) -> Call:
        """The call that loads an adapter, of an engine that can."""

    def drop_adapter_call(self, name: str) -> Call:
        """The call that lets go of one."""

    def read_adapter(self, reply: Reply) -> None:
        """Raises `ReplicaRefused`, in the engine's own words, unless it did as it was asked."""

    def order(self, priority: int, identity: Identity) -> Mapping[str, Any]:
        """Body fields that give a request its priority, 0 the most urgent; none where the replica
        does not order by it."""

    def release_call(self, session: str, identity: Identity) -> Call | None:
        """The call that lets a session's KV memory be evicted like any other; `session` is its
        attribution. None where the replica holds nothing for a session. Its next request holds
        anew."""

    def hold_call(self, model: str, seconds: float) -> Call | None:
        """The call that keeps a model, and with it the KV memory of its sessions, loaded for so
        long; None where the engine does not unload models, or would not that soon."""

    def carry(
        self, path: str, document: Mapping[str, Any], file: str
    ) -> tuple[Steps, Steps] | None:
        """The calls that save the KV memory of a prompt, as it was sent to `path`, in a file of the
        replica's folder, and those that restore it at another; None where the engine cannot."""

    def follow_up(self, path: str, document: Mapping[str, Any], text: str) -> FollowUps | None:
        """What makes the engine go on with an answer to `document`, of which it is to take `text`
        for said, as streamed chunks of what comes after it; None where it cannot."""

    def read_usage(self, usage: Mapping[str, Any], body: Mapping[str, Any]) -> Usage:
        """The counts in an OpenAI-shaped `usage` object; `body` is the object that held it."""

    def count_call(self, document: Mapping[str, Any]) -> Call | None:
        """A call that counts the tokens of a chat request's prompt without generating; None where
        the engine has none, or where it would not count this one exactly."""

    def read_count(self, reply: Reply) -> int | None:
        """The count; None from a replica that is too old to have the call."""

    def abort_call(self, turn: str) -> Call | None:
        """The call that stops request `turn` at once; None where closing the connection does."""
