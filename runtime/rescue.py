"""Takes a turn whose replica is lost in the middle of a stream to another, where it goes on.

What can be done is decided by `carry_on`; here another replica is found, asked how it goes on, and
sent to. A turn that is lost again and again is given up: it may be what kills its replicas.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from sessile.carry_on import (
    Plan,
    Seam,
    Told,
    decide,
    ending,
    marker,
    parted,
    room,
    shortened,
)
from sessile.errors import NoReplica, ReplicaError, StreamBroken
from sessile.placement import Placement
from sessile.router.engine import FollowUp, FollowUps
from sessile.router.pool import Pool
from sessile.router.replica import Replica
from sessile.turn import Turn

log = logging.getLogger("sessile.flow")

_MOST_TIMES = 3
_WAIT_S = 10.0  # for another replica to come up, or the same one anew
_LOOK_S = 0.1
_STEP_TIMEOUT_S = 10.0

Body = Callable[[Turn, Replica, Mapping[str, Any] | None], bytes]
Hold = Callable[[Turn, Replica], Awaitable[None]]


class Rescue:
    """One a router, made by `Sender`. `body` makes what is sent upstream of a document, `abort`
    tells a replica that a turn does not run there any more, `hold` has its adapter loaded there."""

    def __init__(
        self, pool: Pool, placement: Placement, body: Body,
        abort: Callable[[Replica, Turn], None], hold: Hold,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._placement = placement
        self._body = body
        self._abort = abort
        self._hold = hold

    async def __call__(self, turn: Turn, error: ReplicaError) -> bytes:
        """The turn's replica is lost: have another go on. Returns the comment that tells of it.

        Raises `StreamBroken` where that cannot be, and the replica's error where nobody is left.
        """
        lost = turn.replica
        assert lost is not None
        self._leave(turn, lost)
        lost.doubts.failed(turn.id, time.monotonic())
        told = turn.told()
        sent = not turn.unheard
        plan = decide(turn.request.path, turn.request.document, told, sent=sent)
        if plan.action == "continue" and not any(_can_go_on(turn, told, r) for r in self._pool):
            plan = decide(turn.request.path, turn.request.document, told, able=False, sent=sent)
        log.warning(
            "replica was lost in the middle session=%s turn=%s replica=%s why=%r then=%s",
            turn.session, turn.id, lost.id, error.message, plan.action,
        )  # fmt: skip
        until = time.monotonic() + _WAIT_S
        dead = {lost.id: lost.incarnation}
        receipt = turn.receipt
        while plan.action != "fail" and receipt.continued < _MOST_TIMES:
            replica = await self._another(turn, dead)
            if replica is None:
                if time.monotonic() > until:
                    break
                await asyncio.sleep(_LOOK_S)
                continue
            turn.resends += 1
            receipt.attempts += 1
            try:
                await self._send(turn, replica, told, plan)
            except ReplicaError as again:
                log.warning("turn did not go on session=%s turn=%s replica=%s why=%r",
                            turn.session, turn.id, replica.id, again.message)  # fmt: skip
                error, dead[replica.id] = again, replica.incarnation
                continue
            receipt.continued += 1
            receipt.replicas = (*(receipt.replicas or (lost.id,)), replica.id)
            receipt.replica, receipt.incarnation = replica.id, replica.incarnation
            return marker(replica.id)
        why = plan.why or error.message
        raise StreamBroken(f"the replica died in the middle of its answer: {why}") from error

    async def take_over(self, turn: Turn, replica: Replica) -> FollowUp | None:
        """The request for a turn of which its client has text already (`TurnRequest.told`); None
        if no more is wanted, and the turn has its last events.

        Raises `StreamBroken` where no engine could go on from there.
        """
        request = turn.request
        told = Told(text=request.told, begun=True)
        plan = decide(request.path, request.document, told)
        if plan.action != "continue":
            raise StreamBroken(f"the answer cannot go on from its text: {plan.why}")
        follow, seam, tokens = await self.follow_up(turn, replica, told)
        if follow is None:
            turn.ended(replica, await self.finish(turn, replica, told, "length", tokens))
            return None
        turn.sewn(seam)
        return follow

    async def follow_up(
        self, turn: Turn, replica: Replica, told: Told
    ) -> tuple[FollowUp | None, Seam, int]:
        """The request that goes on from what was told, None if no more tokens are wanted; what
        joins its answer to that; and how many tokens were told.

        Raises `StreamBroken` if the replica cannot, and `ReplicaError` if it does not answer.
        """
        request = turn.request
        given, owed = parted(told.text)
        steps = None
        if given:
            steps = replica.engine.follow_up(request.path, request.document, given)
            if steps is None:
                raise StreamBroken(
                    f"replica {replica.id} cannot go on with an answer that was begun elsewhere"
                )
            follow = await _take(steps, replica)
        else:
            follow = FollowUp(request.path, request.document, 0)
        tokens = told.pieces if follow.tokens is None else follow.tokens
        seam = Seam(told, request.path, owed=owed, tokens=tokens)
        most = room(request.document)
        if most is not None and tokens >= most:
            return None, seam, tokens
        document = shortened(follow.document, tokens) if tokens else follow.document
        return msgspec.structs.replace(follow, document=document), seam, tokens

    async def finish(
        self, turn: Turn, replica: Replica, told: Told, finish: str | None, tokens: int | None
    ) -> bytes:
        """The last events of an answer of which all has been said."""
        usage = None
        if not told.counted:
            if tokens is None:
                tokens = (await self.follow_up(turn, replica, told))[2]
            usage = await self._usage(turn, replica, tokens)
        return ending(told, turn.request.path, finish, usage)

    async def _another(self, turn: Turn, dead: Mapping[str, str | None]) -> Replica | None:
        """A replica that is not `dead`, or has been started anew since; the session is bound to it.
        None while there is none."""
        still = [
            name for name, incarnation in dead.items()
            if (known := self._pool.find(name)) is not None and known.incarnation == incarnation
        ]  # fmt: skip
        try:
            decision = await self._placement.place_again(turn, *still)
        except NoReplica:
            return None
        if decision is None:
            return None
        turn.decision = decision
        return self._pool.find(decision.replica)

    def _leave(self, turn: Turn, replica: Replica) -> None:
        """The turn does not run at the replica any more, whatever the replica thinks."""
        turn.runs = False
        replica.in_flight -= 1
        self._abort(replica, turn)
        replica.failures += 1

    async def _send(self, turn: Turn, replica: Replica, told: Told, plan: Plan) -> None:
        path, document = turn.request.path, None
        seam = Seam(told, path)
        await self._hold(turn, replica)
        if plan.action == "restart" and turn.unheard:
            turn.starts_over()
            seam = Seam(Told(), path)
        elif plan.action == "finish":
            turn.ends_with(await self.finish(turn, replica, told, None, None))
            return
        elif plan.action == "continue":
            follow, seam, tokens = await self.follow_up(turn, replica, told)
            if follow is None:
                turn.ends_with(await self.finish(turn, replica, told, "length", tokens))
                return
            path, document = follow.path, follow.document
        body = self._body(turn, replica, document)
        replica.in_flight += 1
        turn.runs = True
        replica.doubts.sent(turn.id, turn.waits(path, replica))
        try:
            response, first = await replica.upstream.begin(
                path, body, lambda status: status != 200, replica.engine.headers(turn.attribution)
            )
        except BaseException as error:  # cancelled too: it is not under way there any more
            if isinstance(error, ReplicaError):
                replica.doubts.failed(turn.id, time.monotonic())
            replica.doubts.left(turn.id)
            self._leave(turn, replica)
            raise
        replica.doubts.answered(turn.id, response.status, time.monotonic())
        turn.sewn(seam)
        turn.goes_on(replica, response, first)
        self._placement.first_token(turn)

    async def _usage(self, turn: Turn, replica: Replica, tokens: int) -> dict[str, Any] | None:
        """What an engine would have said of an answer that it did not end itself."""
        call = replica.engine.count_call(turn.request.document)
        if turn.request.path != "/v1/chat/completions" or call is None:
            return None
        try:
            reply = await replica.upstream.call(call, _STEP_TIMEOUT_S)
            prompt = replica.engine.read_count(reply)
        except ReplicaError:
            return None
        if prompt is None:
            return None
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
        }


async def _take(steps: FollowUps, replica: Replica) -> FollowUp:
    """Make the calls, one after the other, to the request that they make up."""
    try:
        call = next(steps)
        while True:
            call = steps.send(await replica.upstream.call(call, _STEP_TIMEOUT_S))
    except StopIteration as made:
        follow: FollowUp = made.value
        return follow


def _can_go_on(turn: Turn, told: Told, replica: Replica) -> bool:
    """Whether such an engine can, however the replica is now: it is worth waiting for then."""
    given, _ = parted(told.text)
    request = turn.request
    return not given or replica.engine.follow_up(request.path, request.document, given) is not None
