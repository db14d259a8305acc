"""What is asked for in a turn, in the one form that every API brings it to."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sessile.sessions.hints import Hints
from sessile.sessions.identity import SessionClaims
from sessile.sessions.store import OnceKey


class TurnRequest(msgspec.Struct, kw_only=True):
    """One turn as an API hands it over: what goes upstream, and what is known of its session.

    `document` is the upstream JSON body, `body` the same as the client wrote it; either may be left
    out. `relay_usage` says that the client itself asked for the usage chunk. `stateful` is a turn
    that extends its session's stored conversation: it takes the turn lock, and its end is written
    before it is over. `turn` is its id, where the protocol has made one. `told` is text of the
    answer that its client has been given already: the turn goes on from there. `messages` is the
    request as its client gave it, where that was Anthropic's Messages: an engine that speaks it is
    sent this, though what comes of the turn is read as of a chat. `unheard`: nobody is told of the
    answer before it is whole, though its protocol reads it as a stream.
    """

    tenant: str
    path: str
    model: str
    claims: SessionClaims
    hints: Hints = Hints()
    body: bytes = b""
    document: dict[str, Any] = {}
    stream: bool = False
    relay_usage: bool = False
    idempotency_key: OnceKey | None = None
    stateful: bool = False
    turn: str | None = None
    told: str = ""
    messages: Mapping[str, Any] | None = None
    unheard: bool = False

    @property
    def can_continue(self) -> bool:
        """Whether a later request can belong to the same session, so that binding it pays."""
        claims = self.claims
        return self.stateful or claims.explicit is not None or claims.lineage is not None

    @property
    def is_last(self) -> bool:
        """Whether none will, as far as can be told."""
        return self.hints.final or not self.can_continue

    def serve_by(self, model: str) -> None:
        """Let `model` be what is asked for, where the client gave an alias of it."""
        if model != self.model:
            self.model = model
            self.document = {**self.document, "model": model}
            self.body = b""
