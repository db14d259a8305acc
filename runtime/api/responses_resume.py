"""A response whose router is gone, brought to its end by another: exactly one last event.

What was told stays told. 1. The turn had been stored: only its last event is missing. 2. It was to
be cancelled: it is. 3. No output was told: the turn is run, under its id. 4. Otherwise it fails:
going on within a text is not built yet.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import msgspec

from sessile.api.responses import Job, Responses
from sessile.api.responses_events import Event, ResponseStream
from sessile.api.responses_record import Accepted, read_accepted
from sessile.api.responses_told import SoFar, read_told
from sessile.durable import Orphan
from sessile.errors import RouterLost, SessileError, StoreUnavailable, TurnCancelled
from sessile.event_feed import gap
from sessile.sessions.identity import SessionClaims
from sessile.sessions.record import SessionKey
from sessile.turn import TurnRequest

log = logging.getLogger("sessile.api")


async def resume_response(responses: Responses, orphan: Orphan) -> None:
    """Bring it to its end; never raises but when it is cancelled."""
    accepted, told = read_accepted(orphan.record), read_told(orphan.told)
    job = _job(orphan, accepted, told)
    try:
        record = await responses.store.get_turn(orphan.tenant, orphan.turn)
        if record is not None and record.response is not None:
            _end_as_stored(job, told, record.response)
            return
        if orphan.cancel:
            orphan.live.cancel()
            raise TurnCancelled("the response was cancelled")
        if told.output or not told.whole or orphan.live.next > told.next:
            job.request = await responses.request(orphan.tenant, accepted)
            await _carry_on(job, told)
        else:
            await responses.run_again(job)
    except (Exception, asyncio.CancelledError) as error:  # a turn that was accepted ends
        if not isinstance(error, SessileError | asyncio.CancelledError):
            log.exception("response could not be taken over turn=%s", orphan.turn)
        responses.give_up(job, error, keep=True)
        await _free(responses, job)
        if isinstance(error, asyncio.CancelledError):
            raise


async def _carry_on(job: Job, told: SoFar) -> None:
    """The seam for going on within a text: `told.output` is what clients have, `told.whole` and
    `told.next` whether that is all, and `job.stream` numbers the events that come next."""
    raise RouterLost("the router that made this response is gone; what it had told is kept")


def _job(orphan: Orphan, accepted: Accepted, told: SoFar) -> Job:
    model = accepted.asked.model or ""
    response = {**accepted.skeleton(model), "output": told.output}
    if not told.output and told.begun:
        response["status"] = "in_progress"
    stream = ResponseStream(
        response, accepted.stream_id, sequence=orphan.live.next, begun=told.begun
    )
    request = TurnRequest(tenant=orphan.tenant, path="", model=model, claims=SessionClaims())
    job = Job(orphan.tenant, accepted, request, stream)
    job.live = orphan.live
    return job


def _end_as_stored(job: Job, told: SoFar, response: dict[str, Any]) -> None:
    """The last event of a response that was stored whole; what its clients were not told of its
    output is said to be missing."""
    assert job.live is not None
    status = response["status"]
    if [item.get("status") for item in told.output] != ["completed"] * len(response["output"]):
        number, marker = gap(job.live.next, job.live.next)
        job.pending.append(Event("sessile.gap", marker))
    kind = "response." + ("incomplete" if status == "cancelled" else status)
    number = job.live.next + len(job.pending)
    body = {"type": kind, "response": response, "sequence_number": number}
    if job.accepted.stream_id is not None:
        body["stream_id"] = job.accepted.stream_id
    job.pending.append(Event(kind, msgspec.json.encode(body)))
    job.log(ended=True)


async def _free(responses: Responses, job: Job) -> None:
    """Let go of what the first router held for the turn: its session's lock, its key."""
    store, request = responses.store, job.request
    with suppress(StoreUnavailable):
        if job.accepted.once is not None:
            await store.end_once(job.tenant, job.accepted.once, None)
        if request.stateful and request.claims.explicit is not None:
            key = SessionKey(job.tenant, request.model, request.claims.explicit)
            await store.release(key, job.accepted.turn)
