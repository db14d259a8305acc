"""A turn that runs whether or not anybody listens, and what every turn of a session does."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from sessile.client import calls
from sessile.client.events import Done, Event, Outcome, ToolCall, ToolResult
from sessile.client.http import AsyncHttp
from sessile.client.line import Line
from sessile.client.tools import Tool, failed, succeeded, unknown
from sessile.client.turns import Turn
from sessile.errors import SessionBusy
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


class AsyncRun:
    """A turn that runs at the router by itself; made by `AsyncSession.background`, or found as
    `AsyncSession.running`. Where it calls tools of this process, it goes on while it is listened
    to."""

    def __init__(
        self, http: AsyncHttp, line: Line, turn: Turn, tools: Mapping[str, Tool],
        background: bool = False,
    ) -> None:  # fmt: skip
        self._http = http
        self._line = line
        self._turn = turn
        self._tools = tools
        self._background = background
        self._id = turn.response or ""
        self._stream: AsyncGenerator[Event, None] | None = None

    @property
    def id(self) -> str:
        """The id of its newest response, as any client of the Responses API may follow it.

        >>> run = await session.background("Say hello.")
        >>> run.id.startswith("resp_")
        True
        """
        self._id = self._turn.response or self._id
        return self._id

    @property
    def finished(self) -> bool:
        """Whether its end has been heard, by `events` or `wait`.

        >>> run = await session.background("Say hello.")
        >>> reply = await run.wait()
        >>> run.finished
        True
        """
        return self._turn.finished

    async def events(self) -> AsyncGenerator[Event | Done[AsyncReply], None]:
        """Its events from the first on, or behind those that were heard; the last is `Done`.

        >>> run = await session.background("Say hello.")
        >>> async for event in run.events():
        ...     match event:
        ...         case TextDelta(text):
        ...             pass  # print(text, end="", flush=True)
        ...         case Done(reply):
        ...             print(reply.text != "")
        True
        """
        if self._stream is not None:
            try:
                await self._stream.aclose()
            except RuntimeError as error:
                raise SessionBusy("this turn is listened to elsewhere") from error
        self._stream = stream = drive(self._line, self._turn, self._tools, self._background)
        async for event in stream:
            yield event
        yield Done(reply_of(self._turn, self._http))

    async def wait(self) -> AsyncReply:
        """Listen to its end; the reply, as `send` would have given it.

        >>> run = await session.background("Say hello.")
        >>> (await run.wait()).text != ""
        True
        """
        async for event in self.events():
            if isinstance(event, Done):
                return event.reply
        raise SessionBusy("this turn is listened to elsewhere")

    async def cancel(self) -> None:
        """Stop it. Its reply is then what was said so far, `incomplete` because "cancelled", and
        the session stays as it was before; one that has ended stays as it is.

        >>> run = await session.background("Say hello.")
        >>> await run.cancel()
        >>> reply = await run.wait()
        >>> reply.incomplete in (None, "cancelled")
        True
        """
        if not self._turn.finished:
            await self._http.call(calls.cancel_turn(self.id))


def reply_of(turn: Turn, http: AsyncHttp) -> AsyncReply:
    """The reply of a turn that is finished."""
    return AsyncReply(**vars(turn.outcome), _http=http)


async def drive(
    line: Line, turn: Turn, tools: Mapping[str, Tool], background: bool = False
) -> AsyncGenerator[Event, None]:
    """Run a turn to its end, tools included; left early, it can be driven on from there."""
    while turn.outcome is None:
        if not turn.answered:
            async with aclosing(line.events(turn)) as events:
                async for event in events:
                    yield event
        if turn.outcome is None:
            results = await asyncio.gather(*(_call(call, tools) for call in turn.calls))
            for event in turn.answer(results):
                yield event
            if background:
                await line.begin(turn)


async def _call(call: ToolCall, tools: Mapping[str, Tool]) -> ToolResult:
    """Run a tool: an async function as a task, a plain one in a thread."""
    tool = tools.get(call.name)
    if tool is None:
        return unknown(call, tools)
    try:
        arguments = tool.bind(call.arguments)
        if tool.is_async:
            return succeeded(call, await tool.function(**arguments))
        return succeeded(call, await asyncio.to_thread(tool.function, **arguments))
    except Exception as error:  # whatever a tool raises is the model's to read
        return failed(call, error)
