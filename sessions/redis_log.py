"""The log of events that many routers share, over Redis Streams.

Travels by the store's own link: batches of many turns are one round trip, where one server holds
all keys one call of a script, and the breaker is one.
The list of open turns lies in a slot of its own and is only a hint for those who look for orphans;
each turn's own hash decides.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from sessile.sessions import log_scripts
from sessile.sessions.redis_link import RedisLink, Script
from sessile.sessions.redis_wire import Command
from sessile.sessions.stream_log import (
    Accept,
    Batch,
    LogLimits,
    Page,
    Standing,
    Steered,
    Taken,
    Written,
)

_APPEND = Script(log_scripts.APPEND)
_READ = Script(log_scripts.READ)
_LOOK = Script(log_scripts.LOOK)
_TAKE = Script(log_scripts.TAKE)
_RELEASE = Script(log_scripts.RELEASE_TURN)
_CANCEL = Script(log_scripts.CANCEL)
_STEER = Script(log_scripts.STEER)
_STEERS = Script(log_scripts.STEERS)
SCRIPTS = (_APPEND, _READ, _LOOK, _TAKE, _RELEASE, _CANCEL, _STEER, _STEERS)

_MOST_TURNS = 64  # in one call of a script: the server does nothing else meanwhile
_PAGE = 16  # batches, each at most a writer's; so that no reply is what the time-out catches
_STATES: tuple[Literal["ok", "gone", "fenced", "ended"], ...] = ("ok", "gone", "fenced", "ended")
_STEERED: tuple[Steered, ...] = ("ok", "known", "ended", "gone", "full")
_SEPARATOR = "\x1f"
_NEWEST_TTLS = 6  # a turn may run for so many times longer than its last event is kept

_encode_json = msgspec.json.Encoder().encode
_encode = msgspec.msgpack.Encoder().encode
_events = msgspec.msgpack.Decoder(list[bytes]).decode


class RedisLog:
    """Implements `StreamLog`. Made by `RedisStore`; `keys` gives a turn's two keys, `open_turns` is
    the list of open turns, `newest` gives the key of a session's newest turn."""

    def __init__(
        self,
        link: RedisLink,
        limits: LogLimits,
        keys: Callable[[str, str], tuple[str, str]],
        open_turns: str,
        newest: Callable[[str, str], str],
    ) -> None:
        self.limits = limits
        self._link = link
        self._keys = keys
        self._open = open_turns
        self._newest = newest
        self._lease_ms = max(1, round(limits.lease_s * 1000))
        self._ttl_ms = max(1, round(limits.ttl_s * 1000))

    async def append(
        self, batches: Sequence[Batch], sent: Callable[[], None] | None = None
    ) -> list[Written]:
        size = 1 if self._link.is_cluster else _MOST_TURNS
        commands = [
            self._append(batches[start : start + size]) for start in range(0, len(batches), size)
        ]
        replies = await self._link.run_together([*commands, *self._hints(batches)], sent)
        written = [Written("ok", batch.first + len(batch.events)) for batch in batches]
        for start, told in zip(range(0, len(batches), size), replies, strict=False):
            for at in range(0, len(told), 6):
                place, state, upto, cancel, missing, steers = told[at : at + 6]
                written[start + place] = Written(_STATES[state], upto, cancel == 1, missing, steers)
        return written

    def _append(self, batches: Sequence[Batch]) -> Command:
        limits = self.limits
        keys: list[str] = []
        told: list[tuple[Any, ...]] = []
        data: list[bytes] = []
        for batch in batches:
            events, first, accept = batch.events, batch.first, batch.accept
            keys += self._keys(batch.tenant, batch.turn)
            kept = _encode(events) if events else b""
            data.append(kept)
            # A fence has more digits than the server's Lua writes of a number.
            facts: tuple[Any, ...] = (str(batch.fence), first, first + len(events) - 1, len(kept))
            if accept is not None:
                facts += (batch.ended, accept.owner, len(accept.record))
                data.append(accept.record)
            elif batch.ended:
                facts += (True,)
            told.append(facts)
        return _APPEND.command(
            keys, limits.most_events, limits.most_bytes, self._lease_ms, self._ttl_ms,
            _encode_json(told), b"".join(data),
        )  # fmt: skip

    def _hints(self, batches: Sequence[Batch]) -> list[Command]:
        """Tell the list of open turns of those that begin, live on or end."""
        due = time.time() + self.limits.lease_s
        live: list[float | str] = []
        over: list[str] = []
        for batch in batches:
            if batch.ended:
                over.append(batch.tenant + _SEPARATOR + batch.turn)
            elif batch.accept is not None or not batch.events:
                live += (due, batch.tenant + _SEPARATOR + batch.turn)
        commands: list[Command] = []
        if live:
            commands.append(("ZADD", self._open, *live))
            commands.append(("PEXPIRE", self._open, self._ttl_ms))
        if over:
            commands.append(("ZREM", self._open, *over))
        for batch in batches:
            if batch.accept is not None and batch.accept.session is not None:
                key = self._newest(batch.tenant, batch.accept.session)
                commands.append(("SET", key, batch.turn, "PX", _NEWEST_TTLS * self._ttl_ms))
        return commands

    async def read(self, tenant: str, turn: str, after: int) -> Page | None:
        found = await self._link.run(_READ.command(self._keys(tenant, turn), after, _PAGE))
        if found is None:
            return None
        upto, ended, left_ms, flat = found
        events = [
            (number, event)
            for first, data in zip(flat[::2], flat[1::2], strict=True)
            for number, event in enumerate(_events(data), int(first))
            if number > after
        ]
        return Page(events, _state(ended, left_ms), int(upto))

    async def look(self, tenant: str, turn: str) -> Standing | None:
        found = await self._link.run(_LOOK.command(self._keys(tenant, turn)[:1]))
        if found is None:
            return None
        upto, ended, left_ms, fence, cancel, owner, record, taken = found
        return Standing(
            _state(ended, left_ms), int(upto), int(fence), cancel == 1,
            Accept(owner.decode(), record), taken == 1,
        )  # fmt: skip

    async def take(self, tenant: str, turn: str, owner: str) -> Taken | None:
        found = await self._link.run(
            _TAKE.command(self._keys(tenant, turn), owner, self._lease_ms, self._ttl_ms)
        )
        if isinstance(found, int):
            return None
        # Who takes it tells of it anew, with the first renewal.
        await self._link.run(("ZREM", self._open, tenant + _SEPARATOR + turn))
        if found is None:
            return None
        fence, upto, cancel, record = found
        return Taken(int(fence), int(upto), cancel == 1, record)

    async def release(self, tenant: str, turn: str, fence: int) -> None:
        await self._link.run_all(
            [
                _RELEASE.command(self._keys(tenant, turn)[:1], fence),
                ("ZADD", self._open, "XX", 0, tenant + _SEPARATOR + turn),
            ]
        )

    async def cancel(self, tenant: str, turn: str) -> bool:
        return bool(await self._link.run(_CANCEL.command(self._keys(tenant, turn)[:1])))

    async def steer(self, tenant: str, turn: str, key: str, said: bytes, most: int) -> Steered:
        keys = self._keys(tenant, turn)[:1]
        state: int = await self._link.run(_STEER.command(keys, key, said, most))
        return _STEERED[state]

    async def steers(self, tenant: str, turn: str) -> list[tuple[str, bytes]]:
        flat = await self._link.run(_STEERS.command(self._keys(tenant, turn)[:1]))
        return [(key.decode(), said) for key, said in zip(flat[::2], flat[1::2], strict=True)]

    async def newest(self, tenant: str, session: str) -> str | None:
        found = await self._link.run(("GET", self._newest(tenant, session)))
        return None if found is None else found.decode()

    async def forget(self, tenant: str, turn: str) -> None:
        await self._link.run_all(
            [
                ("DEL", *self._keys(tenant, turn)),
                ("ZREM", self._open, tenant + _SEPARATOR + turn),
            ]
        )

    async def orphans(self, most: int) -> list[tuple[str, str]]:
        found = await self._link.run(
            ("ZRANGE", self._open, "-inf", time.time(), "BYSCORE", "LIMIT", 0, most)
        )
        pairs = [member.decode().split(_SEPARATOR, 1) for member in found]
        return [(tenant, turn) for tenant, turn in pairs]


def _state(ended: int, left_ms: int) -> Literal["running", "orphaned", "ended"]:
    if ended:
        return "ended"
    return "running" if left_ms > 0 else "orphaned"
