"""A source of replicas that belong to a pool of the settings."""

from collections.abc import AsyncIterator, Collection
from contextlib import aclosing

import msgspec

from sessile.router.discovery import Listed, Source


class OfPool:
    """What another source lists, as replicas of the pool `name`. Implements `Source`."""

    def __init__(self, source: Source, name: str | None, standby: bool) -> None:
        self.name = source.name
        self._source = source
        self._pool = name
        self._standby = standby

    async def lists(self) -> AsyncIterator[Collection[Listed]]:
        """The same lists, each replica with its pool."""
        async with aclosing(self._source.lists()) as lists:  # type: ignore[type-var]
            async for listed in lists:
                yield [self._of_pool(each) for each in listed]

    def _of_pool(self, each: Listed) -> Listed:
        spec = msgspec.structs.replace(each.spec, pool=self._pool, standby=self._standby)
        return msgspec.structs.replace(each, spec=spec)
