"""What a response follows: earlier turns or a conversation, found in the store, and references to
items made whole. Also who may write to a conversation, and when."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from sessile.api.responses_body import Asked, chat_body
from sessile.api.responses_listing import listed_items, place_of
from sessile.errors import (
    ConversationNotFound,
    InvalidRequest,
    ResponseNotFound,
    SessionBusy,
    StoreError,
    StoreUnavailable,
)
from sessile.prewarm import LAST
from sessile.sessions.conversation import read_whole
from sessile.sessions.hints import Hints, WhenBusy, read_hints
from sessile.sessions.identity import SessionClaims, read_claims
from sessile.sessions.record import SessionKey
from sessile.sessions.store import Store
from sessile.sessions.transcript import Transcripts
from sessile.settings import SessionSettings
from sessile.turn_request import TurnRequest

log = logging.getLogger("sessile.api")

Headers = Sequence[tuple[bytes, bytes]]
Item = dict[str, Any]

_CHAT = "/v1/chat/completions"

MOST_ITEMS = 10_000
"""How many items a conversation may hold before a turn or a client adds to it."""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before a response's own input: earlier items, in stretches as they came, and the
    session and model that they belong to."""

    past: list[list[Item]] = []
    model: str
    session: str | None = None

    @property
    def items(self) -> list[Item]:
        """The earlier items in a row."""
        return [item for stretch in self.past for item in stretch]


class Contexts:
    """Finds contexts. One a router, made by `Responses`."""

    def __init__(
        self, store: Store, transcripts: Transcripts, settings: SessionSettings,
        meant: Callable[[str], str],
    ) -> None:  # fmt: skip
        self._store = store
        self._meant = meant
        self._transcripts = transcripts
        self._settings = settings

    async def find(self, tenant: str, asked: Asked) -> tuple[Asked, Context]:
        """The context of a request, and the request with its references made whole.

        Raises `ResponseNotFound`, `ConversationNotFound`, `StoreUnavailable`, and `InvalidRequest`
        for what cannot be followed.
        """
        past: list[list[Item]] = []
        model = asked.model
        session: str | None = None
        if asked.previous is not None:
            try:
                links = await self._transcripts.walk(tenant, asked.previous)
            except ResponseNotFound:
                await self._check_whether_it_runs(tenant, asked.previous)
                raise
            for link in links:
                past += (link.input_items, link.output_items)
            if (conversation := links[-1].conversation) is not None:
                raise InvalidRequest(
                    f"response {asked.previous!r} is of conversation {conversation!r}: follow it "
                    "by conversation", param="previous_response_id",
                )  # fmt: skip
            session = links[-1].session
            model = model or links[-1].model
        elif asked.conversation is not None:
            past = [await self._items(tenant, asked.conversation)]
            session = asked.conversation
            _check_new(past[0], asked.items)
        if model is None:
            raise InvalidRequest("model must be a non-empty string", param="model")
        context = Context(past=past, model=self._meant(model), session=session)
        known = {item["id"] for item in context.items if item.get("id")}
        return await self.made_whole(tenant, asked, known), context

    @asynccontextmanager
    async def writing(
        self, tenant: str, asked: Asked, turn: str, when_busy: WhenBusy | None
    ) -> AsyncIterator[None]:
        """While a turn reads a conversation, runs and appends to it, no other does: it waits its
        time, or not at all as it declares, and is then told 409, at any router."""
        if asked.conversation is None:
            yield
            return
        if when_busy == "fork":
            raise InvalidRequest(
                "a conversation has one line: its turns queue or are refused, but fork only by "
                "previous_response_id", param="x-sessile-when-busy",
            )  # fmt: skip
        key = SessionKey(tenant, "", asked.conversation)
        await self._acquire(key, turn, 0.0 if when_busy == "refuse" else self._settings.lock_wait_s)
        try:
            yield
        finally:
            try:
                await asyncio.shield(self._store.release(key, turn))
            except StoreUnavailable:
                log.warning("conversation was not released turn=%s", turn)

    async def append(self, tenant: str, asked: Asked, response: dict[str, Any]) -> None:
        """Add a turn's input and output to its conversation. One that was deleted meanwhile stays
        so: the turn is answered all the same, and its items are in its response only."""
        if asked.conversation is None or response["status"] == "failed":
            return
        items = listed_items(asked.items, response["id"]) + response["output"]
        try:
            if not await self._store.conversations.append(tenant, asked.conversation, items):
                log.info("conversation was gone when its turn ended turn=%s", response["id"])
        except StoreError as error:
            log.warning("conversation was not extended turn=%s why=%r",
                        response["id"], error.message)  # fmt: skip

    async def _check_whether_it_runs(self, tenant: str, response: str) -> None:
        """One that is not stored may be known all the same, by its events. Raises `SessionBusy` for
        one that is still being made, and `InvalidRequest` for one that came to nothing."""
        try:
            standing = await self._store.events.look(tenant, response)
        except StoreUnavailable:
            return
        if standing is None:
            return
        if standing.state != "ended":
            raise SessionBusy(
                f"response {response!r} is still being made: follow it once it has ended",
                param="previous_response_id", retry_after_s=1.0,
            )  # fmt: skip
        raise InvalidRequest(
            f"response {response!r} did not end well and cannot be continued; continue from its "
            "parent", param="previous_response_id",
        )  # fmt: skip

    async def _items(self, tenant: str, conversation: str) -> list[Item]:
        items = await read_whole(self._store.conversations, tenant, conversation)
        if items is None:
            raise ConversationNotFound(
                f"there is no conversation {conversation!r}", param="conversation"
            )
        return items

    async def _acquire(self, key: SessionKey, turn: str, wait_s: float) -> None:
        began = time.monotonic()
        pause_s = 0.01
        while True:
            try:
                if await self._store.acquire(key, turn, self._settings.lock_ttl_s) is not None:
                    return
            except StoreUnavailable:
                return  # what is asked next says so
            if not wait_s or time.monotonic() - began > wait_s:
                raise SessionBusy(
                    f"another response of conversation {key.session!r} is being made",
                    retry_after_s=1.0,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.25)

    async def made_whole(
        self, tenant: str, asked: Asked, known: Collection[str] = frozenset()
    ) -> Asked:
        """The request with each `item_reference` replaced by the item. Raises `InvalidRequest` for
        one that is not stored, or one of the `known` items, which are there already."""
        if not any(isinstance(item, dict) and item.get("type") == "item_reference"
                   for item in asked.items):  # fmt: skip
            return asked
        items = []
        for index, item in enumerate(asked.items):
            if isinstance(item, dict) and item.get("type") == "item_reference":
                item = await self._referred(tenant, item.get("id"), known, f"input[{index}].id")
            items.append(item)
        return msgspec.structs.replace(asked, items=items)

    async def _referred(self, tenant: str, id: Any, known: Collection[str], where: str) -> Item:
        if id in known:
            raise InvalidRequest(f"{where}: {id!r} is in the conversation already", param=where)
        place = place_of(id) if isinstance(id, str) else None
        if place is not None:
            response, of_input, index = place
            record = await self._store.get_turn(tenant, response)
            if record is not None:
                items = record.input_items if of_input else record.output_items
                if index < len(items):
                    return items[index]
        raise InvalidRequest(f"{where}: there is no stored item {id!r}", param=where)


def _check_new(there: Sequence[Item], new: Sequence[Item]) -> None:
    """What is added to a conversation must fit in it, and must not be in it already."""
    if len(there) + len(new) > MOST_ITEMS:
        raise InvalidRequest(
            f"the conversation would hold over {MOST_ITEMS} items; start a new one, or compact it",
            param="conversation",
        )
    ids = {item["id"] for item in there}
    for index, item in enumerate(new):
        if isinstance(item, dict) and item.get("id") in ids:
            where = f"input[{index}].id"
            raise InvalidRequest(
                f"{where}: {item['id']!r} is in the conversation already", param=where
            )


def read_turn(
    tenant: str,
    headers: Headers,
    body: Mapping[str, Any],
    asked: Asked,
    context: Context,
    turn: str | None,
    *,
    forks: bool = False,
) -> TurnRequest:
    """The engine's turn that a request asks for, as far as engines can do it alone. One that
    `forks` is a session of its own, started by that of its parent."""
    document = chat_body(asked, context.model, context.past)
    claims = _claims(headers, body, document, context.session)
    if forks:
        parent = claims.explicit or claims.parent
        claims = msgspec.structs.replace(claims, explicit=None, parent=parent)
    return TurnRequest(
        tenant=tenant,
        path=_CHAT,
        model=context.model,
        claims=claims,
        hints=_hints(headers, body, asked),
        document=document,
        stream=True,
        relay_usage=True,
        # What only prepares a session is in no turn's way: it takes no lock.
        stateful=asked.previous is not None and asked.cache.generate,
        turn=turn,
    )


def _hints(headers: Headers, body: Mapping[str, Any], asked: Asked) -> Hints:
    """What the request says of its turn, and what its cache options make of that."""
    hints = read_hints(headers, {**body, "max_tokens": body.get("max_output_tokens")})
    generate, hold_s = asked.cache.generate, asked.cache.hold_s
    if not generate:
        hints = hints.out_of_the_way()
    elif hold_s is None:
        return hints
    return msgspec.structs.replace(
        hints,
        hold_s=hints.hold_s if hold_s is None else hold_s,
        priority=hints.priority if generate else LAST,
        output_tokens=hints.output_tokens if generate else 1,
    )


def _claims(
    headers: Headers,
    body: Mapping[str, Any],
    document: dict[str, Any],
    session: str | None,
) -> SessionClaims:
    """The session that the request names, else that of the response it follows, else, for a
    request that carries its whole history, what its messages tell. One that names a session and
    follows a response of another is a fork of that other."""
    claims = read_claims(headers, body, document["messages"] if session is None else None)
    if session is None or claims.explicit == session:
        return claims
    if claims.explicit is None:
        return msgspec.structs.replace(claims, explicit=session)
    return msgspec.structs.replace(claims, parent=claims.parent or session)
