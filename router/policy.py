"""The placement policies: which of the candidates takes a turn that nothing else has placed.

Pure and sync, one signature. `sticky` keeps a turn at its binding (see `decide`) and places what
is unbound by load; the others are the field's usual ones, to measure against. `session`, the
default, is decided by price (`router.scheduler`). A policy never sees a request, only an `Ask`.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from sessile.sessions.record import Binding


class Candidate(NamedTuple):
    """A replica that may take this turn, as the pool sees it at this moment.

    `in_flight` counts turns running or waiting there, `queued` those of them that wait for a slot;
    `sessions` are the sessions that this router believes bound there, `cached_tokens` what of the
    turn's prompt it believes held there.
    """

    id: str
    incarnation: str
    in_flight: int = 0
    queued: int = 0
    sessions: int = 0
    cached_tokens: int = 0


class Ask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a policy may know of a turn.

    `session` is its session's key as one string, `bound` the binding in force, `context_tokens`
    what the bound replica held after the session's last turn (None: unknown), `group` a hint that
    turns of one group share a prefix, `near` the replica of the session that this one grew out of.
    `shared` is False while the store is away: then only rules that every router computes alike
    keep sessions together.

    The rest is for prices: `attribution` is what the engine's blocks of the session go by, `blocks`
    are the prompt's block keys of `block_tokens` each, `opening` that of how it begins (agents of
    one kind begin alike, 0: unknown), `prompt_tokens` and `output_tokens` what it
    is and will be, as far as can be told. `claimed` is the reason for a binding that was made a
    moment ago, for this very turn. `priority` orders classes, the lowest first; `deadline` is on
    the scheduler's clock. `last`: no turn of the session follows, by its client's word or because
    none could be told to. `base` is the model that `model` is an adapter of (None: it is none),
    `load_s` how long it takes to load it where it is not.
    """

    session: str
    bound: Binding | None = None
    context_tokens: int | None = None
    group: str | None = None
    near: str | None = None
    shared: bool = True
    turn: str = ""
    attribution: str = ""
    model: str = ""
    tenant: str = "default"
    program: str = ""
    blocks: tuple[int, ...] = ()
    block_tokens: int = 256
    opening: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    claimed: str | None = None
    priority: int = 1
    deadline: float | None = None
    last: bool = False
    base: str | None = None
    load_s: float = 0.0


class Choice(NamedTuple):
    """What a policy chose, and the branch of it that did."""

    candidate: Candidate
    reason: str


class Policy(Protocol):
    """A rule. `candidates` is never empty; the same input gives the same choice, but for a counter
    or a seeded generator that the policy itself owns."""

    name: str
    binds: bool
    """Whether sessions are bound to what it chooses."""

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice: ...


class RoundRobin:
    """Each in turn, whatever it carries."""

    name = "round_robin"
    binds = False

    def __init__(self) -> None:
        self._next = 0

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        self._next = (self._next + 1) % len(candidates)
        return Choice(candidates[self._next - 1], self.name)


class LeastLoaded:
    """The fewest turns in flight; among equals the fewest sessions, then the session's own rank."""

    name = "least_loaded"
    binds = False

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        return Choice(least_loaded(ask, candidates), self.name)


class PowerOfTwo:
    """The less loaded of two drawn at random: nearly as even as the best, and no herd."""

    name = "power_of_two"
    binds = False

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        drawn = self._random.sample(candidates, 2) if len(candidates) > 2 else candidates
        return Choice(least_loaded(ask, drawn), self.name)


class Rendezvous:
    """Highest random weight (Thaler and Ravishankar, 1998): every router agrees without talking,
    and a replica that comes or goes moves only its own share of the sessions."""

    name = "rendezvous"
    binds = False

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        return Choice(rendezvous(ask.session, candidates), self.name)


class Prefix:
    """Where the longest prefix is cached, if that is at least half of the prompt; else, and among
    equals, the lightest. This is what SGLang's router does while loads are even."""

    name = "prefix"
    binds = False

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        most = max(c.cached_tokens for c in candidates)
        if most and 2 * most >= ask.prompt_tokens:
            candidates = [c for c in candidates if c.cached_tokens == most]
        return Choice(least_loaded(ask, candidates), self.name)


class Sticky:
    """What is bound stays (`decide` sees to that), the rest goes where it is light."""

    name = "sticky"
    binds = True

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        if not ask.shared:
            return Choice(rendezvous(ask.session, candidates), "store_down")
        for c in candidates:
            if c.id == ask.near and not c.queued:
                return Choice(c, "parent")
        if ask.group is not None:
            home = rendezvous(ask.group, candidates)
            if not home.queued:
                return Choice(home, "group")
        return Choice(least_loaded(ask, candidates), "new")


class Session(Sticky):
    """The default: `router.scheduler` prices every replica; this rule only stands in for it where
    nothing may be priced, while the store is away."""

    name = "session"


def least_loaded(ask: Ask, candidates: Sequence[Candidate]) -> Candidate:
    """The lightest candidate; ties go by the session's rendezvous rank, so that routers agree."""
    lightest = min((c.queued, c.in_flight, c.sessions) for c in candidates)
    tied = [c for c in candidates if (c.queued, c.in_flight, c.sessions) == lightest]
    return tied[0] if len(tied) == 1 else rendezvous(ask.session, tied)


class _Named(Protocol):
    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=_Named)


def rendezvous(key: str, candidates: Sequence[N]) -> N:
    """The candidate with the highest weight for `key`."""
    data = key.encode("utf-8", "surrogatepass")
    return max(
        candidates, key=lambda c: (blake2b(data, digest_size=8, salt=_salt(c.id)).digest(), c.id)
    )


@lru_cache(10_000)
def _salt(replica: str) -> bytes:
    return blake2b(replica.encode(), digest_size=16).digest()


def make_policy(name: str, random: Random) -> Policy:
    """The policy of that name; raises `KeyError` for another."""
    simple: dict[str, type[Policy]] = {
        rule.name: rule for rule in (Session, Sticky, Prefix, RoundRobin, LeastLoaded, Rendezvous)
    }
    return PowerOfTwo(random) if name == PowerOfTwo.name else simple[name]()


POLICIES = ("session", "sticky", "round_robin", "least_loaded", "power_of_two", "rendezvous")
"""Those that a router can be set to; `prefix` needs to know every cache, as the simulator does."""
