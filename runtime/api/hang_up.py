"""A client that hangs up ends the work that was done for it."""

import asyncio
from types import TracebackType

from starlette.types import Receive

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
