"""One response under way: what was asked, how far it has come, and who is told of it."""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from sessile.api.cache_diagnosis import Compared
from sessile.api.responses_body import Asked
from sessile.api.responses_context import Context
from sessile.api.responses_events import ResponseStream
from sessile.api.responses_record import Accepted
from sessile.api.responses_sequence import Event
from sessile.errors import SessileError
from sessile.live_turn import LiveTurn
from sessile.sessions.record import TurnRecord
from sessile.turn import Transcript, Turn
from sessile.turn_request import TurnRequest

_MOST_KEPT_BYTES = 4 * 2**20


Put = Callable[[list[Event]], None]
"""Tells events at once. Raises `OSError`."""


class Answer(Protocol):
    """What is known of an answer when it begins."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The `X-Sessile-*` headers."""


class Audience(Protocol):
    """Who is told of a response as it is made. Methods that may wait let the engine wait too."""

    def prompt(self) -> "Put | None":
        """What the next events can be told by without waiting, now or a moment later; None where
        they have to be waited for."""

    async def open(self, turn: Answer) -> None:
        """The answer has begun; called once, before any event."""

    async def tell(self, events: list[Event]) -> None:
        """The next events, in their order."""


class Successor(msgspec.Struct, frozen=True):
    """The response that follows a steered one by itself, and the keys of the steers that it took
    in."""

    id: str
    steers: list[str]


class Made(msgspec.Struct, frozen=True):
    """A response that has ended, why it failed if it did, and what follows it by itself."""

    response: dict[str, Any]
    error: SessileError | None
    successor: Successor | None = None


class Followed(msgspec.Struct, frozen=True):
    """The answer of a turn that is only listened to."""

    turn: str

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is known of it: its id."""
        return [(b"x-sessile-turn", self.turn.encode())]


class Job:
    """Made by `Responses` for each response, gone with it.

    `asked` is what was accepted, with its references made whole, `context` what it follows and
    `request` the engine's turn of the two. `pending` are the events that have been made and not
    told yet, `live` is there where others may follow; a response under a key that nobody can follow
    keeps what it has told in `kept`. `told` is text that clients were given by a router that is
    gone; of one that is `unheard` nobody is told before it is whole. `seen` is the number of the
    last event that the audience was given, `turn` the newest call of an engine, `session` that of
    the first.
    """

    def __init__(
        self, tenant: str, accepted: Accepted, asked: Asked, context: Context,
        request: TurnRequest, stream: ResponseStream,
    ) -> None:  # fmt: skip
        self.tenant = tenant
        self.accepted = accepted
        self.asked = asked
        self.context = context
        self.request = request
        self.stream = stream
        self.once = accepted.once
        self.audience: Audience | None = None
        self.stop: Callable[[], bool] | None = None
        self.remember = False
        self.live: LiveTurn | None = None
        self.pending: list[Event] = []
        self.kept: list[bytes] | None = None
        self.told = ""
        self.unheard = False
        self.seen = -1
        self._ahead: list[Event] = []  # told to the log, and not to the audience yet
        self._put: Put | None = None  # is how they are told
        self._gone: Exception | None = None
        self.compared: Compared | None = None
        self.opened = False
        self.turn: Turn | None = None
        self.session: str | None = None
        self.failure: SessileError | None = None

    @property
    def id(self) -> str:
        """The response's id."""
        return self.accepted.turn

    def runs_as(self, live: LiveTurn) -> None:
        """Others may follow it, and steer it if it runs without its client."""
        self.live = live
        if self.accepted.detached:
            self.stop = lambda: live.is_steered

    async def open(self, turn: Turn) -> None:
        """An engine has begun to answer."""
        if self.opened:
            return
        if self.audience is not None:
            await self.audience.open(turn)
        self.opened = True

    async def tell(self, ended: bool = False) -> None:
        """Tell what is pending, once the log has it. Raises `TurnTaken`.

        An audience that is ready is told it when that is so, while this goes on, at most one
        call's events and not the last ones: to be woken for each costs more than to tell it.
        """
        events = self.log(ended)
        audience, live = self.audience, self.live
        if audience is None or not events:
            return
        if live is None:
            await audience.tell(events)
            return
        if self._ahead or self._gone is not None or live.stopped == "lost":
            await self.caught_up()
        put = None if ended else audience.prompt()
        if put is not None:
            self._ahead, self._put = events, put
            live.once_told(self._give)
        else:
            await live.told()
            await audience.tell(events)
            self.seen = live.next - 1

    async def caught_up(self) -> None:
        """Wait until the audience has been told what the log was told before. Raises `TurnTaken`,
        and what its line raised."""
        live = self.live
        if live is not None and (self._ahead or live.stopped == "lost"):
            await live.told()
        if self._gone is not None:
            raise self._gone

    def _give(self) -> None:
        """The audience may be told what the log was told, unless that counts no more."""
        assert self.live is not None and self._put is not None
        events, self._ahead = self._ahead, []
        if self.live.stopped == "lost":
            return
        try:
            self._put(events)
            self.seen += len(events)
        except Exception as error:  # it is this turn's, and not that of who writes the log
            self._gone = error

    def log(self, ended: bool) -> list[Event]:
        """Tell what is pending to the log and to those who follow only."""
        events, self.pending = self.pending, []
        if self.live is not None:
            self.live.tell([event.body for event in events], ended)
        elif self.kept is not None:
            self.kept += [event.body for event in events]
        return events

    def said(self) -> bytes | None:
        """All events so far, a line each, where they were kept; None where they were too many."""
        lines = [*(self.kept or ()), *(event.body for event in self.pending)]
        return None if sum(map(len, lines)) > _MOST_KEPT_BYTES else b"\n".join(lines)

    def transcript(self) -> Transcript:
        """What it adds to its conversation."""
        response = self.stream.response
        return Transcript(
            parent=self.asked.previous,
            instructions=self.asked.instructions,
            input_items=self.asked.items,
            output_items=response["output"],
            response=response,
        )

    def record(self) -> TurnRecord:
        """What is stored of it where no engine's turn does that."""
        made, turn = self.transcript(), self.turn
        return TurnRecord(
            turn=self.id,
            tenant=self.tenant,
            session=self.request.claims.explicit if turn is None else turn.session,
            model=self.request.model if turn is None else turn.receipt.model,
            receipt=None if turn is None else turn.receipt,
            parent=made.parent,
            instructions=made.instructions,
            input_items=made.input_items,
            output_items=made.output_items,
            response=made.response,
        )
