"""`AsyncClient` and `AsyncSession`: the SDK for event loops. `turns` decides what a turn is."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from sessile.client import calls
from sessile.client.address import read_address
from sessile.client.events import Done, Event, Outcome, ToolCall, ToolResult
from sessile.client.http import AsyncHttp
from sessile.client.sockets import AsyncSocket
from sessile.client.sync_client import MAX_ROUNDS
from sessile.client.tools import failed, read_tools, succeeded, unknown
from sessile.client.turns import Conversation, Turn, new_id
from sessile.errors import (
    InvalidRequest,
    NoReplica,
    SessileError,
    SessionBusy,
    SessionExpired,
    SessionNotFound,
)
from sessile.sessions.record import Receipt


@dataclass(frozen=True)
class AsyncReply(Outcome):
    """What `AsyncSession.send` returns."""

    _http: AsyncHttp | None = field(default=None, repr=False, compare=False)

    async def receipt(self) -> Receipt:
        """Where the turn ran and why, and what it cost, asked of the router.

        Raises `TurnNotFound` once the router has forgotten the turn.

        >>> reply = await session.send("Say hello.")
        >>> (await reply.receipt()).replica is not None
        True
        """
        assert self._http is not None
        return await self._http.call(calls.show_receipt(self.id))


class AsyncClient:
    """A router, as seen from a program with an event loop: makes sessions.

    Connects when it is first needed; `aclose`, or leaving its `async with` block, lets go of
    every connection and leaves the sessions themselves as they are.

    >>> async with AsyncClient(url) as client:
    ...     reply = await client.session().send("Say hello.")
    >>> reply.usage.completion_tokens > 0
    True
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
    ) -> None:
        """Speak to the router at `base_url`, else `SESSILE_URL`, else http://localhost:8000.

        `api_key` defaults to `SESSILE_API_KEY`. `timeout_s` is the longest silence inside a turn.

        >>> client = AsyncClient(url, timeout_s=60)
        >>> await client.aclose()
        """
        self._address = read_address(base_url, api_key)
        self._timeout_s = timeout_s
        self._http = AsyncHttp(self._address)
        self._connected: set[AsyncSocket] = set()
        self._models: list[str] = []

    def session(
        self,
        id: str | None = None,
        *,
        model: str | None = None,
        system: str | None = None,
        tools: Sequence[Callable[..., Any]] = (),
        max_rounds: int = MAX_ROUNDS,
    ) -> "AsyncSession":
        """A new session; nothing is sent before its first turn.

        As `Client.session`, and `tools` may be async functions. Calls that the model makes side
        by side run side by side; plain functions run in threads.

        >>> session = client.session(system="You are brief.")
        >>> session.id.startswith("ses_")
        True
        """
        conversation = Conversation(id or new_id(), model, system, read_tools(tools), max_rounds)
        return AsyncSession(self, conversation)

    async def attach(
        self,
        session_id: str,
        *,
        system: str | None = None,
        tools: Sequence[Callable[..., Any]] = (),
        max_rounds: int = MAX_ROUNDS,
    ) -> "AsyncSession":
        """A session that was begun elsewhere, to go on with from its last turn.

        `system` None keeps the one it was begun with. Tools are functions of a process, so they
        are given again. Raises `SessionNotFound`, or `SessionExpired` if it was closed.

        >>> first = client.session()
        >>> reply = await first.send("My name is Ada.")
        >>> again = await client.attach(first.id)
        >>> (await again.send("What is my name?")).session == first.id
        True
        """
        found = await self._http.call(calls.show_session(session_id))
        if found.state == "closed":
            raise SessionExpired(f"session {session_id} is closed")
        if system is None and found.head is not None:
            system = (await self._http.call(calls.show_turn(found.head))).instructions
        conversation = Conversation(
            found.session, found.model, system, read_tools(tools), max_rounds, found.head
        )
        return AsyncSession(self, conversation)

    async def aclose(self) -> None:
        """Let go of every connection. The sessions stay open: `attach` goes on with them.

        >>> other = AsyncClient(url)
        >>> reply = await other.session("async-notes").send("Hello.")
        >>> await other.aclose()
        >>> (await client.attach("async-notes")).id
        'async-notes'
        """
        for socket in list(self._connected):
            await socket.drop()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _first_model(self) -> str:
        if not self._models:
            listed = await self._http.call(calls.list_models())
            self._models = [model.id for model in listed.data]
        if not self._models:
            raise NoReplica("the router serves no model yet; `sessile status` shows why")
        return self._models[0]

    def _socket(self, session_id: str) -> AsyncSocket:
        return AsyncSocket(self._address, session_id, self._timeout_s, self._connected)


class AsyncSession:
    """A conversation with a model, one turn at a time; made by `AsyncClient.session` or `attach`.

    Each turn sends only what is new: the router keeps the rest, and the replica that ran the last
    turn holds its KV cache. `close`, or leaving its `async with` block, ends it on the router.
    """

    def __init__(self, client: AsyncClient, conversation: Conversation) -> None:
        self._client = client
        self._conversation = conversation
        self._socket = client._socket(conversation.id)
        self._stream: AsyncGenerator[Event | Done[AsyncReply], None] | None = None
        self._closed = False

    @property
    def id(self) -> str:
        """The session's id, as `attach` takes it.

        >>> client.session("async-notes").id
        'async-notes'
        """
        return self._conversation.id

    async def send(self, content: str | Sequence[Mapping[str, Any]], **options: Any) -> AsyncReply:
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
        self, content: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> AsyncIterator[Event | Done[AsyncReply]]:
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
        await self._begin()
        self._stream = stream = self._run(Turn(self._conversation, content, options))
        async for event in stream:
            yield event

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
        await self._begin()
        self._closed = True
        await self._socket.drop()
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

    async def _begin(self) -> None:
        """Nothing else of this session is running from here on; a stream left half read ends."""
        if self._closed:
            raise SessionExpired("the session is closed")
        if self._stream is not None:
            try:
                await self._stream.aclose()
            except RuntimeError as error:
                raise SessionBusy("a turn of this session is running; fork it") from error
            self._stream = None

    async def _run(self, turn: Turn) -> AsyncGenerator[Event | Done[AsyncReply], None]:
        try:
            if self._conversation.model is None:
                self._conversation.model = await self._client._first_model()
            while turn.outcome is None:
                await self._socket.send(turn.frame())
                while turn.receiving:
                    for event in turn.receive(await self._socket.receive()):
                        yield event
                if turn.outcome is None:
                    results = await asyncio.gather(*(self._call(call) for call in turn.calls))
                    for event in turn.answer(results):
                        yield event
        finally:
            if not turn.finished:
                await self._socket.abandon()
        yield Done(AsyncReply(**vars(turn.outcome), _http=self._client._http))

    async def _call(self, call: ToolCall) -> ToolResult:
        tool = self._conversation.tools.get(call.name)
        if tool is None:
            return unknown(call, self._conversation.tools)
        try:
            arguments = tool.bind(call.arguments)
            if tool.is_async:
                return succeeded(call, await tool.function(**arguments))
            return succeeded(call, await asyncio.to_thread(tool.function, **arguments))
        except Exception as error:  # whatever a tool raises is the model's to read
            return failed(call, error)
