"""`Client` and `Session`: the SDK for threads. `turns` decides what a turn is."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from sessile.client import calls
from sessile.client.address import read_address
from sessile.client.events import Done, Event, Reply, ToolCall, ToolResult
from sessile.client.http import Http
from sessile.client.sockets import Socket
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

MAX_ROUNDS = 32


class Client:
    """A router, as seen from a program: makes sessions. Threads may share one.

    Connects when it is first needed; `close`, or leaving its `with` block, lets go of every
    connection and leaves the sessions themselves as they are.

    >>> with Client(url) as client:
    ...     reply = client.session().send("Say hello.")
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

        >>> Client("localhost:8000")
        Traceback (most recent call last):
        ...
        sessile.errors.SettingsError: base_url must be http://HOST:PORT or https://HOST, not \
'localhost:8000'
        """
        self._address = read_address(base_url, api_key)
        self._timeout_s = timeout_s
        self._http = Http(self._address)
        self._connected: set[Socket] = set()
        self._models: list[str] = []

    def session(
        self,
        id: str | None = None,
        *,
        model: str | None = None,
        system: str | None = None,
        tools: Sequence[Callable[..., Any]] = (),
        max_rounds: int = MAX_ROUNDS,
    ) -> "Session":
        """A new session; nothing is sent before its first turn.

        `id` is yours to choose, else one is made. `model` None takes the first that the router
        lists. `tools` are functions with type hints and a docstring; they run in this process
        when the model calls them, for at most `max_rounds` rounds a turn.

        >>> session = client.session(system="You are brief.")
        >>> session.id.startswith("ses_")
        True
        """
        conversation = Conversation(id or new_id(), model, system, read_tools(tools), max_rounds)
        return Session(self, conversation)

    def attach(
        self,
        session_id: str,
        *,
        system: str | None = None,
        tools: Sequence[Callable[..., Any]] = (),
        max_rounds: int = MAX_ROUNDS,
    ) -> "Session":
        """A session that was begun elsewhere, to go on with from its last turn.

        `system` None keeps the one it was begun with. Tools are functions of a process, so they
        are given again. Raises `SessionNotFound`, or `SessionExpired` if it was closed.

        >>> first = client.session()
        >>> reply = first.send("My name is Ada.")
        >>> again = client.attach(first.id)
        >>> again.send("What is my name?").session == first.id
        True
        """
        found = self._http.call(calls.show_session(session_id))
        if found.state == "closed":
            raise SessionExpired(f"session {session_id} is closed")
        if system is None and found.head is not None:
            system = self._http.call(calls.show_turn(found.head)).instructions
        conversation = Conversation(
            found.session, found.model, system, read_tools(tools), max_rounds, found.head
        )
        return Session(self, conversation)

    def close(self) -> None:
        """Let go of every connection. The sessions stay open: `attach` goes on with them.

        >>> other = Client(url)
        >>> session_id = other.session("notes").send("Hello.").session
        >>> other.close()
        >>> client.attach("notes").id
        'notes'
        """
        for socket in list(self._connected):
            socket.drop()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _first_model(self) -> str:
        if not self._models:
            self._models = [model.id for model in self._http.call(calls.list_models()).data]
        if not self._models:
            raise NoReplica("the router serves no model yet; `sessile status` shows why")
        return self._models[0]

    def _socket(self, session_id: str) -> Socket:
        return Socket(self._address, session_id, self._timeout_s, self._connected)


class Session:
    """A conversation with a model, one turn at a time; made by `Client.session` or `attach`.

    Each turn sends only what is new: the router keeps the rest, and the replica that ran the last
    turn holds its KV cache. `close`, or leaving its `with` block, ends it on the router.
    """

    def __init__(self, client: Client, conversation: Conversation) -> None:
        self._client = client
        self._conversation = conversation
        self._socket = client._socket(conversation.id)
        self._stream: Generator[Event | Done[Reply], None, None] | None = None
        self._closed = False
        for tool in conversation.tools.values():
            if tool.is_async:
                raise InvalidRequest(f"{tool.name} is async; use AsyncClient", param="tools")

    @property
    def id(self) -> str:
        """The session's id, as `attach` takes it.

        >>> client.session("notes").id
        'notes'
        """
        return self._conversation.id

    def send(self, content: str | Sequence[Mapping[str, Any]], **options: Any) -> Reply:
        """Run one turn to its end, tools included.

        `content` is the user's text, or input items of the Responses API. `options` are further
        fields of its `response.create`, such as `temperature` and `max_output_tokens`.

        >>> reply = session.send("Say hello.", max_output_tokens=20)
        >>> isinstance(reply.text, str), reply.usage.prompt_tokens > 0
        (True, True)
        """
        reply: Reply | None = None
        for event in self.stream(content, **options):
            if isinstance(event, Done):
                reply = event.reply
        if reply is None:  # a stream that nobody else ended gives Done or raises
            raise SessionBusy("another turn of this session ended this one; fork it")
        return reply

    def stream(
        self, content: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> Iterator[Event | Done[Reply]]:
        """Run one turn and give its events as they come; the last is `Done`.

        A stream that is left early stops the turn, and the session stays as it was before.

        >>> for event in session.stream("Say hello."):
        ...     match event:
        ...         case TextDelta(text):
        ...             pass  # print(text, end="", flush=True)
        ...         case Done(reply):
        ...             print(reply.text != "")
        True
        """
        self._begin()
        self._stream = self._run(Turn(self._conversation, content, options))
        return self._stream

    def fork(self, n: int = 1) -> list["Session"]:
        """`n` sessions that go on from here, each its own way; this one goes on too.

        >>> reply = session.send("Think of a number.")
        >>> [child.send("Add one to it.").usage.prompt_tokens > 0 for child in session.fork(2)]
        [True, True]
        """
        if n < 1:
            raise InvalidRequest(f"a fork makes at least one session, not {n}", param="n")
        if self._conversation.head is None:
            ids = [new_id() for _ in range(n)]
        else:
            made = self._client._http.call(calls.fork_session(self.id, n))
            ids = [child.session for child in made.sessions]
        return [Session(self._client, self._conversation.forked(id)) for id in ids]

    def waiting_on_tool(self, seconds: float) -> bool:
        """Ask that the session's KV memory be held for so long, since a tool runs; 0 lets go of
        it. False: nothing is held that could be.

        >>> reply = session.send("Look it up, I will wait.")
        >>> session.waiting_on_tool(seconds=30)
        True
        """
        if self._conversation.head is None:
            return False
        return self._client._http.call(calls.lease_session(self.id, seconds)).held

    def close(self) -> None:
        """End the session on the router; a later turn raises `SessionExpired`. Twice is fine.

        >>> session = client.session()
        >>> reply = session.send("Goodbye.")
        >>> session.close()
        >>> session.send("Still there?")
        Traceback (most recent call last):
        ...
        sessile.errors.SessionExpired: the session is closed
        """
        if self._closed:
            return
        self._begin()
        self._closed = True
        self._socket.drop()
        if self._conversation.head is not None:
            with suppress(SessionNotFound):  # it expired: ended all the same
                self._client._http.call(calls.close_session(self.id))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(*(() if exc is None else (SessileError,))):  # the first error is the news
            self.close()

    def _begin(self) -> None:
        """Nothing else of this session is running from here on; a stream left half read ends."""
        if self._closed:
            raise SessionExpired("the session is closed")
        if self._stream is not None:
            try:
                self._stream.close()
            except ValueError as error:
                raise SessionBusy("a turn of this session is running; fork it") from error
            self._stream = None

    def _run(self, turn: Turn) -> Generator[Event | Done[Reply], None, None]:
        try:
            if self._conversation.model is None:
                self._conversation.model = self._client._first_model()
            while turn.outcome is None:
                self._socket.send(turn.frame())
                while turn.receiving:
                    yield from turn.receive(self._socket.receive())
                if turn.outcome is None:
                    yield from turn.answer([self._call(call) for call in turn.calls])
        finally:
            if not turn.finished:
                self._socket.abandon()
        yield Done(Reply(**vars(turn.outcome), _fetch=self._receipt))

    def _call(self, call: ToolCall) -> ToolResult:
        tool = self._conversation.tools.get(call.name)
        if tool is None:
            return unknown(call, self._conversation.tools)
        try:
            return succeeded(call, tool.function(**tool.bind(call.arguments)))
        except Exception as error:  # whatever a tool raises is the model's to read
            return failed(call, error)

    def _receipt(self, turn: str) -> Receipt:
        return self._client._http.call(calls.show_receipt(turn))
