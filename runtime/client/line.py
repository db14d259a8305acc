"""How a turn's requests and events travel: over the session's WebSocket, and on from a loss.

Before the response's id is known the same request is sent again, under the same key, so that it
runs once. From then on the response is followed by number over HTTP, at whichever router answers,
until its last event; the next request goes over a WebSocket again. What runs in the background has
been asked for over HTTP, and is followed from its first event.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from typing import Any, NoReturn

import msgspec

from sessile.client import calls
from sessile.client.events import Event
from sessile.client.follow import Follower
from sessile.client.http import AsyncHttp
from sessile.client.retry import Tries
from sessile.client.sockets import AsyncSocket, Lost, session_headers
from sessile.client.turns import Turn
from sessile.errors import CapacityError, RouterUnreachable, SessileError, StreamBroken
from sessile.sessions.hints import WhenBusy

_LEAVING_S = 30.0  # that a turn which nobody wants is waited for, to learn its id


class Line:
    """One session's. `reconnect_s` is how long a router that was lost is looked for."""

    def __init__(
        self, http: AsyncHttp, socket: AsyncSocket, session: str, when_busy: WhenBusy | None,
        timeout_s: float, reconnect_s: float,
    ) -> None:  # fmt: skip
        self._http = http
        self._socket = socket
        self._session = session
        self._when_busy = when_busy
        self._timeout_s = timeout_s
        self._tries = Tries(reconnect_s)
        self._reconnect_s = reconnect_s
        self._follower: Follower | None = None
        self._over_socket = False

    async def begin(self, turn: Turn) -> None:
        """Ask for the turn's next response in the background: from here on it runs by itself."""
        headers = session_headers(self._session, self._when_busy)
        call = calls.begin_response(turn.body(), turn.key, headers)
        while True:
            try:
                made = await self._http.call(call)
            except RouterUnreachable as error:
                await self._pause(error, met=False)
            else:
                break
        self._tries.went_on()
        turn.follow(made.id)

    async def events(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """The caller's events of the turn's next response, to its end.

        Raises what the router tells of, and `RouterUnreachable` once it was looked for long enough.
        """
        turn.receiving = True
        try:
            while turn.receiving:
                try:
                    if turn.response is None and not self._over_socket:
                        if not self._socket.is_open:
                            turn.lost()
                        await self._socket.send(turn.frame(), detach=turn.stored)
                        self._over_socket = True
                    if not self._over_socket:
                        await self.say(turn)
                    source = self._socket if self._over_socket else await self._follow(turn)
                    frame = await source.receive()
                except (Lost, RouterUnreachable, CapacityError) as error:
                    await self._drop()
                    for event in turn.lost():
                        yield event
                    if not turn.receiving:
                        return
                    if not turn.stored:
                        _give_up(error)
                    await self._pause(error, met=turn.response is not None)
                    continue
                before = turn.heard
                events = turn.receive(frame)
                if turn.heard != before:
                    self._tries.went_on()
                for event in events:
                    yield event
                if turn.stale:
                    await self._drop()
                    await self._pause(Lost("the connection is too old"), met=True)
                await self.say(turn)
        finally:
            self._over_socket = False
            if self._follower is not None:
                await self._follower.aclose()
                self._follower = None

    async def say(self, turn: Turn) -> None:
        """Bring what the caller has said meanwhile to the running response, if it can be."""
        if self._over_socket:
            for frame in turn.steer_frames():
                await self._socket.say(frame)
            return
        for steer in turn.unheard():
            assert steer.target is not None
            call = calls.steer_turn(steer.target, steer.text, steer.key)
            try:
                told = await self._http.call(call)
            except (RouterUnreachable, CapacityError):
                raise
            except SessileError:  # it goes with the next request
                told = {"type": "response.steer.failed", "steer": {"idempotency_key": steer.key}}
            turn.receive(msgspec.json.encode(told))

    def leave(self, turn: Turn) -> Coroutine[Any, Any, None]:
        """Nobody wants the turn that is asked for any more: what stops it at the router, to be
        awaited or not. The next turn has a connection of its own."""
        left, self._socket = self._socket, self._socket.another()
        return _stop(self._http, left, turn)

    async def aclose(self) -> None:
        """Let go of the connection; the next turn opens another."""
        await self._socket.drop()

    async def _follow(self, turn: Turn) -> Follower:
        assert turn.response is not None
        if self._follower is not None and self._follower.response != turn.response:
            await self._follower.aclose()
            self._follower = None
        if self._follower is None:
            self._follower = Follower(self._http, turn.response, turn.after, self._timeout_s)
        return self._follower

    async def _drop(self) -> None:
        self._over_socket = False
        if self._follower is not None:
            await self._follower.aclose()
            self._follower = None
        await self._socket.drop()

    async def _pause(self, error: Exception, *, met: bool) -> None:
        """Wait until the next try; raises the error where there was never a router, and one that
        says what can be done where it did not come back."""
        if not (met or self._socket.was_open):
            _give_up(error)
        pause_s = self._tries.next(time.monotonic())
        if pause_s is None:
            raise RouterUnreachable(
                f"no router came back within {self._reconnect_s:g} s ({error}); the turn"
                f" may run on: attach to session {self._session!r} to go on with it"
            ) from error
        await asyncio.sleep(pause_s)


def _give_up(error: Exception) -> NoReturn:
    """A loss that is not made good, as the caller is told of it."""
    if isinstance(error, SessileError):
        raise error
    raise StreamBroken(f"{error}; send the turn again to repeat it") from error


async def _stop(http: AsyncHttp, socket: AsyncSocket, turn: Turn) -> None:
    if turn.stored and turn.response is None:
        with suppress(SessileError, TimeoutError, Lost):
            async with asyncio.timeout(_LEAVING_S):
                while turn.receiving and turn.response is None:
                    turn.receive(await socket.receive())
    await socket.abandon()
    if turn.stored and turn.response is not None:
        with suppress(SessileError):  # it has ended, or its router is gone
            await http.call(calls.cancel_turn(turn.response))
