"""What came of a turn: its receipt filled in from the engine's usage, and what is stored of it."""

from typing import Any

import msgspec

from sessile.relay import events, read_reply
from sessile.router.engine import Usage
from sessile.router.replica import Replica
from sessile.sessions.record import TurnRecord
from sessile.sessions.store import TurnEnd
from sessile.turn import Turn

_OBJECT = msgspec.json.Decoder(dict[str, Any])


def settle(turn: Turn, replica: Replica) -> str | None:
    """Fill in the receipt of a turn that was answered, and count it at its replica.

    Returns the lineage key after the turn, where the session was not named and can only be told
    by its messages.
    """
    receipt = turn.receipt
    assert turn.first_at is not None
    receipt.ttft_s = turn.first_at - turn.began
    if turn.reads_stream:
        receipt.replica_ttft_s = turn.first_at - turn.sent_at
    told = turn.usage_body
    plain = None
    if not turn.streams and turn.whole and turn.status < 400:
        told = plain = _object(turn.kept())
        turn.waits_for = called(plain) if plain is not None else ""
    usage = Usage()
    if told is not None and isinstance(told.get("usage"), dict):
        usage = replica.engine.read_usage(told["usage"], told)
    receipt.prompt_tokens = usage.prompt_tokens
    receipt.completion_tokens = usage.completion_tokens
    receipt.cached_tokens = cached = found_cached(usage, replica)
    made = usage.completion_tokens
    if replica.speculates and usage.acceptance_length is not None:
        receipt.acceptance_length = usage.acceptance_length
        replica.accepted(usage.acceptance_length)
    if turn.reads_stream and not receipt.continued and made is not None and made > 1:
        receipt.tpot_s = (turn.last_at - turn.first_at) / (made - 1)
    replica.turns += 1
    replica.completion_tokens += usage.completion_tokens or 0
    replica.predicted_tokens += receipt.predicted_cached_tokens or 0
    replica.prompt_tokens += usage.prompt_tokens or 0
    if usage.prompt_tokens is not None and cached is not None:
        replica.judged_tokens += usage.prompt_tokens
        replica.cached_tokens += cached
    lineage = turn.request.claims.lineage
    if lineage is None or receipt.outcome != "ok":
        return None
    bodies = [plain] if plain is not None else list(events(turn.kept()))
    reply = read_reply(bodies)
    return lineage.after(reply) if reply is not None else None


def found_cached(usage: Usage, replica: Replica) -> int | None:
    """What the engine found in its cache. SGLang and vLLM leave the count out where it is zero: of
    an engine that has given one before, none means that."""
    if usage.cached_tokens is not None:
        replica.counts_cached = True
    elif usage.prompt_tokens is not None and replica.counts_cached:
        return 0
    return usage.cached_tokens


def called(answer: dict[str, Any]) -> str:
    """The name of the first tool that a plain answer calls; "" without one."""
    try:
        return str(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"])
    except (KeyError, IndexError, TypeError):
        return ""


def written(turn: Turn, step: str | None) -> tuple[TurnEnd, TurnRecord]:
    """What the store is given at the end of a turn; `step` is the lineage key after it."""
    receipt, key, script = turn.receipt, turn.key, turn.transcript
    end = TurnEnd(
        key=key,
        turn=turn.id,
        binding=turn.binding if receipt.outcome == "ok" else None,
        fence=turn.fence,
        stateful=script is not None,
        prompt_tokens=receipt.prompt_tokens,
        cached_tokens=receipt.cached_tokens,
        completion_tokens=receipt.completion_tokens,
        parent=turn.request.claims.parent,
        lineage=(step,) if step is not None else (),
        served=turn.served,
    )
    record = TurnRecord(
        turn=turn.id, tenant=key.tenant, session=key.session, model=receipt.model, receipt=receipt
    )
    if script is not None:
        record.parent = script.parent
        record.instructions = script.instructions
        record.input_items = script.input_items
        record.output_items = script.output_items
        record.response = script.response
    return end, record


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        return _OBJECT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
