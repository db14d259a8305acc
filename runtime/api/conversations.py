"""`/v1/conversations`: conversations by name, and their items. How a response reads and extends one
is `responses_context`'s business."""

import secrets
from collections.abc import Sequence
from time import time
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from sessile.api.auth import Authenticator
from sessile.api.fields import objects_of, shown
from sessile.api.request import decode_object, read_body
from sessile.api.responses_context import MOST_ITEMS
from sessile.api.responses_fields import read_metadata
from sessile.api.responses_items import answers_call, check_items
from sessile.api.responses_listing import listed_items, page_of, read_page
from sessile.errors import ConversationNotFound, InvalidRequest
from sessile.sessions.conversation import ConversationRecord, read_whole
from sessile.sessions.store import Store
from sessile.settings import Settings

_AT_ONCE = 20

Item = dict[str, Any]


def conversation_routes(store: Store, auth: Authenticator, settings: Settings) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/conversations", tags=["conversations"])
    longest = settings.server.max_body_bytes
    kept = store.conversations

    async def body_of(request: Request) -> dict[str, Any]:
        data = await read_body(request.scope, request.receive, longest)
        return decode_object(data) if data else {}

    async def find(tenant: str, id: str) -> ConversationRecord:
        record = await kept.get(tenant, id)
        if record is None:
            raise _gone(id)
        return record

    @routes.post("")
    async def create(request: Request) -> Response:
        """A new conversation, with its first items if there are any."""
        tenant = auth.tenant_of(request)
        body = await body_of(request)
        record = ConversationRecord(
            tenant=tenant,
            id="conv_" + secrets.token_hex(16),
            created_at=int(time()),
            metadata=read_metadata(body),
        )
        await kept.create(record, _read_items(objects_of(body, "items")))
        return _json(_told(record))

    @routes.get("/{id}")
    async def retrieve(request: Request, id: str) -> Response:
        """A conversation's metadata."""
        return _json(_told(await find(auth.tenant_of(request), id)))

    @routes.post("/{id}")
    async def update(request: Request, id: str) -> Response:
        """Replace its metadata."""
        tenant = auth.tenant_of(request)
        record = await kept.update(tenant, id, read_metadata(await body_of(request)))
        if record is None:
            raise _gone(id)
        return _json(_told(record))

    @routes.delete("/{id}")
    async def delete(request: Request, id: str) -> Response:
        """Drop it with its items. A turn that runs in it is answered, and adds nothing to it."""
        if not await kept.delete(auth.tenant_of(request), id):
            raise _gone(id)
        return _json({"id": id, "object": "conversation.deleted", "deleted": True})

    @routes.post("/{id}/items")
    async def add(request: Request, id: str) -> Response:
        """Add items at its end."""
        tenant = auth.tenant_of(request)
        given = objects_of(await body_of(request), "items")
        if not given:
            raise InvalidRequest("items must be a list of items", param="items")
        record = await find(tenant, id)
        answers = any(map(answers_call, given))
        items = _read_items(given, (await read_whole(kept, tenant, id) or ()) if answers else ())
        if record.size + len(items) > MOST_ITEMS:
            raise InvalidRequest(f"a conversation holds at most {MOST_ITEMS} items", param="items")
        for index, item in enumerate(items):
            if await kept.get_item(tenant, id, item["id"]) is not None:
                where = f"items[{index}].id"
                raise InvalidRequest(f"{where}: {shown(item['id'])} is there already", param=where)
        if not await kept.append(tenant, id, items):
            raise _gone(id)
        return _json(page_of(items, len(items)))

    @routes.get("/{id}/items")
    async def items(
        request: Request,
        id: str,
        order: str | None = None,
        after: str | None = None,
        limit: str | None = None,
    ) -> Response:
        """Its items, the newest first unless `order=asc`."""
        tenant = auth.tenant_of(request)
        newest_first, most = read_page(order, limit, "desc")
        if after is not None and await kept.get_item(tenant, id, after) is None:
            await find(tenant, id)
            raise InvalidRequest(f"there is no item {shown(after)} to list from", param="after")
        found = await kept.page(tenant, id, after=after, limit=most + 1, newest_first=newest_first)
        if found is None:
            raise _gone(id)
        return _json(page_of(found, most))

    @routes.get("/{id}/items/{item_id}")
    async def item(request: Request, id: str, item_id: str) -> Response:
        """One item."""
        found = await kept.get_item(auth.tenant_of(request), id, item_id)
        if found is None:
            raise _no_item(id, item_id)
        return _json(found)

    @routes.delete("/{id}/items/{item_id}")
    async def delete_item(request: Request, id: str, item_id: str) -> Response:
        """Drop one item; the conversation as it is then."""
        tenant = auth.tenant_of(request)
        if not await kept.delete_item(tenant, id, item_id):
            raise _no_item(id, item_id)
        return _json(_told(await find(tenant, id)))

    return routes


def _read_items(items: list[Item], past: Sequence[Item] = ()) -> list[Item]:
    """The items of a request, that a turn could be given after those of the `past`, with ids."""
    if len(items) > _AT_ONCE:
        raise InvalidRequest(f"at most {_AT_ONCE} items can be added at a time", param="items")
    check_items(items, past)
    ids: Sequence[Any] = [item["id"] for item in items if item.get("id") is not None]
    if not all(isinstance(id, str) and 0 < len(id) <= 256 for id in ids) or len(set(ids)) < len(
        ids
    ):
        raise InvalidRequest("items must have ids of their own, or none", param="items")
    return listed_items(items, secrets.token_hex(16))


def _told(record: ConversationRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "conversation",
        "created_at": record.created_at,
        "metadata": record.metadata,
    }


def _gone(id: str) -> ConversationNotFound:
    return ConversationNotFound(f"there is no conversation {shown(id)}", param="conversation_id")


def _no_item(id: str, item: str) -> ConversationNotFound:
    return ConversationNotFound(
        f"conversation {shown(id)} has no item {shown(item)}", param="item_id"
    )


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
