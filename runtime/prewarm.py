"""How a session that pauses gets its cache to another replica: carried there through a folder
that both share, or computed there ahead of its next turn."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from sessile.errors import ReplicaError, ReplicaRefused
from sessile.relay import events
from sessile.router.engine import Steps, Usage
from sessile.router.policy import Ask
from sessile.router.replica import Replica
from sessile.sessions.record import Binding, SessionKey

_STEP_TIMEOUT_S = 30.0
LAST = 10
"""A priority behind those of all turns."""
# What would make more of a request than a prefill, or contradict its one token.
_DROPPED = ("max_completion_tokens", "min_tokens", "n", "best_of", "logprobs", "top_logprobs")


class Kept(msgspec.Struct):
    """The last turn of a session that pauses: as it was `placed`, where the session is bound now,
    how long its prompt was, and what went upstream, as bytes or, where the router wrote it itself,
    as a document."""

    key: SessionKey
    placed: Ask
    binding: Binding
    prompt_tokens: int
    path: str
    body: bytes | dict[str, Any]
    size: int

    @property
    def home(self) -> tuple[str, str]:
        """The replica and incarnation that it is bound to."""
        return self.binding.replica, self.binding.incarnation

    def ask(self) -> Ask:
        """How the session's next turn would be placed."""
        return msgspec.structs.replace(
            self.placed, bound=self.binding, prompt_tokens=self.prompt_tokens, near=None,
            claimed=None,
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """What went upstream."""
        if isinstance(self.body, bytes):
            return msgspec.json.decode(self.body, type=dict[str, Any])
        return self.body


def one_token(document: Mapping[str, Any]) -> dict[str, Any]:
    """What asks for the same prompt and one token of reply, which is how a prefill is asked for."""
    return {n: value for n, value in document.items() if n not in _DROPPED} | {"max_tokens": 1}


async def carry(
    path: str, document: Mapping[str, Any], old: Replica, new: Replica, file: str
) -> None:
    """Take the KV memory of a prompt along, in `file` of the folder that both replicas share, where
    there is one and the old one can run a prompt soon. What does not come along is computed anew.
    """
    folder = old.spec.folder
    if folder is None or folder != new.spec.folder or not _is_at_leisure(old):
        return
    steps = old.engine.carry(path, document, file)
    if steps is None:
        return
    with suppress(ReplicaError):
        try:
            await _take(steps[0], old)
            await _take(steps[1], new)
        finally:
            Path(folder, file).unlink(missing_ok=True)  # noqa: ASYNC240 - a moment


async def prewarm(kept: Kept, replica: Replica, turn: str, salt: str | None) -> Usage:
    """Run the prompt for one token; raises `ReplicaError`. Streamed, since that is how engines
    notice a hang-up."""
    engine = replica.engine
    body = one_token(kept.document())
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= engine.fields(turn=turn, session=kept.key.attribution, salt=salt)
    if kept.placed.base is not None:
        body |= engine.adapter_fields(kept.key.model)
    if replica.identity is not None:
        body |= engine.order(LAST, replica.identity)
    sent, headers = msgspec.json.encode(body), engine.headers(kept.key.attribution)
    async with await replica.upstream.open("POST", kept.path, sent, headers) as answer:
        said = b"".join([chunk async for chunk in answer])
    if answer.status >= 400:
        raise ReplicaRefused(f"replica {replica.id} answered {answer.status}")
    for event in events(said):
        if isinstance(event.get("usage"), Mapping):
            return engine.read_usage(event["usage"], event)
    return Usage()


def _is_at_leisure(replica: Replica) -> bool:
    """Whether the replica has a slot for one prompt more, or will have, since it drains."""
    slots = replica.outlook.slots
    if replica.state == "ready":
        return slots is None or replica.in_flight < slots
    return replica.state == "draining"


async def _take(steps: Steps, replica: Replica) -> None:
    """Make the calls, one after the other."""
    with suppress(StopIteration):
        call = next(steps)
        while True:
            call = steps.send(await replica.upstream.call(call, _STEP_TIMEOUT_S))
