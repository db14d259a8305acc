"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """Runs coroutines for threads, which wait for them. Its thread starts with the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, or raises; a caller that is interrupted cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result()
        except BaseException:  # Ctrl-C too: the work must not go on alone
            future.cancel()
            raise

    def iterate(self, events: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """What `events` gives, one by one; left early, it is closed."""
        try:
            while (event := self.call(_next(events))) is not None:
                yield event
        finally:
            if threading.current_thread() is self._thread:  # it was forgotten, and is swept up here
                self._started().create_task(_close(events))
            elif self._loop is not None:
                self.call(_close(events))

    def close(self) -> None:
        """Stop the loop; nothing can be called any more."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                if self._thread is not None:
                    raise RuntimeError("the client is closed")
                self._loop = loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(loop,), name="sessile", daemon=True
                )
                self._thread.start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


async def _next(events: AsyncGenerator[T, None]) -> T | None:
    return await anext(events, None)


async def _close(events: AsyncGenerator[Any, None]) -> None:
    await events.aclose()
