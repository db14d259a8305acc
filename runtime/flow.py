"""The life of a turn: identify, begin, decide, open, relay, end. Everything else serves this file.

`Flow.serve_turn` is the whole of it for every protocol: chat completions pass its bytes on,
Responses read events from them. It knows no client protocol and no status code.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import cached_property
from random import Random
from types import TracebackType
from typing import Any

import msgspec

from sessile.accounts import settle, written
from sessile.adapters import Loader
from sessile.engine_calls import EngineCalls
from sessile.errors import StoreError
from sessile.exchange import Exchange
from sessile.live_turn import TurnTaken
from sessile.mover import Mover
from sessile.once import OnceKeys, begin_once, end_once
from sessile.placement import Placement
from sessile.router.policy import make_policy
from sessile.router.pool import Pool
from sessile.router.scheduler import Scheduler
from sessile.sender import Sender
from sessile.sessions.binding import Standings
from sessile.sessions.record import Receipt, SessionKey, TurnRecord
from sessile.sessions.store import Store, TurnEnd
from sessile.settings import RouterSettings, SessionSettings
from sessile.telemetry import Telemetry
from sessile.turn import Turn, outcome_of
from sessile.turn_request import TurnRequest
from sessile.variants import Variants

log = logging.getLogger("sessile.flow")


class Flow:
    """Serves turns. One a router, made by `app`; it owns the tasks that outlive their client."""

    def __init__(
        self,
        *,
        pool: Pool,
        store: Store,
        standings: Standings,
        router: RouterSettings,
        sessions: SessionSettings,
        telemetry: Telemetry,
        salt: Callable[[str], str | None],
        hear: Callable[[], Awaitable[None]],
    ) -> None:
        self._random = Random()  # seeded by the system; ids need be unique, not secret
        self._policy = make_policy(router.policy, self._random)
        self._placement = Placement(
            pool=pool, store=store, standings=standings, policy=self._policy,
            router=router, sessions=sessions, random=self._random,
        )  # fmt: skip
        self._pool = pool
        self._store = store
        self._variants = Variants(pool, store, standings, sessions.confirm_s, hear)
        self.once = OnceKeys(store, sessions.lock_wait_s)
        self._keep_after_s = sessions.binding_ttl_s / 3
        self._telemetry = telemetry
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: set[Turn] = set()
        self._ended: list[tuple[Turn, str | None]] = []
        self._exchange = Exchange(pool, store, standings, self._placement.hears)
        self._mover = Mover(
            pool=pool, placement=self._placement, telemetry=telemetry, salt=salt,
            random=self._random,
        )  # fmt: skip
        self.loader = Loader(pool, router.probe_timeout_s)
        self._calls = EngineCalls(pool, standings, self._spawn)
        self._sender = Sender(
            pool=pool, placement=self._placement, mover=self._mover, loader=self.loader,
            abort=self._calls.abort, telemetry=telemetry, salt=salt,
        )  # fmt: skip
        self._beside: list[asyncio.Task[None]] = []

    @property
    def scheduler(self) -> Scheduler:
        """What decides, to be looked at."""
        return self._placement.scheduler

    def close_session(self, tenant: str, session: str) -> None:
        """Nothing is held for the session any more; the store is told elsewhere."""
        self._mover.close_session(tenant, session)
        self._placement.close_session(tenant, session)
        self._calls.release(self._placement.released())

    def look(self) -> None:
        """A replica has come or gone, or drains: its sessions are to be moved."""
        self._mover.look()

    def still_to_move(self, replica_id: str) -> int:
        """Sessions that pause, and are to be bound elsewhere before the replica ends."""
        return self._mover.left(replica_id)

    def lease(self, tenant: str, session: str, seconds: float) -> bool:
        """Hold a pausing session's KV memory for so long, 0 lets go of it; False: none is held."""
        held = self._placement.lease(tenant, session, seconds)
        for model in self._pool.names():
            self._calls.hold(SessionKey(tenant, model, session), seconds)
        self._calls.release(self._placement.released())
        return held

    @property
    def routers(self) -> int:
        """How many routers share the store, as far as this one has heard."""
        return self._exchange.routers

    @property
    def policy(self) -> str:
        """The name of the placement policy."""
        return self._policy.name

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that all turns run on; asking for it costs a system call."""
        return asyncio.get_running_loop()

    def serve_turn(self, request: TurnRequest) -> "Service":
        """Serve one turn: `async with` gives it once its answer is open, and records it at the end.

        Raises a `SessileError` before any byte of an answer. Leaving the block early, or being
        cancelled in it, stops the engine's work.
        """
        return Service(self, request)

    async def _enter(self, service: "Service") -> Turn:
        """The turn, its answer open; `service` is to end it, unless it is the stored answer of an
        earlier try."""
        request = service.request
        model = self._pool.model(request.model)
        if model in self._pool.releases:
            turn = await self._begin_variant(request, model)
        else:
            request.serve_by(model)
            session = request.claims.explicit
            if session is None:
                session, _ = await self._placement.session_of(request, model)
            turn = self._begin(request, SessionKey(request.tenant, model, session))
        if request.idempotency_key and await begin_once(self.once, turn):
            return turn
        self._mover.returned(turn.key)
        try:
            decision = await self._placement.place(turn)
            if turn.receipt.left is not None:
                decision = msgspec.structs.replace(decision, reason="swapped")
            self._running.add(turn)
            await self._sender.send(turn, decision)
        except BaseException as error:  # cancelled too: a turn that has begun ends
            await self._end(turn, error)
            raise
        service.turn = turn
        return turn

    def open(self) -> None:
        """Start what goes on beside the turns."""
        self._beside = [
            self.loop.create_task(self._keep_bindings(), name="keep bindings"),
            self.loop.create_task(self._exchange.run(), name="exchange reports"),
            self.loop.create_task(self._mover.run(), name="move sessions"),
            self.loop.create_task(self.once.run(), name="renew idempotency keys"),
        ]

    async def aclose(self) -> None:
        """Wait for what still has to be written or aborted."""
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self.loader.aclose()
        self._record()
        self._placement.aclose()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._telemetry.flush()

    async def _keep_bindings(self) -> None:
        """Renew the bindings of the turns that run: one that outlasts its binding's expiry must not
        find its session moved when it ends."""
        while True:
            await asyncio.sleep(self._keep_after_s)
            for turn in list(self._running):
                await self._placement.bindings.keep(turn)

    def _begin(self, request: TurnRequest, key: SessionKey) -> Turn:
        receipt = Receipt(
            turn=request.turn or f"turn_{self._random.getrandbits(96):024x}",
            session=key.session,
            model=key.model,
            policy=self._policy.name,
            started_at=time.time(),
        )
        return Turn(request, key, receipt)

    async def _begin_variant(self, request: TurnRequest, served: str) -> Turn:
        """The turn of a session of `served`, which has a release: under the variant that the
        session belongs to, and is moved to for this turn if it has had to leave another."""
        tenant, claims = request.tenant, request.claims
        home = self._pool.aliases.get(served, served)  # as before there was a release
        session, known = claims.explicit, True
        if session is None:
            session, known = await self._placement.session_of(request, home)
        key = SessionKey(tenant, served, session)
        found = await self._variants.of(key, claims.parent, known=known)
        variant = self._pool.releases.variant(found.variant)
        assert variant is not None
        self._telemetry.assigned(served, found)
        if found.left is not None:
            old = SessionKey(tenant, found.left, session)
            self._mover.forget(old)
            self._placement.forget(old)
        request.serve_by(variant.model)
        turn = self._begin(request, SessionKey(tenant, variant.name, session))
        turn.served = home
        turn.receipt.model = served
        turn.receipt.variant, turn.receipt.left = variant.name, found.left
        return turn

    async def key_of(self, tenant: str, model: str, session: str, parent: str | None = None) -> str:
        """What a session of `model`, as a client names it, is kept under: the model, or of one that
        has a release the session's variant. Raises as `Pool.model` does."""
        served = self._pool.model(model)
        if served not in self._pool.releases:
            return served
        return (await self._variants.of(SessionKey(tenant, served, session), parent)).variant

    async def _end(self, turn: Turn, error: BaseException | None) -> None:
        """Whatever became of it: stop the engine, settle the accounts, tell the store."""
        self._running.discard(turn)
        receipt, replica = turn.receipt, turn.replica
        cut = turn.hang_up()
        if error is not None:  # a hang-up is an outcome too, but not of one who has had all of it
            why = outcome_of(error)
            if why != "client_gone" or cut or not turn.whole:
                receipt.outcome = why
        if receipt.outcome == "running":
            refused = "ok" if turn.status < 400 else "refused"
            receipt.outcome = "client_gone" if cut else refused
        receipt.duration_s = time.monotonic() - turn.began
        step = None
        if turn.holds is not None:
            self.loader.release(turn)
        if replica is not None:
            if turn.runs:
                replica.in_flight -= 1
            if receipt.outcome == "ok":
                replica.doubts.well_at = time.monotonic()
            if cut and not isinstance(error, TurnTaken):
                # Of one that another router has taken, the engine may run both under one id.
                self._calls.abort(replica, turn)
            step = settle(turn, replica)
        if step is not None:
            self._placement.remember_lineage(turn, step)
        self._ended.append((turn, step))
        if len(self._ended) == 1:
            self.loop.call_soon(self._record)
        if turn.request.idempotency_key is not None:
            await asyncio.shield(self._spawn(end_once(self.once, turn)))
        if turn.transcript is not None or turn.fence is not None:
            self._record()
            await asyncio.shield(self._spawn(self._commit(turn, *written(turn, step))))

    def _record(self) -> None:
        """Count and remember the turns that ended in this tick of the loop, and tell the store:
        many in a row cost half of what they do one by one."""
        ended, self._ended = self._ended, []
        for turn, step in ended:
            self._telemetry.finished(turn.receipt)
            if self._placement.end(turn):
                self._mover.keep(turn)
            if turn.request.hints.hold_s:
                self._calls.hold(turn.key, turn.request.hints.hold_s)
            if turn.transcript is None and turn.fence is None:
                self._store.end_turn(*written(turn, step))
        self._calls.release(self._placement.released())

    async def _commit(self, turn: Turn, end: TurnEnd, record: TurnRecord) -> None:
        """Write a stateful turn, and let the next one begin. The store never fails a turn."""
        try:
            await self._store.commit_turn(end, record)
            if turn.fence is not None:
                await self._store.release(end.key, turn.id)
        except StoreError as error:
            log.warning("turn was not committed session=%s turn=%s why=%r", turn.session, turn.id,
                        error.message)  # fmt: skip

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run to its end whatever becomes of the client; `aclose` waits for it."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Service:
    """A turn being served, as a block. Made by `Flow.serve_turn`.

    NOTE: a class and not a generator with `asynccontextmanager`, which costs 3 us a turn more.
    """

    __slots__ = ("_flow", "request", "turn")

    def __init__(self, flow: Flow, request: TurnRequest) -> None:
        self._flow = flow
        self.request = request
        self.turn: Turn | None = None  # once it is to be ended

    def __aenter__(self) -> Awaitable[Turn]:
        return self._flow._enter(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self.turn is not None:
            await self._flow._end(self.turn, error)
