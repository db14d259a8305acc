"""`Run`: a turn that runs by itself, for threads."""

from collections.abc import Iterator

from sessile.client.async_run import AsyncReply, AsyncRun
from sessile.client.events import Done, Event, Reply
from sessile.client.portal import Portal


class Run:
    """A turn that runs at the router by itself; made by `Session.background`, or found as
    `Session.running`. Where it calls tools of this process, it goes on while it is listened to."""

    def __init__(self, portal: Portal, run: AsyncRun) -> None:
        self._portal = portal
        self._run = run

    @property
    def id(self) -> str:
        """The id of its newest response, as any client of the Responses API may follow it.

        >>> session.background("Say hello.").id.startswith("resp_")
        True
        """
        return self._run.id

    @property
    def finished(self) -> bool:
        """Whether its end has been heard, by `events` or `wait`.

        >>> run = session.background("Say hello.")
        >>> reply = run.wait()
        >>> run.finished
        True
        """
        return self._run.finished

    def events(self) -> Iterator[Event | Done[Reply]]:
        """Its events from the first on, or behind those that were heard; the last is `Done`.

        >>> for event in session.background("Say hello.").events():
        ...     match event:
        ...         case TextDelta(text):
        ...             pass  # print(text, end="", flush=True)
        ...         case Done(reply):
        ...             print(reply.text != "")
        True
        """
        for event in self._portal.iterate(self._run.events()):
            if isinstance(event, Done):
                yield Done(as_reply(self._portal, event.reply))
            else:
                yield event

    def wait(self) -> Reply:
        """Listen to its end; the reply, as `send` would have given it.

        >>> session.background("Say hello.").wait().text != ""
        True
        """
        return as_reply(self._portal, self._portal.call(self._run.wait()))

    def cancel(self) -> None:
        """Stop it. Its reply is then what was said so far, `incomplete` because "cancelled", and
        the session stays as it was before; one that has ended stays as it is.

        >>> run = session.background("Say hello.")
        >>> run.cancel()
        >>> run.wait().incomplete in (None, "cancelled")
        True
        """
        self._portal.call(self._run.cancel())


def as_reply(portal: Portal, reply: AsyncReply) -> Reply:
    """A reply whose receipt needs no loop."""
    fields = {name: value for name, value in vars(reply).items() if name != "_http"}
    return Reply(**fields, _fetch=lambda: portal.call(reply.receipt()))
