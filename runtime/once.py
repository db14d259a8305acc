"""A turn runs once: a repeated idempotency key is given the first one's answer."""

import asyncio
import logging
import time

from sessile.errors import SessionBusy, StoreUnavailable
from sessile.sessions.store import Store, StoredResult
from sessile.turn import Turn

log = logging.getLogger("sessile.flow")


async def begin_once(store: Store, turn: Turn, wait_s: float) -> bool:
    """Whether the turn's key has been answered before; the turn then gives that answer.

    Waits for a turn that runs under the key now; raises `SessionBusy` after `wait_s`. Without the
    store there is no memory of earlier tries: the turn runs.
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
        if found is None or found == turn.id:  # which holds it already, if it was taken over
            return False
        if isinstance(found, StoredResult):
            turn.replay(found)
            return True
        if time.monotonic() - began > wait_s:
            raise SessionBusy(
                f"turn {found} with the same idempotency key is still running", retry_after_s=1.0
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.25)


async def end_once(store: Store, turn: Turn) -> None:
    """Keep a good answer under the key; after any other, free the key for another try."""
    key = turn.request.idempotency_key
    assert key is not None
    result = None
    if turn.receipt.outcome == "ok" and (body := turn.kept()):
        result = StoredResult(turn.id, turn.status, turn.content_type.decode("latin-1"), body)
    try:
        await store.end_once(turn.request.tenant, key, result)
    except StoreUnavailable as error:
        log.warning("idempotency key was not settled turn=%s why=%r", turn.id, error.message)
