"""A response whose router is gone, brought to its end by another: exactly one last event.

What was told stays told. The cases, in order:

1. the turn had been stored: only its last event is missing
2. it was to be cancelled: it is
3. it uses MCP tools: it fails, since its first router may have called them, and only that one knew
   the keys of their servers
4. no output was told: the turn is run, under its id
5. all that was told is known, and is one text that is not at its end: the turn goes on from there
6. otherwise it fails
"""

import asyncio
import logging
from contextlib import suppress

import msgspec

from sessile.api.responses import Responses
from sessile.api.responses_context import Context
from sessile.api.responses_events import ResponseStream
from sessile.api.responses_job import Job
from sessile.api.responses_record import Accepted, read_accepted
from sessile.api.responses_sequence import Event
from sessile.api.responses_told import SoFar, read_told
from sessile.durable import Orphan
from sessile.errors import (
    RouterLost,
    SessileError,
    StreamBroken,
    TurnCancelled,
)
from sessile.event_feed import gap
from sessile.sessions.identity import SessionClaims
from sessile.sessions.record import SessionKey
from sessile.turn_request import TurnRequest

log = logging.getLogger("sessile.api")


async def resume_response(responses: Responses, orphan: Orphan) -> None:
    """Bring it to its end; never raises but when it is cancelled."""
    accepted, told = read_accepted(orphan.record), read_told(orphan.told)
    job = _job(orphan, accepted, told)
    try:
        record = await responses.store.get_turn(orphan.tenant, orphan.turn)
        if record is not None and record.response is not None:
            _end_as_stored(job, told, record.response)
            await responses.succeed(job, again=True)
            job.log(ended=True)
            return
        if orphan.cancel:
            orphan.live.cancel()
            raise TurnCancelled("the response was cancelled")
        _go_on(job, told)
        try:
            await responses.run_again(job)
        except StreamBroken as error:
            raise _lost(error.message) from error
    except (Exception, asyncio.CancelledError) as error:  # a turn that was accepted ends
        if not isinstance(error, SessileError | asyncio.CancelledError):
            log.exception("response could not be taken over turn=%s", orphan.turn)
        if responses.give_up(job, error, keep=True):
            responses.once.free(job)
            await _release(responses, job)
        if isinstance(error, asyncio.CancelledError):
            raise


def _go_on(job: Job, told: SoFar) -> None:
    """Have the response begin where its clients are. Raises `RouterLost` where that cannot be."""
    asked = job.accepted.asked
    assert job.live is not None
    if asked.toolset.servers:
        raise _lost("its tools may have been called")
    if not told.whole or job.live.next > told.next:
        raise _lost("not all that it had told was kept")
    if not told.output:
        return
    if told.text is None or asked.compact_tokens is not None:
        raise _lost("it was not in the middle of its first text")
    job.told = told.text
    job.stream.take_up(told.text)


def _lost(why: str) -> RouterLost:
    return RouterLost(
        f"the router that made this response is gone, and it cannot go on elsewhere: {why}; what "
        "it had told is kept"
    )


def _job(orphan: Orphan, accepted: Accepted, told: SoFar) -> Job:
    """The response as its clients know it; what it follows is not looked for yet."""
    asked = accepted.asked
    model = asked.model or ""
    response = {**accepted.skeleton(model), "output": told.output}
    if not told.output and told.begun:
        response["status"] = "in_progress"
    stream = ResponseStream(
        response, accepted.stream_id, seals=asked.seals_reasoning, silent=not asked.cache.generate,
        sequence=orphan.live.next, begun=told.begun,
    )  # fmt: skip
    request = TurnRequest(tenant=orphan.tenant, path="", model=model, claims=SessionClaims())
    job = Job(orphan.tenant, accepted, asked, Context(model=model), request, stream)
    job.runs_as(orphan.live)
    return job


def _end_as_stored(job: Job, told: SoFar, response: dict[str, object]) -> None:
    """The last event of a response that was stored whole; what its clients were not told of its
    output is said to be missing."""
    assert job.live is not None
    status, output = response["status"], response["output"]
    assert isinstance(output, list)
    if [item.get("status") for item in told.output] != ["completed"] * len(output):
        number, marker = gap(job.live.next, job.live.next)
        job.pending.append(Event("sessile.gap", marker))
    kind = f"response.{'incomplete' if status == 'cancelled' else status}"
    number = job.live.next + len(job.pending)
    body = {"type": kind, "response": response, "sequence_number": number}
    if job.accepted.stream_id is not None:
        body["stream_id"] = job.accepted.stream_id
    job.pending.append(Event(kind, msgspec.json.encode(body)))
    job.stream.response = response


async def _release(responses: Responses, job: Job) -> None:
    """Let go of the session's lock that the first router held for the turn."""
    request = job.request
    with suppress(SessileError):  # the lock ends by itself
        if request.stateful and request.claims.explicit is not None:
            session = request.claims.explicit
            model = await responses.flow.key_of(job.tenant, request.model, session)
            key = SessionKey(job.tenant, model, session)
            await responses.store.release(key, job.accepted.turn)
