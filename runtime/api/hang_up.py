"""A client that hangs up ends the work that was done for it, unless it has declared otherwise."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Literal

from starlette.types import Message, Receive, Send

from sessile.errors import InvalidRequest

OnDisconnect = Literal["abort", "detach"]

_ON_DISCONNECT = b"x-sessile-on-disconnect"
_MOMENT_S = 0.05  # most of what takes less is over before anybody could have hung up on it


class HangUp:
    """Cancels the block's task when the request's client goes, and swallows that cancellation.

    `async with serve_turn(...)` inside it stops the engine. Any other cancellation passes on. The
    line is watched by a task of its own, but only for what takes longer than a moment.
    """

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        self._receive = receive
        self._loop = loop
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> "HangUp":
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task = task
        self._timer = self._loop.call_later(_MOMENT_S, self._watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:  # fmt: skip
        self._timer.cancel()
        watching = self._watching
        if watching is None:
            return False
        gone = watching.done() and not watching.cancelled()
        watching.cancel()
        if gone and isinstance(error, asyncio.CancelledError):
            self._task.uncancel()
            return True
        return False

    def _watch(self) -> None:
        self._watching = self._loop.create_task(self._until_gone())
        self._watching.add_done_callback(self._gone)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _gone(self, watching: "asyncio.Task[None]") -> None:
        if not watching.cancelled():
            self._task.cancel()


def on_disconnect(headers: Iterable[tuple[bytes, bytes]]) -> OnDisconnect:
    """What becomes of a turn whose client goes: it ends, unless the client has declared that it is
    to go on. Raises `InvalidRequest`."""
    found = [value.decode("latin-1") for name, value in headers if name == _ON_DISCONNECT]
    if not found:
        return "abort"
    return read_on_disconnect(found[0] if len(found) == 1 else found, "X-Sessile-On-Disconnect")


def read_on_disconnect(value: object, name: str) -> OnDisconnect:
    """The same as it was declared under that name. Raises `InvalidRequest`."""
    if value == "abort":
        return "abort"
    if value == "detach":
        return "detach"
    raise InvalidRequest(f"{name} must be detach or abort", param=name.lower())


def to_nobody_too(send: Send) -> Send:
    """`send` for an answer that is brought to its end though its client may be gone."""

    async def sent(message: Message) -> None:
        with suppress(OSError):
            await send(message)

    return sent
