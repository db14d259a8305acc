"""Which replicas serve a name: a model, a variant of one, or an adapter. Pure, and blind to their
states: which of them may take a turn now is the pool's to say."""

from collections.abc import Iterable, Iterator

from sessile.router.adapters import Adapter, Adapters
from sessile.router.releases import Releases, Variant
from sessile.router.replica import Replica


class Membership:
    """Made by the pool, whose adapters and releases it reads; it keeps nothing of its own."""

    def __init__(self, adapters: Adapters, releases: Releases) -> None:
        self._adapters = adapters
        self._releases = releases

    def serving(self, model: str, replicas: Iterable[Replica]) -> Iterator[Replica]:
        """Those that serve the model or variant: if it is an adapter, those that have loaded it and
        those that could."""
        variant = self._releases.variant(model)
        if variant is not None and variant.group is not None:
            yield from self.members(variant, replicas)
            return
        adapter = self._adapters.get(model)
        for replica in replicas:
            if model in replica.models:
                if not self._is_apart(replica, model):
                    yield replica
            elif adapter is not None and self._bears(replica, adapter):
                yield replica

    def members(self, variant: Variant, replicas: Iterable[Replica]) -> Iterator[Replica]:
        """Those that make up the variant, whether there is such a release or not."""
        model, group = variant.model, variant.group
        for replica in replicas:
            if model not in replica.models:
                continue
            if replica.is_of(group) if group is not None else not self._is_apart(replica, model):
                yield replica

    def _is_apart(self, replica: Replica, model: str) -> bool:
        """Whether the replica serves the model only as a part of some variant."""
        groups = self._releases.groups(model)
        return replica.spec.standby or any(replica.is_of(group) for group in groups)

    def _bears(self, replica: Replica, adapter: Adapter) -> bool:
        """Whether the adapter is loaded there, or may be."""
        if adapter.base in replica.models and not self._follows(replica, adapter.base):
            return False
        if adapter.name in replica.outlook.shelf.loaded:
            return True
        if adapter.path is None or adapter.base not in replica.models:
            return False
        incarnation = replica.incarnation or ""
        return replica.engine.loads_adapters and (
            self._adapters.refusal(adapter.name, replica.server, incarnation) is None
        )

    def _follows(self, replica: Replica, base: str) -> bool:
        """Whether adapters of `base` may run there: they follow it once a swap is finished."""
        release = self._releases.get(base)
        if release is None or release.settled.group is None:
            return not self._is_apart(replica, base)
        return release.settled.model == base and replica.is_of(release.settled.group)
