"""The replicas known to this router, their states, and which of them may take a turn.

The pool is told things (by probes, launchers and turns) and answers questions; it starts nothing
and speaks to nobody. What is named to it is a server, which is one replica, or as many as it has
data-parallel ranks: these come up, go down and leave together, and hold their KV memory alone.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import msgspec

from sessile.errors import (
    AdapterRefused,
    InvalidRequest,
    ModelNotFound,
    NoReplica,
    ReplicaNotFound,
)
from sessile.router.adapters import Adapter, Adapters
from sessile.router.engine import Identity
from sessile.router.membership import Membership
from sessile.router.outlook import Outlook
from sessile.router.policy import Candidate
from sessile.router.releases import Releases, Variant
from sessile.router.replica import Replica, ReplicaSpec
from sessile.router.server import Server

log = logging.getLogger("sessile.pool")


class Pool:
    """The set of replicas. Made once a router; `on_change` is called whenever it changes, or one
    of them comes up, restarts, drains or goes down."""

    def __init__(
        self,
        make: Callable[[ReplicaSpec], Replica],
        sessions_at: Callable[[str], int],
        aliases: Mapping[str, str] = MappingProxyType({}),
        adapters: Adapters | None = None,
    ) -> None:
        self.aliases = aliases
        self.adapters = adapters or Adapters()
        self.releases = Releases()
        self._membership = Membership(self.adapters, self.releases)
        self._make = make
        self._sessions_at = sessions_at
        self._servers: dict[str, Server] = {}
        self._replicas: dict[str, Replica] = {}  # in the servers' order
        self._ready: dict[str, list[Outlook]] = {}
        self._missed: dict[str, int] = {}
        self.on_change: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._replicas.values()))

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def servers(self) -> Mapping[str, Server]:
        """What was named, by its id."""
        return self._servers

    def add(self, spec: ReplicaSpec) -> Replica:
        """Take a replica in, as `starting`. Raises `InvalidRequest` for an id or URL twice."""
        for known in self._servers.values():
            if spec.id == known.spec.id or spec.url == known.spec.url:
                raise InvalidRequest(
                    f"a replica {known.spec.id} at {known.spec.url} is there already"
                )
        replica = self._make(spec)
        self._servers[spec.id] = Server(spec, replica)
        self._list()
        self.on_change()
        return replica

    async def remove(self, name: str) -> list[Replica]:
        """Let a server go, with all its ranks; its open answers break. Raises `ReplicaNotFound`,
        and `InvalidRequest` for a rank alone."""
        left = self._named(name)
        if name not in self._servers:
            raise InvalidRequest(f"{name} does not leave alone: remove {left[0].server}")
        del self._servers[name]
        self._list()
        for replica in left:
            replica.outlook.holdings.leave()
        self.on_change()
        for replica in left:
            await replica.upstream.aclose()
        return left

    def _named(self, name: str) -> list[Replica]:
        """The replica, or those of the server; raises `ReplicaNotFound`."""
        server = self._servers.get(name)
        return [self.get(name)] if server is None else server.replicas

    def _list(self) -> None:
        self._replicas = {r.id: r for server in self._servers.values() for r in server.replicas}
        self._ready.clear()

    def get(self, replica_id: str) -> Replica:
        """The replica; raises `ReplicaNotFound`."""
        try:
            return self._replicas[replica_id]
        except KeyError:
            known = ", ".join(self._replicas) or "none"
            raise ReplicaNotFound(
                f"no replica {replica_id!r} in the pool; there are: {known}"
            ) from None

    def find(self, replica_id: str) -> Replica | None:
        """The replica, or None."""
        return self._replicas.get(replica_id)

    def models(self) -> list[str]:
        """Every model that some replica serves, in the pool's order, then the adapters."""
        served = dict.fromkeys(model for r in self._replicas.values() for model in r.models)
        adapted = [a.name for a in self.adapters if any(self.serving(a.name))]
        return [*served, *(name for name in adapted if name not in served)]

    def names(self) -> list[str]:
        """Everything that a session may be bound under: the models, then the variants of releases
        that are no models themselves."""
        models = self.models()
        return [*models, *(v.name for v in self.releases.variants if v.name not in models)]

    def meant(self, asked: str) -> str:
        """The model that `asked` is an alias of, or itself; served or not. A name that has a
        release stands for itself."""
        return asked if asked in self.releases else self.aliases.get(asked, asked)

    def model(self, asked: str) -> str:
        """The model that `asked` names, an alias replaced, or the name of a release. Raises
        `ModelNotFound`, or `NoReplica` while it is only that no replica is there, or has come up
        to say what it serves."""
        if self.aliases:
            asked = self.meant(asked)
        if asked in self.releases:
            return asked
        for replica in self._replicas.values():
            if asked in replica.models:
                return asked
        if self.miss(asked):
            raise NoReplica(f"no replica of {asked!r} is up; one is asked for", retry_after_s=2.0)
        if not self._replicas:
            raise NoReplica("no replica is in the pool yet; see /ready", retry_after_s=2.0)
        if (adapter := self.adapters.get(asked)) is not None:
            return self._adapter(adapter)
        unknown = [r for r in self._replicas.values() if not r.models]
        if unknown:
            raise NoReplica(
                f"no ready replica serves {asked!r}; {len(unknown)} have not come up yet",
                retry_after_s=2.0,
            )
        listed = ", ".join((*self.models(), *self.aliases)) or "none"
        raise ModelNotFound(
            f"the model {asked!r} is not served here; there are: {listed}{self._to_fetch(asked)}",
            param="model",
        )

    def _to_fetch(self, model: str) -> str:
        """How the model could come to be at a replica as it runs, where it could."""
        for replica in self._replicas.values():
            if (command := replica.engine.fetch_command) is not None:
                return f" (`{command} {model}` at {replica.id} would bring it, if there is such)"
        return ""

    def miss(self, model: str) -> bool:
        """A turn has found no replica of the model; whether one will be started therefore."""
        if model not in self._missed:
            return False
        self._missed[model] += 1
        return True

    def missed(self, model: str) -> int:
        """How many turns of the model have found no replica since this was last asked. From then on
        it is known as one whose replicas are started when somebody asks for it."""
        found = self._missed.get(model, 0)
        self._missed[model] = 0
        return found

    def _adapter(self, adapter: Adapter) -> str:
        """Its name, if some replica has it, or may be asked to load it."""
        name, base = adapter.name, adapter.base
        if any(self.serving(name)):
            return name
        for r in self._replicas.values():
            why = self.adapters.refusal(name, r.server, r.incarnation or "")
            if why is not None:
                raise AdapterRefused(f"the adapter {name!r} cannot be loaded: {why}", param="model")
        raise NoReplica(
            f"no replica serves {base!r}, which the adapter {name!r} is for, and loads adapters",
            retry_after_s=2.0,
        )

    def serving(self, model: str) -> Iterator[Replica]:
        """The replicas that serve the model or variant, in whatever state: those that have loaded
        it, too, and those that could, if it is an adapter."""
        return self._membership.serving(model, self._replicas.values())

    def members(self, variant: Variant) -> Iterator[Replica]:
        """The replicas that would make up the variant, whether there is such a release or not."""
        return self._membership.members(variant, self._replicas.values())

    def candidates(self, model: str) -> list[Candidate]:
        """The replicas that may take a turn of `model`: the ready ones. A draining replica
        finishes its turns and takes no more; its sessions move at their next turn. An adapter's are
        those that have loaded it, if there are any: rules do not price a load."""
        able = [self._replicas[outlook.id] for outlook in self.outlooks(model)]
        if model in self.adapters:
            able = [r for r in able if model in r.outlook.shelf.loaded] or able
        return [
            Candidate(r.id, r.incarnation or "", r.pressure, r.queued, self._sessions_at(r.id))
            for r in able
        ]

    def outlooks(self, model: str) -> list[Outlook]:
        """The same replicas as the scheduler sees them; not to be changed."""
        found = self._ready.get(model)
        if found is None:
            found = [r.outlook for r in self.serving(model) if r.state == "ready"]
            self._ready[model] = found
        return found

    # -- what the pool is told

    def seen(self, name: str, identity: Identity, *, old_adapters: bool = False) -> list[Replica]:
        """A probe found the server up; gives the replicas that are not there any more, since it has
        another number of ranks now. A new incarnation means that its KV cache is empty.
        `old_adapters`: what it tells of them is older than what this router knows."""
        server = self._servers[name]
        left = self._split(server, identity.ranks)
        for replica in server.replicas:
            self._seen(replica, identity, old_adapters)
        if left:
            self.on_change()
        return left

    def _split(self, server: Server, ranks: int) -> list[Replica]:
        """Make the server's replicas anew unless they are those of so many ranks. They share their
        adapters, which are loaded at the server; a drain goes on."""
        wanted: list[int | None] = list(range(ranks)) if ranks > 1 else [None]
        left = server.replicas
        if [replica.rank for replica in left] == wanted:
            return []
        state, why = server.state, left[0].why
        server.replicas = [self._make_rank(server, rank) for rank in wanted]
        shelf = server.replicas[0].outlook.shelf
        for replica in server.replicas:
            replica.outlook.shelf = shelf
            if state == "draining":
                replica.state, replica.why = state, why
        for replica in left:
            replica.outlook.holdings.leave()
        self._list()
        log.info("server has ranks replica=%s ranks=%d", server.spec.id, ranks)
        return left

    def _make_rank(self, server: Server, rank: int | None) -> Replica:
        spec = server.spec
        if rank is not None:
            spec = msgspec.structs.replace(spec, id=f"{spec.id}@{rank}")
        replica = self._make(spec)
        replica.server, replica.rank = server.spec.id, rank
        replica.engine = server.engine if rank is None else server.engine.at_rank(rank)
        return replica

    def _seen(self, replica: Replica, identity: Identity, old_adapters: bool) -> None:
        before, was = replica.identity, replica.incarnation
        if identity.warning and (before is None or before.warning != identity.warning):
            log.warning("replica warns replica=%s why=%r", replica.id, identity.warning)
        replica.identified(identity)
        if not old_adapters:
            self._shelve(replica, identity)
        self._ready.clear()
        if was is not None and before is not None and was != replica.incarnation:
            log.warning("replica restarted replica=%s incarnation=%s", replica.id,
                        replica.incarnation)  # fmt: skip
            self.on_change()
        if replica.state in ("starting", "down"):
            replica.why = replica.doubts.refused
            if replica.why is None:
                self._up(replica, identity)

    def serves(self, replica: Replica) -> None:
        """A trial was answered by a replica that had been taken out for serving nothing."""
        if replica.state == "down" and replica.identity is not None:
            self._up(replica, replica.identity)

    def _up(self, replica: Replica, identity: Identity) -> None:
        replica.state, replica.why = "ready", None
        self._ready.clear()
        log.info("replica came up replica=%s url=%s models=%s incarnation=%s", replica.id,
                 replica.spec.url, ",".join(identity.models), replica.incarnation)  # fmt: skip
        self.on_change()

    def adapters_changed(self) -> None:
        """An adapter was declared or forgotten, loaded or unloaded somewhere, or refused."""
        self._ready.clear()

    def releases_changed(self) -> None:
        """A release says something else than before."""
        self._ready.clear()
        self.on_change()

    def used(self, adapter: str, replica_id: str) -> None:
        """Another router's turn ran there with the adapter."""
        replica = self._replicas.get(replica_id)
        if replica is not None:
            replica.outlook.shelf.touch(adapter)

    def _shelve(self, replica: Replica, identity: Identity) -> None:
        shelf, adapters = replica.outlook.shelf, self.adapters
        shelf.limit = identity.most_adapters or adapters.most
        for adapter in identity.adapters:
            adapters.found(adapter)
        names = [adapter.name for adapter in identity.adapters]
        shelf.told(names)
        shelf.fixed = frozenset(n for n in names if (a := adapters.get(n)) and a.path is None)

    def mark_down(self, name: str, why: str) -> None:
        """The server does not answer, or its process ended; or one rank of it serves nothing."""
        try:
            named = self._named(name)
        except ReplicaNotFound:
            return
        self._ready.clear()
        for replica in named:
            replica.why = why
            if replica.state in ("ready", "draining"):
                replica.state = "down"
                replica.load = None
                log.warning("replica went down replica=%s why=%r", replica.id, why)
                self.on_change()

    def set_incarnation(self, name: str, incarnation: str) -> None:
        """A launcher started the server anew; it is `starting` until a probe finds it up. Why the
        last one ended stays to be seen meanwhile."""
        server = self._servers.get(name)
        if server is None:
            return
        server.spec = msgspec.structs.replace(server.spec, incarnation=incarnation)
        for replica in server.replicas:
            replica.spec = msgspec.structs.replace(replica.spec, incarnation=incarnation)
            replica.restarted(incarnation)
            replica.state, replica.why = "starting", replica.why or "it is being started"
            self._ready.clear()

    def drain(self, name: str, why: str = "asked to drain") -> list[Replica]:
        """Let a server, or one rank of it, finish what runs and send it nothing more. Raises
        `ReplicaNotFound`, and `InvalidRequest` where nothing of it is up."""
        named = self._named(name)
        if all(replica.state in ("starting", "down") for replica in named):
            raise InvalidRequest(f"replica {name} is {named[0].state}: nothing to drain")
        self._ready.clear()
        for replica in named:
            if replica.state == "ready":
                replica.state, replica.why = "draining", why
                log.info("replica drains replica=%s in_flight=%d why=%r", replica.id,
                         replica.in_flight, why)  # fmt: skip
                self.on_change()
        return named

    def resume(self, name: str) -> list[Replica]:
        """Take what drains of it back into service. Raises `ReplicaNotFound`."""
        named = self._named(name)
        self._ready.clear()
        for replica in named:
            if replica.state == "draining":
                replica.state, replica.why = "ready", None
                log.info("replica resumed replica=%s", replica.id)
        return named
