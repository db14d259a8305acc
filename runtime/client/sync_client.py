"""`Client`: a router, for threads. `AsyncClient` does the work, in a loop of its own."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from sessile.client.async_client import MAX_ROUNDS, AsyncClient
from sessile.client.portal import Portal
from sessile.client.sync_session import Session
from sessile.sessions.hints import WhenBusy


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
        reconnect_s: float = 30.0,
    ) -> None:
        """Speak to the router at `base_url`, else `SESSILE_URL`, else http://localhost:8000.

        `api_key` defaults to `SESSILE_API_KEY`. `timeout_s` is the longest silence inside a turn,
        `reconnect_s` how long a router that was there is looked for when it is gone.

        >>> Client("localhost:8000")
        Traceback (most recent call last):
        ...
        sessile.errors.SettingsError: base_url must be http://HOST:PORT or https://HOST, not \
'localhost:8000'
        """
        self._portal = Portal()
        self._client = AsyncClient(base_url, api_key, timeout_s=timeout_s, reconnect_s=reconnect_s)

    def session(
        self,
        id: str | None = None,
        *,
        model: str | None = None,
        system: str | None = None,
        tools: Sequence[Callable[..., Any]] = (),
        max_rounds: int = MAX_ROUNDS,
        when_busy: WhenBusy | None = None,
    ) -> Session:
        """A new session; nothing is sent before its first turn.

        `id` is yours to choose, else one is made. `model` None takes the first that the router
        lists. `tools` are functions with type hints and a docstring; they run in this process
        when the model calls them, side by side in threads, for at most `max_rounds` rounds a turn.
        `when_busy` says what becomes of a turn while another of the session runs, begun by another
        handle: "queue" behind it, as without, "fork", or "refuse" with `SessionBusy`.

        >>> session = client.session(system="You are brief.")
        >>> session.id.startswith("ses_")
        True
        """
        made = self._client.session(
            id, model=model, system=system, tools=tools, max_rounds=max_rounds,
            when_busy=when_busy,
        )  # fmt: skip
        return Session(self._portal, made)

    def attach(
        self,
        session_id: str,
        *,
        system: str | None = None,
        tools: Sequence[Callable[..., Any]] = (),
        max_rounds: int = MAX_ROUNDS,
        when_busy: WhenBusy | None = None,
    ) -> Session:
        """A session that was begun elsewhere, to go on with from its last turn.

        A turn of it that is running, or that has called tools which nobody ran, is its `running`:
        listen to it there, or just send the next turn, which waits for it. `system` None keeps the
        one it was begun with. Tools are functions of a process, so they are given again. Raises
        `SessionNotFound`, or `SessionExpired` if it was closed.

        >>> first = client.session()
        >>> reply = first.send("My name is Ada.")
        >>> again = client.attach(first.id)
        >>> again.send("What is my name?").session == first.id
        True
        """
        attaching = self._client.attach(
            session_id, system=system, tools=tools, max_rounds=max_rounds, when_busy=when_busy
        )
        return Session(self._portal, self._portal.call(attaching))

    def close(self) -> None:
        """Let go of every connection. The sessions stay open: `attach` goes on with them.

        >>> other = Client(url)
        >>> session_id = other.session("notes").send("Hello.").session
        >>> other.close()
        >>> client.attach("notes").id
        'notes'
        """
        self._portal.call(self._client.aclose())
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
