"""A turn runs once: a repeated idempotency key is given the first one's answer."""

import asyncio
import logging
import time

from sessile.errors import KeyReused, SessionBusy, StoreUnavailable
from sessile.sessions.store import OnceKey, Running, Store, StoredResult
from sessile.turn import Turn

log = logging.getLogger("sessile.flow")


async def begin_once(store: Store, turn: Turn, wait_s: float) -> bool:
    """Whether the turn's key has been answered before; the turn then gives that answer.

    Waits for a turn that runs under the key now; raises `SessionBusy` after `wait_s`, and
    `KeyReused` where something else was asked under the key. Without the store there is no
    memory of earlier tries: the turn runs.
    """
    request = turn.request
    assert request.idempotency_key is not None
    began = time.monotonic()
    pause_s = 0.02
    while True:
        try:
            found = await store.begin_once(request.tenant, request.idempotency_key, turn.id)
        except StoreUnavailable:
            request.idempotency_key = None
            return False
        if found is None:
            return False
        check_same(request.idempotency_key, found)
        if isinstance(found, StoredResult):
            turn.replay(found)
            return True
        if time.monotonic() - began > wait_s:
            raise SessionBusy(
                f"turn {found.turn} with the same idempotency key is still running",
                retry_after_s=1.0,
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.25)


def check_same(once: OnceKey, found: Running | StoredResult) -> None:
    """Raise `KeyReused` unless the same was asked under the key before, or that is not known."""
    if once.asked and found.asked and once.asked != found.asked:
        raise KeyReused(
            f"the idempotency key {once.key!r} was used for another request; a new request "
            "takes a new key", param="idempotency-key",
        )  # fmt: skip


async def end_once(store: Store, turn: Turn) -> None:
    """Keep a good answer under the key; after any other, free the key for another try."""
    once = turn.request.idempotency_key
    assert once is not None
    result = None
    if turn.receipt.outcome == "ok" and (body := turn.kept()):
        kind = turn.content_type.decode("latin-1")
        result = StoredResult(turn.id, turn.status, kind, body, once.asked)
    try:
        await store.end_once(turn.request.tenant, once.key, result)
    except StoreUnavailable as error:
        log.warning("idempotency key was not settled turn=%s why=%r", turn.id, error.message)
