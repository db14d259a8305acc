"""`Session`: a conversation, for threads."""

from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from sessile.client.async_run import reply_of
from sessile.client.async_session import AsyncSession, Content
from sessile.client.events import Done, Event, Reply
from sessile.client.portal import Portal
from sessile.client.sync_run import Run, as_reply
from sessile.errors import InvalidRequest, SessileError
from sessile.router.engine import Usage


class Session:
    """A conversation with a model, one turn at a time; made by `Client.session` or `attach`.

    Each turn sends only what is new: the router keeps the rest, and the replica that ran the last
    turn holds its KV cache. A turn outlives its connection: it is taken up again, at whichever
    router answers. `close`, or leaving its `with` block, ends the session on the router.
    """

    def __init__(self, portal: Portal, session: AsyncSession) -> None:
        self._portal = portal
        self._session = session
        for tool in session._conversation.tools.values():
            if tool.is_async:
                raise InvalidRequest(f"{tool.name} is async; use AsyncClient", param="tools")

    @property
    def id(self) -> str:
        """The session's id, as `attach` takes it.

        >>> client.session("notes").id
        'notes'
        """
        return self._session.id

    def send(self, content: Content, **options: Any) -> Reply:
        """Run one turn to its end, tools included.

        `content` is the user's text, or input items of the Responses API. `options` are further
        fields of its `response.create`, such as `temperature` and `max_output_tokens`.

        >>> reply = session.send("Say hello.", max_output_tokens=20)
        >>> isinstance(reply.text, str), reply.usage.prompt_tokens > 0
        (True, True)
        """
        return as_reply(self._portal, self._portal.call(self._session.send(content, **options)))

    def stream(self, content: Content, **options: Any) -> Iterator[Event | Done[Reply]]:
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
        turn, events = self._portal.call(self._session._open(content, options))
        yield from self._portal.iterate(events)
        if turn.finished:
            yield Done(as_reply(self._portal, reply_of(turn, self._session._client._http)))

    def steer(self, text: str) -> None:
        """Say something into the running turn, from within its stream or from another thread: the
        model stops where that is safe, and goes on with it in mind. Between its answers, as while
        tools run, it goes with the next one. It is said once, at the latest when the answer that
        runs has ended.

        Raises `InvalidRequest` where no turn is running.

        >>> for event in session.stream("Tell me a long story."):
        ...     if isinstance(event, TextDelta):
        ...         session.steer("Shorter, please.")
        ...         break
        """
        self._portal.call(self._session.steer(text))

    def prewarm(self, content: Content, **options: Any) -> Usage:
        """Say something without asking for an answer, so that the replica has read it when the
        next turn comes; what of it was cached already is in the usage.

        >>> usage = session.prewarm("A long document.")
        >>> session.send("Sum it up.").usage.prompt_tokens > usage.prompt_tokens
        True
        """
        return self._portal.call(self._session.prewarm(content, **options))

    def background(self, content: Content, **options: Any) -> Run:
        """Begin a turn that runs at the router by itself, whether or not this process goes on.

        It is accepted when this returns. Tools of this process run while it is listened to.

        >>> reply = session.background("Say hello.").wait()
        >>> session.send("And again.").usage.prompt_tokens > reply.usage.prompt_tokens
        True
        """
        return Run(self._portal, self._portal.call(self._session.background(content, **options)))

    @property
    def running(self) -> Run | None:
        """The turn that runs by itself, None if there is none: one in the background, or one that
        was running when the session was attached. The next turn waits for it.

        >>> run = session.background("Say hello.")
        >>> session.running.id == run.id
        True
        >>> reply = run.wait()
        >>> session.running is None
        True
        """
        run = self._session.running
        return None if run is None else Run(self._portal, run)

    def fork(self, n: int = 1) -> list["Session"]:
        """`n` sessions that go on from here, each its own way; this one goes on too.

        >>> reply = session.send("Think of a number.")
        >>> [child.send("Add one to it.").usage.prompt_tokens > 0 for child in session.fork(2)]
        [True, True]
        """
        return [Session(self._portal, made) for made in self._portal.call(self._session.fork(n))]

    def waiting_on_tool(self, seconds: float) -> bool:
        """Ask that the session's KV memory be held for so long, since a tool runs; 0 lets go of
        it. False: nothing is held that could be.

        >>> reply = session.send("Look it up, I will wait.")
        >>> session.waiting_on_tool(seconds=30)
        True
        """
        return self._portal.call(self._session.waiting_on_tool(seconds))

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
        self._portal.call(self._session.close())

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
