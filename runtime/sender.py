"""Sends a turn to the replica that was decided on, until the first bytes of its answer are there.

Which replica that is, `placement` says; how a turn goes on that is lost later, `rescue` does.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sessile.adapters import Loader
from sessile.ask_own import ask_own
from sessile.errors import ReplicaError, ReplicaRefused
from sessile.mover import Mover
from sessile.placement import Placement
from sessile.prewarm import carry
from sessile.rescue import Rescue
from sessile.router.connection import UpstreamResponse
from sessile.router.decide import Decision
from sessile.router.pool import Pool
from sessile.router.replica import Replica
from sessile.telemetry import Telemetry
from sessile.turn import Turn
from sessile.upstream_body import UpstreamBody

log = logging.getLogger("sessile.flow")

_NOT_NOW = (502, 503, 504)  # an engine that says so has done nothing yet: another may serve
_BROKEN = (500, *_NOT_NOW)  # nor has its client been told anything: another is asked, if there is


class Sender:
    """One a router, made by `Flow`. `abort` tells a replica that a turn does not run there any
    more; `salt` is what separates a tenant's cache."""

    def __init__(
        self, *, pool: Pool, placement: Placement, mover: Mover, loader: Loader,
        abort: Callable[[Replica, Turn], None], telemetry: Telemetry,
        salt: Callable[[str], str | None],
    ) -> None:  # fmt: skip
        self._pool = pool
        self._placement = placement
        self._mover = mover
        self._loader = loader
        self._abort = abort
        self._telemetry = telemetry
        self._body = UpstreamBody(salt)
        self._rescue = Rescue(pool, placement, self._body.of, abort, loader.hold)

    async def send(self, turn: Turn, decision: Decision) -> None:
        """Send the turn and wait for the first bytes of its answer. A replica that fails before
        them is replaced by another, once. An engine's own error is the client's to read where
        nobody else could answer, or the other one says so too."""
        others = len(self._pool.outlooks(turn.key.model)) > 1
        try:
            await self._try(turn, decision, _BROKEN if others else _NOT_NOW)
        except ReplicaError as error:
            log.warning(
                "replica failed before the first token session=%s turn=%s replica=%s why=%r",
                turn.session, turn.id, decision.replica, error.message,
            )  # fmt: skip
            another = await self._placement.place_again(turn, decision.replica)
            if another is None:
                raise
            await self._try(turn, another, _NOT_NOW)

    async def _try(self, turn: Turn, decision: Decision, refused: tuple[int, ...]) -> None:
        """Try it at the replica of the decision, for which statuses that are `refused` are failures
        like a lost line. Its receipt tells of the last try."""
        request, receipt = turn.request, turn.receipt
        replica = self._pool.find(decision.replica)
        if replica is None:
            raise ReplicaRefused(f"replica {decision.replica} has left the pool")
        turn.decision = decision
        receipt.attempts += 1
        receipt.replica, receipt.incarnation = decision.replica, decision.incarnation
        receipt.reason = decision.reason
        receipt.predicted_cached_tokens = decision.predicted_cached_tokens
        receipt.predicted_ttft_s = decision.predicted_ttft_s
        turn.sent_at = time.monotonic()
        self._telemetry.decided(receipt.policy, decision.reason)
        if self._placement.shared.follows(turn):
            await self._placement.shared.follow(turn)
        if self._mover.is_moving(turn.key):
            await self._mover.overtaken(turn.key)
        if decision.binding == "rebind" and replica.spec.folder is not None:
            await self._carry(turn, replica)
        if turn.adapter is not None:
            await self._loader.hold(turn, replica)
        path, document = request.path, None
        if request.told:
            follow = await self._rescue.take_over(turn, replica)
            if follow is None:
                return
            path, document = follow.path, follow.document
        replica.in_flight += 1
        turn.runs = True
        replica.doubts.sent(turn.id, turn.waits(path, replica))
        try:
            response, first, own = await self._ask(turn, replica, path, document, refused)
        except BaseException as error:  # cancelled too: it is not under way there any more
            replica.in_flight -= 1
            turn.runs = False
            if isinstance(error, ReplicaError):
                replica.failures += 1
                replica.doubts.failed(turn.id, time.monotonic())
            replica.doubts.left(turn.id)
            self._abort(replica, turn)
            raise
        replica.doubts.answered(turn.id, response.status, time.monotonic())
        keep = request.claims.lineage is not None or request.idempotency_key is not None
        turn.opened(replica, response, first, keep, self._rescue, own=own)
        if turn.reads_stream:
            self._placement.first_token(turn)

    async def _ask(
        self, turn: Turn, replica: Replica, path: str, document: Mapping[str, Any] | None,
        refused: tuple[int, ...],
    ) -> tuple[UpstreamResponse, bytes, bool]:  # fmt: skip
        """The replica's answer, its first bytes, and whether it is in the client's own form, which
        is how the turn is sent where the replica takes that. What it refuses so is asked as a chat:
        clients read one kind of refusal."""
        headers = replica.engine.headers(turn.attribution)
        own = self._body.own(turn, replica)
        if own is not None and (answer := await ask_own(replica, own, headers, refused)):
            return *answer, True
        body = self._body.of(turn, replica, document)
        begin = partial(replica.upstream.begin, path, body, refused.__contains__, headers)
        response, first = await begin()
        if turn.holds is not None and await self._loader.is_lost(turn, response.status):
            response.close()
            response, first = await begin()
        return response, first, False

    async def _carry(self, turn: Turn, replica: Replica) -> None:
        """The turn goes elsewhere than its session's last: take along what can be taken."""
        ask = turn.ask
        bound = ask.bound if ask is not None and ask.claimed is None else None
        old = self._pool.find(bound.replica) if bound is not None else None
        if bound is not None and old is not None and old.incarnation == bound.incarnation:
            request = turn.request
            await carry(request.path, request.document, old, replica, f"{turn.id}.kv")
