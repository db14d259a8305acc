"""Follows a turn's events from any number on, at any router: first what was told, then live.

A turn that runs here is read from memory; another's from the log, by looking again and again, more
rarely the longer nothing comes: that needs no connection and no blocked reply for each follower,
and is the same on a Cluster. Both are read by number, so that nothing is missed or told twice where
one goes over into the other. Numbers that are missing are told as a `sessile.gap`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from sessile.errors import InvalidRequest, StoreUnavailable, TurnNotFound
from sessile.event_writer import EventWriter
from sessile.sessions.stream_log import Page, StreamLog

Told = tuple[int, bytes]
Adopt = Callable[[str, str, int], Awaitable[bool]]

_SOONEST_S = 0.005
_LATEST_S = 0.1
_AWAY_S = 30.0  # that a follower waits for a store that is away, or has lost the turn
_CATCH_UP_S = 1.0  # that a live turn's log may be behind what its client has seen
_APPEAR_S = 0.2  # that a turn may be known to its client before it is to the log
MOST_AHEAD = 10_000
"""How far a client of a turn that was taken over may be ahead of what the log has of it."""


class EventFeed:
    """One a router. `adopt` takes over a turn whose router is gone; it is given the last number
    that the follower has seen, and says whether the turn runs here now."""

    def __init__(self, log: StreamLog, writer: EventWriter, adopt: Adopt) -> None:
        self._log = log
        self._writer = writer
        self._adopt = adopt

    async def check(self, tenant: str, turn: str, after: int) -> None:
        """Whether the turn can be followed from there. Raises `TurnNotFound`, `InvalidRequest` for
        a number beyond its last one, and `StoreUnavailable`."""
        began = time.monotonic()
        while True:
            live = self._writer.find(tenant, turn)
            if live is not None:
                following, ahead, behind = live.next, False, False
            else:
                standing = await self._log.look(tenant, turn)
                if standing is None:
                    if time.monotonic() > began + _APPEAR_S:
                        raise TurnNotFound(f"there are no events of a turn {turn!r}")
                    await asyncio.sleep(_APPEAR_S / 8)
                    continue
                following = standing.next
                ahead = standing.taken or standing.state == "orphaned"
                # Its router may be dead: that is known once its lease has run out.
                waits_s = self._log.limits.lease_s + _CATCH_UP_S
                late = time.monotonic() > began + waits_s or after >= following + MOST_AHEAD
                behind = standing.state == "running" and not late
            if after < following or (ahead and after < following + MOST_AHEAD):
                return
            if not behind:
                raise InvalidRequest(
                    f"starting_after is {after}, and the last event so far is number "
                    f"{following - 1}",
                    param="starting_after",
                )
            await asyncio.sleep(_LATEST_S / 2)

    async def follow(self, tenant: str, turn: str, after: int) -> AsyncIterator[list[Told]]:
        """The numbered events behind `after`, to the terminal one.

        Raises `StoreUnavailable` or `TurnNotFound` where nothing can be learned of it for long.
        """
        pause_s = _SOONEST_S
        heard_at = time.monotonic()
        while True:
            live = self._writer.find(tenant, turn)
            if live is not None:
                events = live.since(after, live.safe)
                if events:
                    after = events[-1][0]
                    yield events
                    continue
                if events is not None:
                    if live.ended and after >= live.next - 1:
                        return
                    await live.changed()
                    heard_at = time.monotonic()
                    continue
            page = await self._read(tenant, turn, after)
            if page is None:
                if live is None and time.monotonic() - heard_at > _AWAY_S:
                    raise TurnNotFound(f"the events of turn {turn!r} are gone")
                if live is not None and time.monotonic() - heard_at > _CATCH_UP_S:
                    yield [gap(after + 1, live.first - 1)]
                    after = live.first - 1
                await asyncio.sleep(_LATEST_S)
                continue
            heard_at = time.monotonic()
            events = page.events
            if live is not None:
                events = [told for told in events if told[0] < live.first]
            if events:
                pause_s = _SOONEST_S
                yield _with_gaps(after, events)
                after = events[-1][0]
            elif live is not None:
                yield [gap(after + 1, live.first - 1)]
                after = live.first - 1
            elif page.state == "ended":
                if after < page.next - 1:
                    yield [gap(after + 1, page.next - 1)]
                elif after >= page.next and (last := await self._read(tenant, turn, page.next - 2)):
                    yield last.events  # seen more than was kept: the last word at least
                return
            elif page.state == "running" or not await self._adopt(tenant, turn, after):
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _LATEST_S)

    async def _read(self, tenant: str, turn: str, after: int) -> Page | None:
        try:
            return await self._log.read(tenant, turn, after)
        except StoreUnavailable:
            return None


def number_of(text: str | None, name: str) -> int:
    """The number that a client gives as the last event it has seen; -1 for none. Raises
    `InvalidRequest`."""
    if text is None or text == "":
        return -1
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidRequest(
            f"{name} must be the number of an event, not {text[:40]!r}", param=name
        )
    return int(text)


def kind_of(event: bytes) -> bytes:
    """The type of an event, which always stands first in it."""
    start = event.index(b'"type":"') + 8
    return event[start : event.index(b'"', start)]


def gap(first: int, last: int) -> Told:
    """Tells that the events `first` to `last` were not kept."""
    told = {"type": "sessile.gap", "first": first, "last": last, "sequence_number": last}
    return last, msgspec.json.encode(told)


def number_in(event: bytes) -> int:
    """The number of an event, which no field with such a name follows."""
    start = event.rindex(b'"sequence_number":') + 18
    end = event.find(b",", start)
    return int(event[start:end] if end > 0 else event[start:-1])


def _with_gaps(after: int, events: list[Told]) -> list[Told]:
    """The same, with what is missing between them told."""
    whole: list[Told] = []
    for number, event in events:
        if number > after + 1:
            whole.append(gap(after + 1, number - 1))
        whole.append((number, event))
        after = number
    return whole
