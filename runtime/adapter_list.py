"""Which LoRA adapters there are: those of the settings, and those that any router was told of.

Routers tell each other through the store, where the newest word on a name counts. Without the store
each knows what it was told itself, and tells it once the store is back.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

import msgspec

from sessile.adapters import Loader
from sessile.errors import InvalidRequest, ModelNotFound, NotSupported, StoreUnavailable
from sessile.router.adapters import Adapter
from sessile.router.pool import Pool
from sessile.sessions.store import Store

log = logging.getLogger("sessile.adapters")

_EVERY_S = 1.0


class Word(msgspec.Struct, frozen=True, array_like=True):
    """What was said last of a name, and when; no adapter any more where the path is empty."""

    at: float
    base: str = ""
    path: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Word).decode


class AdapterList:
    """One a router, opened and closed by its lifespan. What the settings declare stays so."""

    def __init__(
        self, pool: Pool, store: Store, loader: Loader, settings: Iterable[Adapter]
    ) -> None:
        self.pool = pool
        self._store = store
        self._loader = loader
        self._fixed = {adapter.name: adapter for adapter in settings}
        self._words: dict[str, Word] = {}
        self._task: asyncio.Task[None] | None = None
        for adapter in self._fixed.values():
            pool.adapters.declare(adapter)

    def open(self) -> None:
        """Start to hear of other routers."""
        self._task = asyncio.create_task(self.run(), name="hear of adapters")

    async def aclose(self) -> None:
        """Hear no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def add(self, adapter: Adapter) -> None:
        """There is such an adapter from now on; nothing is loaded before a turn asks for it.

        Raises `InvalidRequest` for a name that is taken, `NotSupported` where no engine that serves
        its base could load it.
        """
        name, base = adapter.name, self.pool.meant(adapter.base)
        if any(name in replica.models for replica in self.pool):
            raise InvalidRequest(f"{name!r} is a model that is served here", param="name")
        known = self.pool.adapters.get(name)
        if known is not None and known.path not in (None, adapter.path):
            raise InvalidRequest(
                f"there is an adapter {name!r} already, from {known.path}; delete it first",
                param="name",
            )
        serving = [replica.engine for replica in self.pool if base in replica.models]
        if serving and not any(engine.loads_adapters for engine in serving):
            raise NotSupported(
                f"{serving[0].kind} loads no adapters while it runs, and nothing else serves "
                f"{base!r}; start it with the adapter, or serve {base!r} with sglang or vllm"
            )
        self._take(name, Word(time.time(), base, adapter.path or ""))
        await self._tell(name)

    async def remove(self, name: str) -> Adapter:
        """There is no such adapter any more, and it is unloaded where it is loaded. Raises
        `ModelNotFound`, and `InvalidRequest` for one that the settings declare."""
        known = self.pool.adapters.get(name)
        if known is None:
            raise ModelNotFound(f"there is no adapter {name!r}", param="name")
        if name in self._fixed:
            raise InvalidRequest(f"the adapter {name!r} is declared in the settings of this router")
        self._take(name, Word(time.time()))
        await self._tell(name)
        await self._loader.unload(name)
        return known

    async def run(self) -> None:
        """Hear what other routers were told, until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(_EVERY_S)

    async def once(self) -> None:
        """Hear it now, and tell what the store does not know, or has lost."""
        if not self._store.available:
            return
        try:
            told = await self._store.adapters()
        except StoreUnavailable:
            return
        for name, data in told.items():
            try:
                word = _decode(data)
            except msgspec.DecodeError:
                log.warning("adapter of another router was not understood adapter=%s", name)
                continue
            known = self._words.get(name)
            if known is None or word.at > known.at:
                self._take(name, word)
        for name, word in self._words.items():
            if told.get(name) != _encode(word):
                await self._tell(name)

    def _take(self, name: str, word: Word) -> None:
        self._words[name] = word
        if name in self._fixed:
            return
        before, adapters = self.pool.adapters.get(name), self.pool.adapters
        if word.path:
            adapters.declare(Adapter(name=name, base=word.base, path=word.path))
        else:
            adapters.forget(name)
        if word.path and (before is None or before.path != word.path):
            for replica in self.pool:
                replica.outlook.shelf.drop(name)  # what is loaded there may be another
        self.pool.adapters_changed()

    async def _tell(self, name: str) -> None:
        try:
            await self._store.put_adapter(name, _encode(self._words[name]))
        except StoreUnavailable:
            log.warning("other routers are not told yet of adapter=%s", name)
