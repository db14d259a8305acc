"""Has engines load LoRA adapters before turns need them, and let go of those used least recently.

What is loaded where is kept by `router.adapters`; here the engines are spoken to. One load at a
time of an adapter at a server, for all of its ranks: all turns that need it wait for the same one.
Nothing here is done for a turn of a model that is no adapter.
"""

import asyncio
import logging
import time

from sessile.errors import AdapterRefused, Overloaded, ReplicaError, ReplicaRefused
from sessile.router.adapters import Adapter
from sessile.router.pool import Pool
from sessile.router.replica import Replica
from sessile.turn import Turn

log = logging.getLogger("sessile.adapters")

_LOAD_TIMEOUT_S = 120.0
_UNLOAD_TIMEOUT_S = 30.0
_ROOM_S = 30.0  # how long a turn waits for another adapter's turns to end
_NOT_THERE = (400, 404)  # how engines answer a turn of an adapter that they do not have


class Loader:
    """One a router, made by `Flow`."""

    def __init__(self, pool: Pool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._loading: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._freed = asyncio.Event()

    async def hold(self, turn: Turn, replica: Replica) -> None:
        """Have the turn's adapter loaded there, and keep it until `release`; nothing for a turn
        without one.

        Raises `AdapterRefused`, `Overloaded` where all that are loaded are in use, and what a
        replica that does not answer raises.
        """
        name = turn.adapter
        if name is None:
            return
        if turn.holds is not replica:
            self.release(turn)
            turn.holds = replica
            replica.outlook.shelf.begin(name)
        await self._have(name, replica)

    def release(self, turn: Turn) -> None:
        """The turn does not need its adapter any more."""
        if turn.holds is not None:
            turn.holds.outlook.shelf.end(turn.key.model)
            turn.holds = None
            self._freed.set()
            self._freed = asyncio.Event()

    async def is_lost(self, turn: Turn, status: int) -> bool:
        """Whether the engine has refused a turn because it had let go of the adapter meanwhile, as
        another router asked; it is loaded again then, and the turn may be sent again."""
        name, replica = turn.adapter, turn.holds
        if name is None or replica is None or status not in _NOT_THERE:
            return False
        if await self._listed(name, replica) is not None:
            return False
        replica.outlook.shelf.drop(name)
        await self._have(name, replica)
        return True

    async def unload(self, name: str) -> None:
        """Let go of the adapter wherever it is; an engine that does not answer keeps it."""
        servers = [server.replicas[0] for server in self._pool.servers.values()]
        replicas = [r for r in servers if name in r.outlook.shelf.loaded]
        await asyncio.gather(*(self._drop(name, replica) for replica in replicas))

    async def aclose(self) -> None:
        """End the loads under way: nobody is left to wait for them."""
        for task in self._loading.values():
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)

    async def _have(self, name: str, replica: Replica) -> None:
        shelf = replica.outlook.shelf
        while name not in shelf.loaded:
            task = self._loading.get((replica.server, name)) or self._begin(name, replica)
            await asyncio.shield(task)

    def _begin(self, name: str, replica: Replica) -> asyncio.Task[None]:
        adapter = self._pool.adapters.get(name)
        if adapter is None or adapter.path is None:
            raise AdapterRefused(
                f"the adapter {name!r} is not loaded at {replica.id}, and nobody has said where it "
                "is; declare it with POST /sessile/v1/adapters",
                param="model",
            )
        key = (replica.server, name)
        task = asyncio.create_task(self._load(adapter, replica), name=f"load {name}")
        self._loading[key] = task
        task.add_done_callback(lambda done: self._done(key, done))
        return task

    def _done(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # whoever waited for it has been told

    async def _load(self, adapter: Adapter, replica: Replica) -> None:
        name, shelf = adapter.name, replica.outlook.shelf
        await self._make_room(name, replica)
        began = time.monotonic()
        try:
            await self._ask_for(adapter, replica)
        except ReplicaRefused as error:
            await self._look_again(adapter, replica, error)
        finally:
            shelf.coming.discard(name)
        seconds = time.monotonic() - began
        shelf.put(name)
        self._pool.adapters.learn(adapter.base, seconds)
        self._pool.adapters_changed()
        log.info("adapter loaded adapter=%s replica=%s seconds=%.3f", name, replica.id, seconds)

    async def _ask_for(self, adapter: Adapter, replica: Replica) -> None:
        call = replica.engine.adapter_call(adapter)
        replica.engine.read_adapter(await replica.upstream.call(call, _LOAD_TIMEOUT_S))

    async def _look_again(self, adapter: Adapter, replica: Replica, error: ReplicaRefused) -> None:
        """A refusal is none if another router was first; one of that name from elsewhere makes way.
        Raises `AdapterRefused`, and remembers it, so that no turn asks again in vain."""
        there = await self._listed(adapter.name, replica)
        if there is not None and there.path in (None, adapter.path):
            return
        try:
            if there is None:
                raise error
            await self._drop(adapter.name, replica)
            await self._ask_for(adapter, replica)
        except ReplicaRefused as refused:
            why = f"replica {replica.id} says: {refused.message}"
            incarnation = replica.incarnation or ""
            self._pool.adapters.refuse(adapter.name, replica.server, incarnation, why)
            self._pool.adapters_changed()
            log.warning("adapter was not loaded adapter=%s replica=%s why=%r", adapter.name,
                        replica.id, refused.message)  # fmt: skip
            raise AdapterRefused(
                f"the adapter {adapter.name!r} cannot be loaded: {why}", param="model"
            ) from refused

    async def _make_room(self, name: str, replica: Replica) -> None:
        """Take a place for it, in that of the least recently used adapter without a turn if there
        is no other. Its place is taken before anything is awaited."""
        shelf = replica.outlook.shelf
        until = time.monotonic() + _ROOM_S
        while not shelf.has_room and (victim := shelf.victim()) is None:
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await self._freed.wait()
            except TimeoutError:
                raise Overloaded(
                    f"all {shelf.limit} adapters that {replica.id} can hold are in use",
                    retry_after_s=1.0,
                ) from None
        if shelf.has_room:
            shelf.coming.add(name)
            return
        assert victim is not None
        shelf.drop(victim)
        shelf.coming.add(name)
        await self._drop(victim, replica)

    async def _drop(self, name: str, replica: Replica) -> None:
        """Have the engine let go of it, if it will: one that it keeps is taken as gone until it is
        listed again."""
        replica.outlook.shelf.drop(name)
        self._pool.adapters_changed()
        try:
            call = replica.engine.drop_adapter_call(name)
            replica.engine.read_adapter(await replica.upstream.call(call, _UNLOAD_TIMEOUT_S))
        except ReplicaError as error:
            log.info("adapter was not unloaded adapter=%s replica=%s why=%r", name, replica.id,
                     error.message)  # fmt: skip
        else:
            log.info("adapter unloaded adapter=%s replica=%s", name, replica.id)

    async def _listed(self, name: str, replica: Replica) -> Adapter | None:
        """The adapter as the engine lists it now."""
        engine, upstream = replica.engine, replica.upstream
        calls = [await upstream.call(c, self._timeout_s) for c in engine.identity_calls()]
        adapters = engine.read_identity(tuple(calls)).adapters
        return next((adapter for adapter in adapters if adapter.name == name), None)
