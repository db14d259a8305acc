"""The Responses API as a WebSocket, as `client.responses.connect()` of OpenAI's SDK speaks it.

Decided here: what is done with a frame, and when a connection ends. Who may connect is decided in
`ws_handshake`, what a frame must be in `ws_frames`; what runs side by side is `lanes`', what
becomes of steers `steering`'s, how a response is made `responses.Responses`'. A connection that is
idle holds no task but the server's own, which waits for its next frame.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import Message, Receive, Send

from sessile.api.lanes import Branch, Branches, Job, Lane, Lanes
from sessile.api.responses_job import Followed
from sessile.api.responses_sequence import Event
from sessile.api.responses_steered import keep_steer
from sessile.api.steering import Steer, Steering, generates, joined, successor
from sessile.api.ws_frames import (
    error_frame,
    in_lane,
    read_frame,
    read_lane,
    take_key,
    take_on_disconnect,
    take_once,
)
from sessile.api.ws_outbox import Line, Outbox, SlowReader
from sessile.errors import (
    ConnectionTooOld,
    InvalidRequest,
    SessileError,
    StoreUnavailable,
)
from sessile.settings import WebSocketSettings

if TYPE_CHECKING:
    from sessile.api.responses import Responses
    from sessile.api.responses_job import Answer, Put

log = logging.getLogger("sessile.api")

_MOST_REMEMBERED = 1_000
_GOING_AWAY = 1001  # on which clients reconnect, as they do on the next
_SLOW_READER = 1013


class Connection:
    """One open WebSocket. The server's task reads its frames for as long as it is open; each lane
    that works has a task of its own."""

    __slots__ = (
        "_aging", "_branches", "_headers", "_lanes", "_old", "_reading", "_receive", "_remembered",
        "_responses", "_settings", "_steering", "_tasks", "_tenant", "outbox",
    )  # fmt: skip

    def __init__(
        self,
        responses: "Responses",
        tenant: str,
        headers: Sequence[tuple[bytes, bytes]],
        receive: Receive,
        send: Send,
        settings: WebSocketSettings,
        line: Line | None = None,
    ) -> None:
        self._responses = responses
        self._tenant = tenant
        self._headers = headers
        self._receive = receive
        self.outbox = Outbox(send, settings.send_timeout_s, line)
        self._settings = settings
        self._lanes = Lanes(settings.max_lanes, settings.max_message_bytes)
        self._branches = Branches()
        self._steering = Steering(settings.max_message_bytes)
        self._remembered: deque[str] = deque(maxlen=_MOST_REMEMBERED)
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[Any] | None = None
        self._old = False
        self._aging: asyncio.TimerHandle | None = None

    async def serve(self) -> None:
        """Read frames until the client is gone, which stops the turns that are running for it."""
        self._reading = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self._aging = loop.call_later(self._settings.max_age_s, self._age)
        try:
            while (message := await self._receive())["type"] != "websocket.disconnect":
                await self._take(message)
        except SlowReader:
            await self._close_slow()
        except OSError:
            log.debug("client went while it was told of an error")
        except asyncio.CancelledError:
            if not self.outbox.closed:
                raise
            assert self._reading is not None
            self._reading.uncancel()
        finally:
            self.outbox.closed = True
            self._aging.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for response in self._remembered:
                self._responses.forget(self._tenant, response)

    # -- frames

    async def _take(self, message: Message) -> None:
        """Do what a frame asks for, or queue it, or say what is wrong with it."""
        lane: Lane = None
        try:
            text = message.get("text")
            if text is None:
                raise InvalidRequest("frames must be text, each one JSON object")
            frame = read_frame(text)
            if frame.get("type") == "response.steer":
                await self._steer(frame, len(text))
                return
            lane = read_lane(frame)
            if self._old:
                raise self._too_old()
            detaches = take_on_disconnect(frame, self._headers) == "detach"
            job = Job(frame, len(text), once=take_once(frame), detaches=detaches)
            if self._lanes.put(lane, job):
                self._start(self._work(lane, job))
        except SessileError as error:
            await self._refuse(error, lane)

    async def _steer(self, frame: dict[str, Any], size: int) -> None:
        """Take a steer, and say so; one for a response that outlives the connection is kept
        first."""
        event, steer = self._steering.steer(frame, size, take_key(frame))
        if steer is not None and self._steering.detached(steer.response):
            turns, key = self._responses.turns, steer.kept_as
            with suppress(StoreUnavailable):  # it is then the connection's own
                await keep_steer(turns, self._tenant, steer.response, key, steer.items)
        await self._tell(event)

    # -- turns

    async def _work(self, lane: Lane, first: Job) -> None:
        """Make the responses that wait in one lane, first come, first served."""
        job: Job | None = first
        try:
            while job is not None:
                job = await self._respond(lane, job) or self._lanes.next(lane)
        except SlowReader:
            await self._close_slow()
        except OSError:
            # The client is gone: `serve` is being told so, and ends.
            log.debug("client went while it was told of a response")
        else:
            if self._old and not self._lanes:
                await self._close_old()

    async def _respond(self, lane: Lane, job: Job) -> Job | None:
        """Make one response; the one that follows it by itself, if it was steered."""
        parent = job.frame.get("previous_response_id")
        parent = parent if isinstance(parent, str) else None
        claimed = [] if job.steers else self._steering.claim(parent)
        frame = job.frame
        if claimed:
            frame = {**frame, "input": joined(frame.get("input"), claimed)}
        branch = self._branches.begin(parent, locks=generates(frame))
        hearing = _Hearing(self, branch, lane, frame, job.detaches)
        failure: SessileError | None = None
        try:
            if job.made is not None:
                made = await self._responses.attend(self._tenant, job.made, hearing)
            else:
                made = await self._responses.make(
                    self._tenant, self._headers, frame, hearing, once=job.once, stream_id=lane,
                    stop=hearing.stops, forks=branch.forks, remember=True, detach=job.detaches,
                )  # fmt: skip
        except SessileError as error:
            failure = error
        except OSError:
            raise
        except Exception:  # a fault of ours in one turn: the connection and those behind it live on
            log.exception("response failed tenant=%s", self._tenant)
            failure = SessileError("the router failed; its log says why")
        finally:
            self._branches.end(branch)
        if failure is not None:
            await self._fail(lane, job, claimed, hearing, failure)
            return None
        response = made.response
        if not response["store"]:
            self._remembered.append(response["id"])
        follower = made.successor
        taken = None if follower is None else follower.steers
        ending = self._steering.ended(response["id"], response["status"], response["output"], taken)
        events = ending.events
        if ending.successor and self._old:
            why = self._too_old().message
            fails = self._steering.fails
            events = [fails(s, "successor_creation_failed", why) for s in ending.successor]
        for event in events:
            await self._tell(event)
        if follower is not None:
            next_frame = successor(frame, response["id"], ())
            return Job(next_frame, detaches=job.detaches, made=follower.id)
        if not ending.successor or self._old:
            return None
        items = [item for steer in ending.successor for item in steer.items]
        next_frame = successor(frame, response["id"], items)
        return Job(next_frame, detaches=job.detaches, steers=ending.successor)

    async def _fail(
        self, lane: Lane, job: Job, claimed: Sequence[Steer], hearing: "_Hearing",
        failure: SessileError,
    ) -> None:  # fmt: skip
        """No response came of a job: its steers wait on, or are given back with the reason."""
        steering = self._steering
        if hearing.response is not None:  # it failed after it had been told of
            events = steering.ended(hearing.response, "failed", []).events
        else:
            steering.give_back(claimed)
            why = f"what was to follow could not be made: {failure.message}"
            events = [steering.fails(s, "successor_creation_failed", why) for s in job.steers]
        if not job.steers or hearing.response is not None:
            await self._refuse(failure, lane)
        for event in events:
            await self._tell(event)

    def opened(
        self, branch: Branch, lane: Lane, frame: dict[str, Any], detached: bool, response: str,
        session: str,
    ) -> None:  # fmt: skip
        """A response has begun; from now on it can be steered, and followed."""
        self._branches.opened(branch, response, session)
        self._steering.began(response, lane, frame, detached)

    def stops(self, response: str) -> bool:
        """Whether a response has been steered."""
        return self._steering.wants(response)

    # -- the end

    def _age(self) -> None:
        """The connection is as old as it may be: what runs may end, nothing is begun any more."""
        self._old = True
        self._start(self._close_old())

    async def _close_old(self) -> None:
        """Tell what waits that it will not be done, and close once nothing runs."""
        try:
            for lane, _ in self._lanes.drop():
                await self._refuse(self._too_old(), lane)
        except SlowReader:
            await self._close_slow()
        except OSError:
            log.debug("client went while its connection grew too old")
        if not self._lanes:
            await self._close(_GOING_AWAY, "it is as old as it may be", self._too_old())

    async def _close_slow(self) -> None:
        """Tell a client that does not read to come back later, if it reads that at least."""
        log.warning("client read too slowly timeout_s=%g", self._settings.send_timeout_s)
        await self._close(_SLOW_READER, "events were not read in time")

    async def _close(self, code: int, reason: str, why: SessileError | None = None) -> None:
        if self.outbox.closed:
            return
        await self.outbox.close(code, reason, why)
        assert self._reading is not None
        if self._reading is not asyncio.current_task():
            self._reading.cancel()

    def _too_old(self) -> ConnectionTooOld:
        return ConnectionTooOld(
            f"the connection is older than {self._settings.max_age_s:g} s and begins no more "
            "responses; open a new one, and go on there by previous_response_id"
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- sending

    async def _refuse(self, error: SessileError, lane: Lane) -> None:
        await self.outbox.send_all([error_frame(error, lane)])

    async def _tell(self, event: dict[str, Any]) -> None:
        await self.outbox.send_all([msgspec.json.encode(event)])


class _Hearing:
    """Tells the client of one response of its connection: the audience of `Responses.make`."""

    __slots__ = ("_branch", "_connection", "_detached", "_follows", "_frame", "_lane", "response")

    def __init__(
        self, connection: Connection, branch: Branch, lane: Lane, frame: dict[str, Any],
        detached: bool,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._branch = branch
        self._lane = lane
        self._frame = frame
        self._detached = detached
        self._follows = False  # another request's response, whose lane may be another
        self.response: str | None = None

    def stops(self) -> bool:
        """Whether the response is to end here, since it has been steered."""
        return self.response is not None and self._connection.stops(self.response)

    async def open(self, turn: "Answer") -> None:
        """The answer has begun; its headers tell whose it is."""
        self._follows = isinstance(turn, Followed)
        told = dict(turn.headers())
        self.response = told[b"x-sessile-turn"].decode()
        session = told.get(b"x-sessile-session", b"").decode() or self._branch.session
        session = session or self.response
        self._connection.opened(
            self._branch, self._lane, self._frame, self._detached, self.response, session
        )

    def prompt(self) -> "Put | None":
        """Events need not be waited for while the client reads as fast as it is told."""
        return self._put if self._connection.outbox.ready else None

    def _put(self, events: list[Event]) -> None:
        self._connection.outbox.put([event.body for event in events])

    async def tell(self, events: list[Event]) -> None:
        """Send the events; waits while the client does not read, and the engine waits too."""
        bodies = [event.body for event in events]
        if self._follows:
            bodies = [in_lane(body, self._lane) for body in bodies]
        await self._connection.outbox.send_all(bodies)
