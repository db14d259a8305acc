"""`AsyncSession`: a conversation, for event loops. `turns` decides what a turn is."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sessile.client import calls
from sessile.client.async_run import AsyncReply, AsyncRun, drive, reply_of
from sessile.client.events import Done, Event
from sessile.client.turns import Conversation, Turn, new_id
from sessile.errors import (
    CapacityError,
    InvalidRequest,
    RouterUnreachable,
    SessileError,
    SessionBusy,
    SessionExpired,
    SessionNotFound,
)
from sessile.router.engine import Usage

if TYPE_CHECKING:
    from sessile.client.async_client import AsyncClient

Content = str | Sequence[Mapping[str, Any]]


class AsyncSession:
    """A conversation with a model, one turn at a time; made by `AsyncClient.session` or `attach`.

    Each turn sends only what is new: the router keeps the rest, and the replica that ran the last
    turn holds its KV cache. A turn outlives its connection: it is taken up again, at whichever
    router answers. `close`, or leaving its `async with` block, ends the session on the router.
    """

    def __init__(
        self, client: "AsyncClient", conversation: Conversation, running: str | None = None
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._line = client._line(conversation)
        self._stream: AsyncGenerator[Event, None] | None = None
        self._turn: Turn | None = None
        self._run: AsyncRun | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._closed = False
        if running is not None:
            turn = Turn(conversation, (), {})
            turn.follow(running)
            self._run = AsyncRun(client._http, self._line, turn, conversation.tools)

    @property
    def id(self) -> str:
        """The session's id, as `attach` takes it.

        >>> client.session("async-notes").id
        'async-notes'
        """
        return self._conversation.id

    @property
    def running(self) -> AsyncRun | None:
        """The turn that runs by itself, None if there is none: one in the background, or one that
        was running when the session was attached. The next turn waits for it.

        >>> run = await session.background("Say hello.")
        >>> session.running is run
        True
        >>> reply = await run.wait()
        >>> session.running is None
        True
        """
        return None if self._run is None or self._run.finished else self._run

    async def send(self, content: Content, **options: Any) -> AsyncReply:
        """Run one turn to its end, tools included.

        `content` is the user's text, or input items of the Responses API. `options` are further
        fields of its `response.create`, such as `temperature` and `max_output_tokens`.

        >>> reply = await session.send("Say hello.", max_output_tokens=20)
        >>> isinstance(reply.text, str), reply.usage.prompt_tokens > 0
        (True, True)
        """
        reply: AsyncReply | None = None
        async for event in self.stream(content, **options):
            if isinstance(event, Done):
                reply = event.reply
        if reply is None:  # a stream that nobody else ended gives Done or raises
            raise SessionBusy("another turn of this session ended this one; fork it")
        return reply

    async def stream(
        self, content: Content, **options: Any
    ) -> AsyncGenerator[Event | Done[AsyncReply], None]:
        """Run one turn and give its events as they come; the last is `Done`.

        A stream that is left early is stopped by the session's next turn, or by `close`; the
        session stays as it was before.

        >>> async for event in session.stream("Say hello."):
        ...     match event:
        ...         case TextDelta(text):
        ...             pass  # print(text, end="", flush=True)
        ...         case Done(reply):
        ...             print(reply.text != "")
        True
        """
        turn, events = await self._open(content, options)
        async for event in events:
            yield event
        if turn.finished:
            yield Done(reply_of(turn, self._client._http))

    async def steer(self, text: str) -> None:
        """Say something into the running turn: the model stops where that is safe, and goes on
        with it in mind. Between its answers, as while tools run, it goes with the next one. It is
        said once, at the latest when the answer that runs has ended.

        Raises `InvalidRequest` where no turn is running.

        >>> async for event in session.stream("Tell me a long story."):
        ...     if isinstance(event, TextDelta):
        ...         await session.steer("Shorter, please.")
        ...         break
        """
        if not text:
            raise InvalidRequest("a steer must say something", param="text")
        if self._turn is None or self._turn.finished or self._stream is None:
            raise InvalidRequest("no turn of this session is running: send it", param="text")
        self._turn.steer(text)
        with suppress(RouterUnreachable, CapacityError):  # it is brought when the turn is taken up
            await self._line.say(self._turn)

    async def prewarm(self, content: Content, **options: Any) -> Usage:
        """Say something without asking for an answer, so that the replica has read it when the
        next turn comes; what of it was cached already is in the usage.

        >>> usage = await session.prewarm("A long document.")
        >>> reply = await session.send("Sum it up.")
        >>> reply.usage.prompt_tokens > usage.prompt_tokens
        True
        """
        return (await self.send(content, **{**options, "generate": False})).usage

    async def background(self, content: Content, **options: Any) -> AsyncRun:
        """Begin a turn that runs at the router by itself, whether or not this process goes on.

        It is accepted when this returns. Tools of this process run while it is listened to.

        >>> run = await session.background("Say hello.")
        >>> reply = await run.wait()
        >>> (await session.send("And again.")).usage.prompt_tokens > reply.usage.prompt_tokens
        True
        """
        await self._begin()
        await self._find_model()
        turn = Turn(self._conversation, content, options)
        await self._line.begin(turn)
        tools = self._conversation.tools
        self._run = AsyncRun(self._client._http, self._line, turn, tools, background=True)
        return self._run

    async def fork(self, n: int = 1) -> list["AsyncSession"]:
        """`n` sessions that go on from here, each its own way; this one goes on too.

        >>> reply = await session.send("Think of a number.")
        >>> children = await session.fork(2)
        >>> replies = await asyncio.gather(*(child.send("Add one.") for child in children))
        >>> [reply.usage.prompt_tokens > 0 for reply in replies]
        [True, True]
        """
        if n < 1:
            raise InvalidRequest(f"a fork makes at least one session, not {n}", param="n")
        if self._conversation.head is None:
            ids = [new_id() for _ in range(n)]
        else:
            made = await self._client._http.call(calls.fork_session(self.id, n))
            ids = [child.session for child in made.sessions]
        return [AsyncSession(self._client, self._conversation.forked(id)) for id in ids]

    async def waiting_on_tool(self, seconds: float) -> bool:
        """Ask that the session's KV memory be held for so long, since a tool runs; 0 lets go of
        it. False: nothing is held that could be.

        >>> reply = await session.send("Look it up, I will wait.")
        >>> await session.waiting_on_tool(seconds=30)
        True
        """
        if self._conversation.head is None:
            return False
        return (await self._client._http.call(calls.lease_session(self.id, seconds))).held

    async def close(self) -> None:
        """End the session on the router; a later turn raises `SessionExpired`. Twice is fine.

        >>> session = client.session()
        >>> reply = await session.send("Goodbye.")
        >>> await session.close()
        >>> await session.send("Still there?")
        Traceback (most recent call last):
        ...
        sessile.errors.SessionExpired: the session is closed
        """
        if self._closed:
            return
        run, self._run = self.running, None
        if run is not None:
            with suppress(SessileError):  # it has ended meanwhile
                await run.cancel()
        await self._begin()
        self._closed = True
        await self._line.aclose()
        if self._conversation.head is not None:
            with suppress(SessionNotFound):  # it expired: ended all the same
                await self._client._http.call(calls.close_session(self.id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(*(() if exc is None else (SessileError,))):  # the first error is the news
            await self.close()

    async def _open(
        self, content: Content, options: Mapping[str, Any]
    ) -> tuple[Turn, AsyncGenerator[Event, None]]:
        """A new turn, and its events; to close these is to stop the turn."""
        await self._begin()
        self._turn = Turn(self._conversation, content, options)
        self._stream = self._run_turn(self._turn)
        return self._turn, self._stream

    async def _begin(self) -> None:
        """Nothing else of this session is running from here on: a stream left half read ends, a
        turn that runs by itself is waited for."""
        if self._closed:
            raise SessionExpired("the session is closed")
        if self._stream is not None:
            try:
                await self._stream.aclose()
            except RuntimeError as error:
                raise SessionBusy("a turn of this session is running; fork it") from error
            self._stream = self._turn = None
        if self._stopping is not None:
            await self._stopping
            self._stopping = None
        if (run := self.running) is not None:
            self._run = None
            await run.wait()

    async def _find_model(self) -> None:
        if self._conversation.model is None:
            self._conversation.model = await self._client._first_model()

    async def _run_turn(self, turn: Turn) -> AsyncGenerator[Event, None]:
        try:
            await self._find_model()
            async with aclosing(drive(self._line, turn, self._conversation.tools)) as events:
                async for event in events:
                    yield event
        except RouterUnreachable:
            turn.receiving = False  # it may run on, and be attached to: nobody stops it
            raise
        finally:
            if not turn.finished and turn.receiving:
                stopping = self._client._spawn(self._line.leave(turn))
                self._stopping = stopping if turn.response is not None else None
