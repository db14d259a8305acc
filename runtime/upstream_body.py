"""What an engine is sent: the client's bytes, with the fields that the router adds to them."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sessile.router.engine import Own
from sessile.router.replica import Replica
from sessile.turn import Turn


class UpstreamBody:
    """Makes the bodies of one router, for `Sender`; `salt` is what separates a tenant's cache."""

    def __init__(self, salt: Callable[[str], str | None]) -> None:
        self._salt = salt

    def of(self, turn: Turn, replica: Replica, document: Mapping[str, Any] | None = None) -> bytes:
        """What is sent: the turn's request, or the `document` that goes on with its answer."""
        request, fields = turn.request, self._fields(turn, replica)
        if request.stream:
            fields |= with_usage(request.document)
        elif replica.engine.folds and request.path != "/v1/embeddings":
            fields |= with_usage(request.document) | {"stream": True}
        if document is not None:
            return splice(b"", document, fields)
        fields |= replica.engine.call_fields(request.document)
        return splice(request.body, request.document, fields)

    def own(self, turn: Turn, replica: Replica) -> Own | None:
        """The turn's request in the form that its client gave it, where the replica takes that and
        all that is to be set on it; None where it is to be sent as a chat request."""
        request = turn.request
        if request.messages is None or request.told or replica.identity is None:
            return None
        body = {**request.messages, "model": request.model}
        return replica.engine.messages(body, self._fields(turn, replica), replica.identity)

    def _fields(self, turn: Turn, replica: Replica) -> dict[str, Any]:
        """What the router sets on a turn's request."""
        request, tenant = turn.request, turn.key.tenant
        fields = dict(
            replica.engine.fields(
                turn=turn.request_id,
                session=turn.attribution,
                salt=self._salt(tenant),
            )
        )
        if replica.identity is not None and replica.identity.orders is not None:
            fields |= replica.engine.order(request.hints.priority, replica.identity)
        if replica.speculates:
            fields |= replica.engine.acceptance_fields()
        if turn.adapter is not None:
            fields |= replica.engine.adapter_fields(turn.adapter)
        return fields


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
