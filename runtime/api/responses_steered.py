"""What is said into a response that runs by itself: kept with it, whichever router is told of it.

The response that takes it in is accepted before the steered one is told to have ended, and the last
event of that names it and the steers that it took in (`successor`, beside the fields of the API).
So whoever follows, over whatever connection, knows what is still to be said; and since the id of
the successor comes of the steered response's, two routers that bring that to its end one after the
other make one successor.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from sessile.api.responses_job import Job, Successor
from sessile.api.responses_record import read_accepted
from sessile.api.responses_sequence import Event
from sessile.api.steering import (
    MOST_PENDING,
    NOT_STEERABLE,
    Code,
    error_of,
    goes_on,
    is_steerable,
    new_steer_id,
    read_steer,
)
from sessile.durable import Durable
from sessile.errors import InvalidRequest, NotSupported
from sessile.sessions.stream_log import Steered, StreamLog

_WHY: dict[Steered, tuple[Code, str]] = {
    "gone": ("response_not_found", "there is no such response"),
    "ended": ("response_already_completed", "the response has ended"),
    "full": ("too_many_pending_steers", "as many steers as may wait are waiting"),
}

_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode


class _Ended(msgspec.Struct):
    successor: Successor | None = None


async def keep_steer(
    turns: Durable, tenant: str, response: str, key: str, items: Sequence[dict[str, Any]]
) -> Steered:
    """Keep what is said into a response, once under its key. Raises `StoreUnavailable`."""
    return await turns.steer(tenant, response, key, msgspec.json.encode(items), MOST_PENDING)


async def steer_by_http(
    turns: Durable, log: StreamLog, tenant: str, response: str, given: Any, key: str | None
) -> dict[str, Any]:
    """Say something into a response that runs, at any router; the event that tells what became of
    it. Raises `StoreUnavailable`."""
    id = new_steer_id()
    steer = {"id": id, "previous_response_id": response}
    if key is not None:
        steer["idempotency_key"] = key

    def failed(code: Code, why: str) -> dict[str, Any]:
        return {
            "type": "response.steer.failed", "sequence_number": 0,
            "steer": {**steer, "input": given}, "error": error_of(code, why),
        }  # fmt: skip

    live = turns.writer.find(tenant, response)
    standing = live or await log.look(tenant, response)
    if standing is None:
        return failed(*_WHY["gone"])
    try:
        items = read_steer({"input": given})
    except (InvalidRequest, NotSupported) as error:
        return failed("invalid_input", error.message)
    accepted = read_accepted(standing.accept.record)
    if not accepted.detached:
        return failed("steering_not_supported", "it ends with its connection: steer it there")
    if not is_steerable(accepted.body):
        return failed("steering_not_supported", NOT_STEERABLE)
    state = await keep_steer(turns, tenant, response, key or id, items)
    if state in _WHY:
        return failed(*_WHY[state])
    return {"type": "response.steer.accepted", "sequence_number": 0, "steer": steer}


def follows(job: Job) -> bool:
    """Whether a response that was made is to be followed by one that takes in what was said."""
    response, live = job.stream.response, job.live
    return (
        live is not None and job.accepted.detached and live.is_steered
        and goes_on(response["status"], response["output"])
    )  # fmt: skip


def said_in(steers: dict[str, bytes]) -> list[dict[str, Any]]:
    """The items of all steers, in order."""
    return [item for said in steers.values() for item in _decode(said)]


def named(last: Event, successor: Successor) -> Event:
    """The last event of a response, which says what follows it."""
    told = msgspec.json.encode(successor)
    return Event(last.type, last.body[:-1] + b',"successor":' + told + b"}")


def successor_in(last: bytes) -> Successor | None:
    """What a last event says of what follows."""
    return msgspec.json.decode(last, type=_Ended).successor if b'"successor":' in last else None


def accepted_before(record: bytes) -> Successor:
    """What a router that is gone had accepted as the successor."""
    accepted = read_accepted(record)
    return Successor(accepted.turn, list(accepted.steers))
