"""The life of a turn: identify, begin, decide, open, relay, end. Everything else serves this file.

`Flow.serve_turn` is the whole of it for every protocol: chat completions pass its bytes on,
Responses read events from them. It knows no client protocol and no status code.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import msgspec

from sessile.errors import (
    InvalidRequest,
    NotSupported,
    ReplicaError,
    ReplicaRefused,
    SessileError,
    SessionBusy,
    SessionExpired,
    StoreError,
    StoreUnavailable,
)
from sessile.relay import UsageRelay, events, read_reply
from sessile.router.decide import Decision, decide
from sessile.router.policy import Ask, Candidate, make_policy
from sessile.router.pool import Pool, Replica
from sessile.router.replica import Usage
from sessile.router.upstream import UpstreamResponse
from sessile.sessions.binding import Standing, Standings
from sessile.sessions.identity import SessionClaims
from sessile.sessions.record import Binding, Receipt, SessionKey, TurnRecord
from sessile.sessions.store import Store, StoredResult, TurnEnd
from sessile.settings import RouterSettings, SessionSettings
from sessile.telemetry import Telemetry

log = logging.getLogger("sessile.flow")

_DECODER = msgspec.json.Decoder(dict[str, Any])
_LARGEST_STORED_RESULT = 4 * 2**20
_LINEAGES = 50_000
_ABORT_TIMEOUT_S = 2.0


class TurnRequest(msgspec.Struct, kw_only=True):
    """One turn as an API hands it over: what goes upstream, and what is known of its session.

    `body` is the client's JSON object and `document` the same decoded; either may be left out.
    `parent` is the turn that this one extends: it makes the turn stateful, so that it takes the
    session's turn lock and its end is written before it is over. `turn` is its id where the
    protocol has made one. `relay_usage` says that the client itself asked for the usage chunk.
    """

    tenant: str
    path: str
    model: str
    claims: SessionClaims
    body: bytes = b""
    document: dict[str, Any] | None = None
    stream: bool = False
    relay_usage: bool = False
    idempotency_key: str | None = None
    stateful: bool = False
    parent: str | None = None
    turn: str | None = None


class Transcript(msgspec.Struct, kw_only=True):
    """What a stored turn adds to its conversation; set on the turn by the API that knows it."""

    parent: str | None
    instructions: str | None
    input_items: list[dict[str, Any]]
    output_items: list[dict[str, Any]]
    response: dict[str, Any]


class Turn:
    """A turn under way: its answer, read as it comes, and its receipt. Made by `serve_turn`.

    An engine's own refusal is an answer like another: `status` is 400 or more, and the body says
    why. `whole` says that nothing is left to read. After the block that served it, `receipt` is
    complete.
    """

    def __init__(self, request: TurnRequest, turn_id: str, session: str, receipt: Receipt) -> None:
        self.request = request
        self.id = turn_id
        self.session = session
        self.receipt = receipt
        self.decision: Decision | None = None
        self.status = 200
        self.content_type = b"application/json"
        self.transcript: Transcript | None = None
        self.replayed = False
        self._first: bytes | None = None
        self._response: UpstreamResponse | None = None
        self._relay: UsageRelay | None = None
        self._kept: list[bytes] | None = None
        self._kept_bytes = 0
        self._started = 0.0
        self._first_at = 0.0
        self._last_at = 0.0
        self.whole = False
        self.key: SessionKey | None = None
        self.binding: Binding | None = None
        self.fence: int | None = None

    async def read(self) -> bytes:
        """The next bytes of the answer, `b""` after its end. For a stream: whole events.

        Raises `StreamBroken` or `ReplicaTimeout` if the replica is lost on the way.
        """
        passed = b""
        while not passed and not self.whole:
            if self._first is not None:
                chunk, self._first = self._first, None
            else:
                assert self._response is not None
                chunk = await self._response.read()
                self._last_at = time.monotonic()
            if self._kept is not None:
                self._keep(chunk)
            passed = chunk if self._relay is None else self._relay.feed(chunk)
            if self._response is None or self._response.whole:
                self.whole = True
                if self._relay is not None:
                    passed += self._relay.rest()
                if self._response is not None:
                    self._response.close()
        return passed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The `X-Sessile-*` headers of the answer."""
        found = [
            (b"x-sessile-session", self.session.encode("ascii", "backslashreplace")),
            (b"x-sessile-turn", self.id.encode()),
        ]
        if self.decision is not None:
            found.append((b"x-sessile-replica", self.decision.replica.encode()))
            found.append((b"x-sessile-reason", self.decision.reason.encode()))
        return found

    def _keep(self, chunk: bytes) -> None:
        assert self._kept is not None
        self._kept_bytes += len(chunk)
        if self._kept_bytes > _LARGEST_STORED_RESULT:
            self._kept = None
        else:
            self._kept.append(chunk)


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
    ) -> None:
        self._pool = pool
        self._store = store
        self._standings = standings
        self._random = Random()  # seeded by the system; ids need be unique, not secret
        self._policy = make_policy(router.policy, self._random)
        self._gate_slack = router.gate_slack
        self._settings = sessions
        self._telemetry = telemetry
        self._salt = salt
        self._lineages: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def policy(self) -> str:
        """The name of the placement policy."""
        return self._policy.name

    @asynccontextmanager
    async def serve_turn(self, request: TurnRequest) -> AsyncIterator[Turn]:
        """Serve one turn: inside the block its answer is open, after it the turn is recorded.

        Raises a `SessileError` before any byte of an answer. Leaving the block early, or being
        cancelled in it, stops the engine's work.
        """
        model = self._pool.model(request.model)
        session = await self._identify(request, model)
        turn = self._new_turn(request, model, session)
        if request.idempotency_key is not None and await self._replay(turn):
            yield turn
            return
        try:
            await self._begin(turn)
            await self._open(turn)
            yield turn
        except BaseException as error:
            turn.receipt.outcome = _outcome(error)
            raise
        finally:
            await self._end(turn)

    async def aclose(self) -> None:
        """Wait for what still has to be written or aborted."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- 1: which session is this?

    async def _identify(self, request: TurnRequest, model: str) -> str:
        claims = request.claims
        if claims.explicit is not None:
            return claims.explicit
        if claims.lineage is not None and claims.lineage.known:
            for key in claims.lineage.known:
                if found := self._lineages.get((request.tenant, model, key)):
                    return found
            try:
                found = await self._store.find_lineage(request.tenant, model, claims.lineage.known)
            except StoreUnavailable:
                found = None
            if found is not None:
                return found
        return f"ses_{self._random.getrandbits(96):024x}"

    def _new_turn(self, request: TurnRequest, model: str, session: str) -> Turn:
        turn_id = request.turn or f"turn_{self._random.getrandbits(96):024x}"
        receipt = Receipt(
            turn=turn_id, session=session, model=model, policy=self._policy.name,
            started_at=time.time(),
        )  # fmt: skip
        turn = Turn(request, turn_id, session, receipt)
        turn._started = time.monotonic()
        turn.key = SessionKey(request.tenant, model, session)
        return turn

    # -- 2: begin: the binding in force, the turn lock

    async def _begin(self, turn: Turn) -> None:
        """Decide, with the binding that holds for every router; sets `turn.decision`."""
        request = turn.request
        if request.stateful:
            await self._lock(turn)
        key = turn.key
        assert key is not None
        candidates = self._candidates(key.model, request.path)
        standing = self._standings.get(key)
        ask = self._ask(turn, standing)
        if not (self._policy.binds and self._continues(request)):
            turn.decision = self._decide(ask, candidates)
            return
        if standing is not None and self._confirmed(standing):
            decision = self._decide(ask, candidates)
            turn.binding = standing.binding
        else:
            decision = await self._claim(turn, ask, candidates)
        if decision.binding == "rebind":
            decision = await self._rebind(turn, decision, candidates)
        turn.decision = decision

    async def _claim(self, turn: Turn, ask: Ask, candidates: list[Candidate]) -> Decision:
        """Ask the store, with a proposal: one round trip tells the binding in force or makes it."""
        key = turn.key
        assert key is not None
        proposal = self._decide(ask, candidates)
        try:
            claim = await self._store.claim(key, proposal.replica, proposal.incarnation)
        except StoreUnavailable:
            return self._without_store(turn, ask, candidates)
        if claim.state == "closed":
            self._standings.drop(key)
            raise SessionExpired(f"session {key.session!r} is closed; open a new one")
        turn.binding = claim.binding
        held = claim.context_tokens
        self._standings.put(key, Standing(claim.binding, time.monotonic(), held))
        if claim.won:
            kept = proposal.reason == "bound"
            predicted = proposal.predicted_cached_tokens if kept else 0
            return msgspec.structs.replace(
                proposal, binding="keep", predicted_cached_tokens=predicted
            )
        return self._decide(
            msgspec.structs.replace(ask, bound=claim.binding, context_tokens=held), candidates
        )

    def _without_store(self, turn: Turn, ask: Ask, candidates: list[Candidate]) -> Decision:
        """The store is away: what this router remembers, else what every router would choose."""
        turn.receipt.store = "degraded"
        decision = self._decide(msgspec.structs.replace(ask, shared=False), candidates)
        epoch = ask.bound.epoch if ask.bound is not None else 0
        turn.binding = Binding(decision.replica, decision.incarnation, epoch)
        assert turn.key is not None
        self._standings.put(turn.key, Standing(turn.binding, None, ask.context_tokens))
        return msgspec.structs.replace(decision, binding="keep")

    async def _rebind(self, turn: Turn, decision: Decision, at: list[Candidate]) -> Decision:
        """Move the binding, unless another router has moved it first: then follow that one."""
        key, seen = turn.key, turn.binding
        assert key is not None and seen is not None
        try:
            binding = await self._store.rebind(key, seen, decision.replica, decision.incarnation)
            confirmed: float | None = time.monotonic()
        except StoreUnavailable:
            binding = Binding(decision.replica, decision.incarnation, seen.epoch)
            confirmed = None
            turn.receipt.store = "degraded"
        turn.binding = binding
        self._standings.put(key, Standing(binding, confirmed, None))
        if (binding.replica, binding.incarnation) != (decision.replica, decision.incarnation):
            followed = self._decide(
                Ask(session=key.session, bound=binding, context_tokens=None), at
            )
            if followed.binding == "keep":
                return followed
        return msgspec.structs.replace(decision, binding="keep")

    async def _lock(self, turn: Turn) -> None:
        """Take the session's turn lock, waiting for the turn that holds it."""
        key = turn.key
        assert key is not None
        waited_from = time.monotonic()
        pause_s = 0.01
        while True:
            try:
                turn.fence = await self._store.acquire(key, turn.id, self._settings.lock_ttl_s)
            except StoreUnavailable:
                return  # one router still runs its turns in the order that they come
            if turn.fence is not None:
                break
            if time.monotonic() - waited_from > self._settings.lock_wait_s:
                raise SessionBusy(
                    f"another turn of session {key.session!r} is running", retry_after_s=1.0
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.25)
        turn.receipt.queue_s = time.monotonic() - waited_from

    # -- 3: decide

    def _decide(
        self, ask: Ask, candidates: list[Candidate], failed: tuple[str, ...] = ()
    ) -> Decision:
        return decide(ask, candidates, self._policy, gate_slack=self._gate_slack, failed=failed)

    def _candidates(self, model: str, path: str) -> list[Candidate]:
        candidates = self._pool.candidates(model)
        if path == "/v1/embeddings" and candidates:
            able = [c for c in candidates if self._pool.get(c.id).engine.embeddings]
            if not able:
                raise NotSupported(f"the engine that serves {model!r} makes no embeddings")
            return able
        return candidates

    def _ask(self, turn: Turn, standing: Standing | None) -> Ask:
        claims = turn.request.claims
        return Ask(
            session=turn.session,
            bound=standing.binding if standing is not None else None,
            context_tokens=standing.context_tokens if standing is not None else None,
            group=claims.group,
        )

    def _continues(self, request: TurnRequest) -> bool:
        """Whether a later request can belong to the same session, so that binding it pays."""
        return (
            request.stateful
            or request.claims.explicit is not None
            or request.claims.lineage is not None
        )

    def _confirmed(self, standing: Standing) -> bool:
        at = standing.confirmed_at
        return at is not None and time.monotonic() - at < self._settings.confirm_s

    # -- 4: open the replica's stream, with one more try elsewhere

    async def _open(self, turn: Turn) -> None:
        """Send the turn and wait for the first bytes of its answer. A replica that fails before
        them is replaced by another, once."""
        try:
            await self._try(turn)
        except ReplicaError as error:
            failed = turn.decision
            assert failed is not None and turn.key is not None
            log.warning("replica failed before the first token turn=%s replica=%s why=%r",
                        turn.id, failed.replica, error.message)  # fmt: skip
            candidates = self._candidates(turn.key.model, turn.request.path)
            if not any(c.id != failed.replica for c in candidates):
                raise
            ask = Ask(session=turn.session, bound=turn.binding, group=turn.request.claims.group)
            again = self._decide(ask, candidates, (failed.replica,))
            if again.binding == "rebind":
                again = await self._rebind(turn, again, candidates)
            turn.decision = again
            await self._try(turn)

    async def _try(self, turn: Turn) -> None:
        decision, request, receipt = turn.decision, turn.request, turn.receipt
        assert decision is not None
        replica = self._pool.find(decision.replica)
        if replica is None:
            raise ReplicaRefused(f"replica {decision.replica} has left the pool")
        receipt.attempts += 1
        receipt.replica, receipt.incarnation = replica.id, decision.incarnation
        receipt.reason = decision.reason
        receipt.predicted_cached_tokens = decision.predicted_cached_tokens
        self._telemetry.decided(self._policy.name, decision.reason)
        body = self._body(turn, replica)
        replica.in_flight += 1
        response: UpstreamResponse | None = None
        try:
            response = await replica.upstream.open("POST", request.path, body)
            if response.status in (502, 503, 504):
                raise ReplicaRefused(f"replica {replica.id} answered {response.status}")
            first = await response.read()
        except BaseException as error:
            replica.in_flight -= 1
            if response is not None:
                response.close()
            if isinstance(error, ReplicaError):
                replica.failures += 1
            self._abort(replica, turn)
            raise
        turn._first_at = turn._last_at = time.monotonic()
        turn._response, turn._first = response, first
        turn.status = receipt.status = response.status
        turn.content_type = response.headers.get(b"content-type", b"application/json")
        if request.stream and turn.content_type.startswith(b"text/event-stream"):
            turn._relay = UsageRelay(request.relay_usage)
        if turn._relay is None or self._wants_reply(request) or request.idempotency_key:
            turn._kept = []

    def _wants_reply(self, request: TurnRequest) -> bool:
        return request.claims.lineage is not None and request.claims.explicit is None

    def _body(self, turn: Turn, replica: Replica) -> bytes:
        """The client's body with the engine's own fields set; spliced in where that is enough,
        so that all the rest reaches the engine as the client wrote it."""
        request = turn.request
        if request.document is None:
            request.document = _DECODER.decode(request.body)
        document = request.document
        tenant = request.tenant
        attributed = turn.session if tenant == "default" else f"{tenant}/{turn.session}"
        fields = dict(
            replica.engine.fields(turn=turn.id, session=attributed, salt=self._salt(tenant))
        )
        if request.stream:
            options = document.get("stream_options") or {}
            if not isinstance(options, dict):
                raise InvalidRequest("stream_options must be an object", param="stream_options")
            if options.get("include_usage") is not True:
                fields["stream_options"] = {**options, "include_usage": True}
        if not fields and request.body:
            return request.body
        if not request.body or not fields.keys().isdisjoint(document):
            return msgspec.json.encode({**document, **fields})
        start = request.body.index(b"{") + 1
        added = msgspec.json.encode(fields)[1:-1]
        return b"{" + added + (b"," if document else b"") + request.body[start:]

    def _abort(self, replica: Replica, turn: Turn) -> None:
        """Closing the connection has told most engines; tell those that want it said."""
        call = replica.engine.abort_call(turn.id)
        if call is not None and replica.state != "down":
            self._spawn(_quietly(replica.upstream.call(call, _ABORT_TIMEOUT_S)))

    # -- 5: end: the record, the binding's expiry, what was predicted against what came

    async def _end(self, turn: Turn) -> None:
        receipt = turn.receipt
        replica = self._pool.find(receipt.replica) if receipt.replica else None
        opened = turn._first_at > 0.0
        if opened and not turn.whole and turn._response is not None:
            turn._response.close()
            if receipt.outcome == "running":
                receipt.outcome = "client_gone"
            if replica is not None:
                self._abort(replica, turn)
        elif receipt.outcome == "running":
            receipt.outcome = "ok" if turn.status < 400 else "refused"
        receipt.duration_s = time.monotonic() - turn._started
        reply = None
        if opened and replica is not None:
            replica.in_flight -= 1
            reply = self._account(turn, replica)
        self._telemetry.finished(receipt)
        await self._write(turn, reply)

    def _account(self, turn: Turn, replica: Replica) -> dict[str, Any] | None:
        """Fill in the receipt from the answer's usage; returns the reply where lineage needs it."""
        receipt = turn.receipt
        receipt.ttft_s = turn._first_at - turn._started
        bodies: list[dict[str, Any]] = []
        kept = b"".join(turn._kept) if turn._kept else b""
        if turn._relay is None:
            body = _object(kept) if turn.whole and turn.status < 400 else None
            bodies = [body] if body is not None else []
            used = body
        else:
            used = turn._relay.usage_body
            if kept and self._wants_reply(turn.request):
                bodies = list(events(kept))
        usage = Usage()
        if used is not None and isinstance(used.get("usage"), dict):
            usage = replica.engine.read_usage(used["usage"], used)
        receipt.prompt_tokens = usage.prompt_tokens
        receipt.completion_tokens = usage.completion_tokens
        receipt.cached_tokens = usage.cached_tokens
        if turn._relay is not None and usage.completion_tokens and usage.completion_tokens > 1:
            spent = turn._last_at - turn._first_at
            receipt.tpot_s = spent / (usage.completion_tokens - 1)
        replica.turns += 1
        if usage.prompt_tokens is not None and usage.cached_tokens is not None:
            replica.prompt_tokens += usage.prompt_tokens
            replica.cached_tokens += usage.cached_tokens
        return read_reply(bodies) if bodies and turn.whole else None

    async def _write(self, turn: Turn, reply: dict[str, Any] | None) -> None:
        """Queue (stateless) or await (stateful) the turn's end. The store never fails a turn."""
        request, receipt, key = turn.request, turn.receipt, turn.key
        assert key is not None
        lineage: tuple[str, ...] = ()
        if reply is not None and request.claims.lineage is not None:
            lineage = (request.claims.lineage.after(reply),)
            self._remember(request.tenant, key.model, lineage[0], turn.session)
        ok = receipt.outcome == "ok"
        standing = self._standings.get(key)
        if ok and standing is not None and receipt.prompt_tokens is not None:
            standing.context_tokens = receipt.prompt_tokens + (receipt.completion_tokens or 0)
        script = turn.transcript
        end = TurnEnd(
            key=key, turn=turn.id, binding=turn.binding if ok else None, fence=turn.fence,
            stateful=script is not None, prompt_tokens=receipt.prompt_tokens,
            cached_tokens=receipt.cached_tokens, completion_tokens=receipt.completion_tokens,
            parent=request.claims.parent, lineage=lineage,
        )  # fmt: skip
        record = TurnRecord(
            turn=turn.id, tenant=request.tenant, session=turn.session, model=key.model,
            parent=script.parent if script else None,
            instructions=script.instructions if script else None,
            input_items=script.input_items if script else [],
            output_items=script.output_items if script else [],
            response=script.response if script else None,
            receipt=receipt,
        )  # fmt: skip
        if request.idempotency_key is not None:
            await asyncio.shield(self._spawn(self._finish_once(turn)))
        if script is None and turn.fence is None:
            self._store.end_turn(end, record)
        else:
            await asyncio.shield(self._spawn(self._commit(turn, end, record)))

    async def _commit(self, turn: Turn, end: TurnEnd, record: TurnRecord) -> None:
        try:
            await self._store.commit_turn(end, record)
            if turn.fence is not None:
                await self._store.release(end.key, turn.id)
        except StoreError as error:
            log.warning("turn was not stored session=%s turn=%s why=%r", turn.session, turn.id,
                        error.message)  # fmt: skip

    def _remember(self, tenant: str, model: str, key: str, session: str) -> None:
        self._lineages[(tenant, model, key)] = session
        if len(self._lineages) > _LINEAGES:
            self._lineages.popitem(last=False)

    # -- a turn runs once

    async def _replay(self, turn: Turn) -> bool:
        """Whether the turn's idempotency key has an answer, which the turn then gives.

        Waits for a turn that runs under the key now. Without the store there is no memory of
        earlier tries: the turn runs.
        """
        request = turn.request
        assert request.idempotency_key is not None
        waited_from = time.monotonic()
        pause_s = 0.02
        while True:
            try:
                found = await self._store.begin_once(
                    request.tenant, request.idempotency_key, turn.id
                )
            except StoreUnavailable:
                request.idempotency_key = None
                return False
            if found is None:
                return False
            if isinstance(found, StoredResult):
                turn.id, turn.replayed = found.turn, True
                turn.status, turn.content_type = found.status, found.content_type.encode()
                turn._first = found.body
                if request.stream:
                    turn._relay = UsageRelay(request.relay_usage)
                return True
            if time.monotonic() - waited_from > self._settings.lock_wait_s:
                raise SessionBusy(
                    f"turn {found} with the same idempotency key is still running",
                    retry_after_s=1.0,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.25)

    async def _finish_once(self, turn: Turn) -> None:
        result = None
        if turn.receipt.outcome == "ok" and turn._kept:
            result = StoredResult(
                turn.id, turn.status, turn.content_type.decode("latin-1"), b"".join(turn._kept)
            )
        key = turn.request.idempotency_key
        assert key is not None
        try:
            await self._store.end_once(turn.request.tenant, key, result)
        except StoreUnavailable as error:
            log.warning("idempotency key was not settled turn=%s why=%r", turn.id, error.message)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run to its end whatever becomes of the client; `aclose` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except ReplicaError as error:
        log.debug("abort was not heard why=%r", error.message)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        return _DECODER.decode(data)
    except msgspec.DecodeError:
        return None


def _outcome(error: BaseException) -> str:
    if isinstance(error, SessileError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit | OSError):
        return "client_gone"  # an OSError is the client's line: a replica's is a ReplicaError
    return "failed"
