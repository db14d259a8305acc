"""The conversation behind a response: what each turn added, walked by parent to the first turn.

Only finds and remembers items; how an engine is told of them is the API's business. A turn never
changes once it has ended, so what this process has seen needs no second look at the store, and a
conversation goes on while the store is away.
"""

import secrets
from collections import OrderedDict
from hashlib import sha256
from typing import Any

import msgspec

from sessile.errors import InvalidRequest, ResponseNotFound
from sessile.sessions.store import Store

DEEPEST = 2_000
_CONTINUABLE = ("completed", "incomplete")


class Link(msgspec.Struct, frozen=True, array_like=True):
    """One turn of a conversation: the items it brought and those it made, and its parent turn.
    `conversation` is the one by name that it belongs to, whose items are kept there."""

    session: str | None
    model: str
    parent: str | None
    input_items: list[dict[str, Any]]
    output_items: list[dict[str, Any]]
    conversation: str | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Link).decode


class Transcripts:
    """Finds conversations. One a router; keeps the newest links, at most `max_bytes` of them."""

    def __init__(self, store: Store, max_bytes: int = 32 * 2**20) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._kept_bytes = 0

    async def walk(self, tenant: str, head: str) -> list[Link]:
        """The conversation that ends with response `head`, its first turn first.

        Raises `ResponseNotFound` where a turn of it is unknown to the tenant or was not stored,
        `InvalidRequest` for one that failed or is over 2,000 turns deep, and `StoreUnavailable`.
        """
        links: list[Link] = []
        turn: str | None = head
        while turn is not None:
            if len(links) == DEEPEST:
                raise InvalidRequest(
                    f"the conversation is over {DEEPEST} turns deep; start a new one",
                    param="previous_response_id",
                )
            try:
                link = self._recall(tenant, turn) or await self._fetch(tenant, turn)
            except ResponseNotFound as error:
                if turn == head:
                    raise
                raise ResponseNotFound(
                    f"response {head!r} goes back to {turn!r}, which is not stored: send the whole "
                    "conversation as input", param=error.param,
                ) from error  # fmt: skip
            links.append(link)
            turn = link.parent
        links.reverse()
        return links

    def remember(self, tenant: str, turn: str, link: Link) -> None:
        """Keep a turn that has ended well, so that its successor need not ask the store."""
        self.forget(tenant, turn)
        data = _encode(link)
        self._kept[tenant, turn] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped)

    def forget(self, tenant: str, turn: str) -> None:
        """Drop what is remembered of a turn, if anything is."""
        dropped = self._kept.pop((tenant, turn), None)
        if dropped is not None:
            self._kept_bytes -= len(dropped)

    def _recall(self, tenant: str, turn: str) -> Link | None:
        data = self._kept.get((tenant, turn))
        if data is None:
            return None
        self._kept.move_to_end((tenant, turn))
        return _decode(data)

    async def _fetch(self, tenant: str, turn: str) -> Link:
        record = await self._store.get_turn(tenant, turn)
        if record is None or record.response is None:
            raise ResponseNotFound(
                f"there is no stored response {turn!r}", param="previous_response_id"
            )
        if record.response.get("status") not in _CONTINUABLE:
            raise InvalidRequest(
                f"response {turn!r} failed and cannot be continued; continue from its parent",
                param="previous_response_id",
            )
        named = record.response.get("conversation") or {}
        link = Link(
            record.session, record.model, record.parent, record.input_items, record.output_items,
            named.get("id"),
        )  # fmt: skip
        self.remember(tenant, turn, link)
        return link


def new_response_id() -> str:
    """A fresh `resp_...`, which is also the turn's id."""
    return "resp_" + secrets.token_hex(16)


def successor_id(response: str) -> str:
    """The id of the response that takes in what was said into `response`: the same whichever router
    makes it."""
    return "resp_" + sha256(f"successor of {response}".encode()).hexdigest()[:32]


def item_id(kind: str, response: str, index: int) -> str:
    """The id of output item `index` of a response: the same each time the turn is told again."""
    return f"{kind}_{response.removeprefix('resp_')}{index:02x}"
