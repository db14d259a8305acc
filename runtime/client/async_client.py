"""`AsyncClient`: a router, for event loops."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from sessile.client import calls
from sessile.client.address import read_address
from sessile.client.async_session import AsyncSession
from sessile.client.http import AsyncHttp
from sessile.client.line import Line
from sessile.client.sockets import AsyncSocket
from sessile.client.tools import read_tools
from sessile.client.turns import Conversation, new_id
from sessile.errors import NoReplica, SessionExpired, SessionNotFound
from sessile.sessions.hints import WhenBusy

MAX_ROUNDS = 32
_LEAVING_S = 2.0


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
        reconnect_s: float = 30.0,
    ) -> None:
        """Speak to the router at `base_url`, else `SESSILE_URL`, else http://localhost:8000.

        `api_key` defaults to `SESSILE_API_KEY`. `timeout_s` is the longest silence inside a turn,
        `reconnect_s` how long a router that was there is looked for when it is gone.

        >>> client = AsyncClient(url, timeout_s=60)
        >>> await client.aclose()
        """
        self._address = read_address(base_url, api_key)
        self._timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._http = AsyncHttp(self._address)
        self._leaving: set[asyncio.Task[None]] = set()
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
        when_busy: WhenBusy | None = None,
    ) -> AsyncSession:
        """A new session; nothing is sent before its first turn.

        As `Client.session`, and `tools` may be async functions. Calls that the model makes side
        by side run side by side; plain functions run in threads.

        >>> session = client.session(system="You are brief.")
        >>> session.id.startswith("ses_")
        True
        """
        conversation = Conversation(
            id or new_id(), model, system, read_tools(tools), max_rounds, when_busy=when_busy
        )
        return AsyncSession(self, conversation)

    async def attach(
        self,
        session_id: str,
        *,
        system: str | None = None,
        tools: Sequence[Callable[..., Any]] = (),
        max_rounds: int = MAX_ROUNDS,
        when_busy: WhenBusy | None = None,
    ) -> AsyncSession:
        """A session that was begun elsewhere, to go on with from its last turn.

        A turn of it that is running, or that has called tools which nobody ran, is its `running`:
        listen to it there, or just send the next turn, which waits for it. `system` None keeps the
        one it was begun with. Tools are functions of a process, so they are given again. Raises
        `SessionNotFound`, or `SessionExpired` if it was closed.

        >>> first = client.session()
        >>> reply = await first.send("My name is Ada.")
        >>> again = await client.attach(first.id)
        >>> (await again.send("What is my name?")).session == first.id
        True
        """
        running = (await self._http.call(calls.find_running(session_id))).turn
        found = await self._find_session(session_id, running)
        if found.state == "closed":
            raise SessionExpired(f"session {session_id} is closed")
        if running is not None:
            info = await self._http.call(calls.describe_response(running))
            system = info.instructions if system is None else system
        elif found.head is not None:
            turn = await self._http.call(calls.show_turn(found.head))
            system = turn.instructions if system is None else system
            running = found.head if tools and turn.calls else None
        conversation = Conversation(
            found.session, found.model, system, read_tools(tools), max_rounds, found.head,
            when_busy=when_busy,
        )  # fmt: skip
        return AsyncSession(self, conversation, running)

    async def aclose(self) -> None:
        """Let go of every connection. The sessions stay open: `attach` goes on with them.

        >>> other = AsyncClient(url)
        >>> reply = await other.session("async-notes").send("Hello.")
        >>> await other.aclose()
        >>> (await client.attach("async-notes")).id
        'async-notes'
        """
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_LEAVING_S)
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
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

    async def _find_session(self, session: str, running: str | None) -> calls.SessionInfo:
        """What the router knows of it; one whose first turn runs is known by that only."""
        try:
            return await self._http.call(calls.show_session(session))
        except SessionNotFound:
            if running is None:
                raise
            info = await self._http.call(calls.describe_response(running))
            return calls.SessionInfo(session=session, model=info.model)

    async def _first_model(self) -> str:
        if not self._models:
            listed = await self._http.call(calls.list_models())
            self._models = [model.id for model in listed.data]
        if not self._models:
            raise NoReplica("the router serves no model yet; `sessile status` shows why")
        return self._models[0]

    def _line(self, of: Conversation) -> Line:
        socket = AsyncSocket(self._address, of.id, of.when_busy, self._timeout_s, self._connected)
        return Line(self._http, socket, of.id, of.when_busy, self._timeout_s, self._reconnect_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let something end by itself; `aclose` waits for it, but not for long."""
        task = asyncio.create_task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task
