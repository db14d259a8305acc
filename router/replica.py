"""A replica: as it was named, and as this router knows it."""

from typing import Any, Literal

import msgspec

from sessile.router.doubts import Doubts
from sessile.router.engine import Engine, FeedSource, Identity, Load
from sessile.router.ghosts import Ghosts
from sessile.router.outlook import Outlook
from sessile.router.upstream import Upstream

_ACCEPTED_WEIGHT = 0.1

State = Literal["starting", "ready", "draining", "down"]


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A replica as settings, a launcher or the admin API name it, before anyone has looked at it.
    One whose server turns out to have data-parallel ranks becomes as many replicas.

    `id` is unique in the pool and says nothing; `url` has no trailing slash and no path.
    `incarnation` is set by a launcher, which knows each start; None leaves it to the probe.
    `folder` is where the replica saves KV memory, which those of the same folder can restore; the
    router can remove files there. `speculates` is what a launcher has told it to do, `device` what
    it runs on, which replicas of the same share, `feed` where it publishes its KV events, which
    older engines do not tell.
    `pool` is the name of the pool that it belongs to. On `standby` it takes turns only as part of
    a variant (`router.releases`) that names its pool or version.
    """

    id: str
    engine: str
    url: str
    model: str | None = None
    incarnation: str | None = None
    folder: str | None = None
    speculates: bool | None = None
    device: str | None = None
    feed: FeedSource | None = None
    pool: str | None = None
    standby: bool = False


class Replica:
    """One replica as this router knows it. Made by the pool, which alone changes its state; what
    serves turns counts them here. `server` is the id by which its server was named; `rank` is None
    unless that has several.

    Invariant: `state` is ready or draining only with an `identity` and an `incarnation`.
    """

    def __init__(self, spec: ReplicaSpec, engine: Engine, upstream: Upstream) -> None:
        self.spec = spec
        self.id = self.server = spec.id
        self.rank: int | None = None
        self.engine = engine
        self.upstream = upstream
        self.state: State = "starting"
        self.why: str | None = None
        self.identity: Identity | None = None
        self.incarnation: str | None = spec.incarnation
        self.load: Load | None = None
        self.outlook = Outlook(spec.id, spec.incarnation or "")
        self.outlook.device = spec.device
        self.ghosts = Ghosts()
        self.doubts = Doubts()
        self.in_flight = 0
        self.foreign_streams = 0  # of other routers, as they tell
        self.turns = 0
        self.failures = 0
        self.prompt_tokens = 0
        self.counts_cached = False  # whether its engine tells how much it found cached
        self.acceptance_length: float | None = None  # of late, as its answers told
        self.judged_tokens = 0  # prompt tokens of turns whose cached tokens are known
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.predicted_tokens = 0

    @property
    def models(self) -> tuple[str, ...]:
        """What it serves, or is expected to before anyone could ask it."""
        if self.identity is not None:
            return self.identity.models
        return (self.spec.model,) if self.spec.model else ()

    def is_of(self, group: str) -> bool:
        """Whether it belongs to the pool of that name, or runs that engine and version."""
        if self.spec.pool == group:
            return True
        version = self.identity.version if self.identity is not None else None
        return version is not None and group == f"{self.engine.kind}-{version}"

    @property
    def speculates(self) -> bool | None:
        """Whether it decodes speculatively: by its own word, else by its launcher's."""
        told = self.identity.speculates if self.identity is not None else None
        return self.spec.speculates if told is None else told

    def identified(self, identity: Identity) -> None:
        """It has said who it is. A new incarnation means that its KV cache is empty."""
        self.identity = identity
        self.counts_cached |= identity.counts_cached
        if self.spec.incarnation is None:  # else its launcher has told, and knows better
            # NOTE: restarts that only this router has seen must not count: routers that disagree
            # on an incarnation would re-bind each other's sessions for ever.
            self.incarnation = identity.incarnation or "unknown"
        if self.incarnation is not None and self.incarnation != self.outlook.incarnation:
            self.restarted(self.incarnation)
        self.outlook.speculates = bool(self.speculates)
        self.outlook.lacks = identity.lacks

    def restarted(self, incarnation: str) -> None:
        """It runs anew: nothing is left of what was held there, or held against it."""
        self.incarnation = incarnation
        self.outlook.reset(incarnation)
        self.ghosts.reset()
        self.doubts.reset()

    def reported(self, load: Load, now: float) -> None:
        """It has said what it has to do, and how much memory for that."""
        before, self.load = self.load, load
        if before is not None and _worked(before, load):
            self.doubts.worked_at = now
        outlook = self.outlook
        outlook.slots = load.slots
        outlook.reported_queue = load.waiting or 0
        if load.capacity_tokens and load.capacity_tokens != outlook.capacity_tokens:
            ratio = self.identity.host_ratio if self.identity is not None else 0.0
            outlook.resize(load.capacity_tokens, int(ratio * load.capacity_tokens))

    def accepted(self, length: float) -> None:
        """An answer told so many tokens a step."""
        before = self.acceptance_length
        self.acceptance_length = (
            length if before is None else before + _ACCEPTED_WEIGHT * (length - before)
        )

    @property
    def pressure(self) -> int:
        """Turns running or waiting there: our own at this moment, or its own latest report if
        that is more (other routers send turns too)."""
        if self.load is None:
            return self.in_flight
        return max(self.in_flight, (self.load.running or 0) + (self.load.waiting or 0))

    @property
    def queued(self) -> int:
        """Turns that wait there for a slot, as far as can be told."""
        load = self.load
        if load is None:
            return 0
        over = self.pressure - load.slots if load.slots else 0
        return max(over, load.waiting or 0, 0)

    def describe(self, sessions: int) -> dict[str, Any]:
        """The replica as the admin API shows it."""
        hit = self.cached_tokens / self.judged_tokens if self.judged_tokens else None
        return {
            "id": self.id,
            "server": self.server,
            "rank": self.rank,
            "url": self.spec.url,
            "engine": self.engine.kind,
            "pool": self.spec.pool,
            "standby": self.spec.standby,
            "models": list(self.models),
            "adapters": list(self.outlook.shelf.loaded),
            "state": self.state,
            "why": self.why,
            "warning": self.identity.warning if self.identity else None,
            "incarnation": self.incarnation,
            "version": self.identity.version if self.identity else None,
            "context_tokens": self.identity.context_tokens if self.identity else None,
            "in_flight": self.in_flight,
            "sessions": sessions,
            "load": msgspec.to_builtins(self.load) if self.load else None,
            "kv": self._describe_kv(),
            "turns": self.turns,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "hit_rate": hit,
            "speculates": self.speculates,
            "acceptance_length": self._acceptance(),
            "failures": self.failures,
            "ghosts": self.ghosts.found,
        }

    def _acceptance(self) -> float | None:
        """Of the turns seen here, else over all that it has run, by its own word."""
        if self.acceptance_length is not None or self.identity is None:
            return self.acceptance_length
        return self.identity.acceptance_length

    def _describe_kv(self) -> dict[str, Any] | None:
        if (tree := self.outlook.tree) is None:
            return None
        return {
            "blocks": tree.blocks,
            "tokens": tree.tokens,
            "whole": tree.whole,
            "sessions": tree.sessions,
        }


def _worked(before: Load, load: Load) -> bool:
    """Whether something was computed between the two."""
    return (before.computed, before.used_tokens) != (load.computed, load.used_tokens)
