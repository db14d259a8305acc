"""A response that a turn's cache use is compared with: found, and what comes of it.

What the comparison says is `cache_diagnosis`'.
"""

from collections.abc import Mapping
from typing import Any

from sessile.accounts import found_cached
from sessile.api.cache_diagnosis import Compared, Prompt, diagnose
from sessile.api.responses_items import to_messages
from sessile.errors import RequestError, StoreUnavailable
from sessile.router.engine import Usage
from sessile.sessions.store import Store
from sessile.sessions.transcript import Transcripts
from sessile.turn import Turn


async def find_compared(
    store: Store, transcripts: Transcripts, tenant: str, response: str
) -> Compared | None:
    """The stored response `response`, as it is to be compared; None where there is none of the
    tenant, or the store is away: a diagnosis never fails a turn."""
    try:
        record = await store.get_turn(tenant, response)
        if record is None or record.response is None:
            return None
        past: list[list[dict[str, Any]]] = []
        if record.parent is not None:
            for link in await transcripts.walk(tenant, record.parent):
                past += (link.input_items, link.output_items)
        prompt = to_messages(record.instructions, past, record.input_items)
        whole = to_messages(record.instructions, [*past, record.input_items], record.output_items)
    except (RequestError, StoreUnavailable):
        return None
    told = record.response
    effort = (told.get("reasoning") or {}).get("effort")
    model = record.receipt.variant if record.receipt is not None else None
    return Compared(
        Prompt(model or record.model, prompt, told.get("tools") or (), effort),
        whole[len(prompt) :],
        record.receipt,
    )


def diagnosed(turn: Turn, response: Mapping[str, Any], old: Compared | None) -> dict[str, Any]:
    """`prompt_cache_diagnostics` of a turn whose answer has been read to its end."""
    usage = Usage()
    body, replica = turn.usage_body, turn.replica
    if replica is not None and body is not None and isinstance(body.get("usage"), dict):
        usage = replica.engine.read_usage(body["usage"], body)
        cached = found_cached(usage, replica)
    else:
        cached = None
    effort = (response.get("reasoning") or {}).get("effort")
    messages = turn.request.document["messages"]
    new = Prompt(turn.key.model, messages, response.get("tools") or (), effort)
    return diagnose(old, new, turn.receipt, usage.prompt_tokens, cached)
