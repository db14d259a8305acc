"""What an engine is sent: the client's bytes, with the fields that the router adds to them."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sessile.router.replica import Replica
from sessile.turn import Turn


class UpstreamBody:
    """Makes the bodies of one router. Made by `Flow`; `salt` is what separates a tenant's cache."""

    def __init__(self, salt: Callable[[str], str | None]) -> None:
        self._salt = salt

    def of(self, turn: Turn, replica: Replica, document: Mapping[str, Any] | None = None) -> bytes:
        """What is sent: the turn's request, or the `document` that goes on with its answer."""
        request, tenant = turn.request, turn.key.tenant
        fields = dict(
            replica.engine.fields(
                turn=turn.request_id,
                session=turn.attribution,
                salt=self._salt(tenant),
            )
        )
        if (identity := replica.identity) is not None:
            if identity.orders is not None:
                fields |= replica.engine.order(request.hints.priority, identity)
            if document is None and "tool_choice" in request.document:
                fields |= replica.engine.call_fields(request.document, identity)
        if replica.speculates:
            fields |= replica.engine.acceptance_fields()
        if turn.adapter is not None:
            fields |= replica.engine.adapter_fields(turn.adapter)
        if request.stream:
            fields |= with_usage(request.document)
        elif replica.engine.folds and request.path != "/v1/embeddings":
            fields |= with_usage(request.document) | {"stream": True}
        if document is not None:
            return splice(b"", document, fields)
        return splice(request.body, request.document, fields)


def with_usage(document: Mapping[str, Any]) -> dict[str, Any]:
    """The field that makes a streaming engine report usage; none if the client asks for it too."""
    options = document.get("stream_options") or {}
    if options.get("include_usage") is True:
        return {}
    return {"stream_options": {**options, "include_usage": True}}


def splice(body: bytes, document: Mapping[str, Any], fields: Mapping[str, Any]) -> bytes:
    """The JSON object `document` with `fields` set over it.

    `body` is the same object as its client wrote it, or empty. New fields are put in at its head,
    so that all the rest reaches the engine untouched; only where one replaces a field of the
    client's is the object written anew.
    """
    if not body or not fields.keys().isdisjoint(document):
        return msgspec.json.encode({**document, **fields})
    if not fields:
        return body
    head = msgspec.json.encode(fields)[:-1]
    return head + (b"," if document else b"") + body[body.index(b"{") + 1 :]
