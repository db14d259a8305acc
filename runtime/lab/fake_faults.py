"""What goes wrong at a fake replica, and how an answer is streamed while it does."""

import asyncio
from typing import Any

import msgspec
from starlette.types import Scope, Send

from sessile.api.messages_events import MessageStream
from sessile.api.responses_sequence import Event
from sessile.errors import ReplicaRefused
from sessile.lab.asgi import EVENTS, event, finish, start, write

_GARBAGE = b"data: {not json\n\n: nothing\n\nevent\n\n"
_DEAD = {"error": {"message": "the engine core died", "code": 500}}


class Fault(msgspec.Struct, kw_only=True, frozen=True):
    """What goes wrong with one request. Events are counted from the first of the stream.

    `status` is answered instead of a reply (400 as an engine's refusal of a prompt that does not
    fit). `hang` answers nothing until the client hangs up. `drop_after` cuts the TCP connection
    after so many events, 0 before the first byte. `garbage_after` sends bytes there that are no
    event stream, and goes on. `error_after` ends the stream there with the error of an engine whose
    core has died. `pause_s` is waited before each event, or before a whole answer, `linger_s`
    behind the last event, before the stream ends. With `at_rank`, only there.
    """

    status: int | None = None
    hang: bool = False
    drop_after: int | None = None
    garbage_after: int | None = None
    error_after: int | None = None
    pause_s: float = 0.0
    linger_s: float = 0.0
    at_rank: int | None = None


class Seen(msgspec.Struct):
    """One request as it arrived, and what became of it: running, done, aborted or dropped."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    outcome: str = "running"
    rank: int = 0


def drop(scope: Scope, seen: Seen) -> None:
    """Cut the connection of a request, without a farewell."""
    seen.outcome = "dropped"
    scope["extensions"]["sessile.abort"]["abort"]()


async def stream(
    scope: Scope, send: Send, seen: Seen, fault: Fault, chunks: list[dict[str, Any]],
    own: MessageStream | None,
) -> None:  # fmt: skip
    """Send the chunks, as the events of Anthropic's if there is an `own` stream, until the end or
    what goes wrong."""
    begun = own.start() if own is not None else []
    end = b"data: [DONE]\n\n" if own is None else b""
    await start(send, 200, EVENTS)
    for number, chunk in enumerate(chunks):
        await asyncio.sleep(fault.pause_s)
        if number == fault.drop_after:
            drop(scope, seen)
            return
        broken = number == fault.error_after
        data = event(_DEAD if broken else chunk)
        if own is not None:
            try:
                own.feed(data, begun)
            except ReplicaRefused as error:
                begun += own.fail(error)
                broken = True
            data, begun = _told(begun), []
        if number == fault.garbage_after:
            data = _GARBAGE + data
        await write(send, data)
        if broken:
            break
    else:
        end = _told(own.finish()) if own is not None else end
    await write(send, end)
    if fault.linger_s:
        await asyncio.sleep(fault.linger_s)
    await finish(send)


def _told(events: list[Event]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event.type.encode(), event.body) for event in events
    )
