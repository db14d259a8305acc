"""Why a turn found as much in the cache as it did, compared with an earlier response. Pure.

Where the two prompts part tells what could be reused; where the turn ran, and what its engine
says, tells whether that was so. The API has words for prompts that part (`cache_miss` with a
reason) and for those that do not (`cache_hit`); for memory that was lost it has none, which is
`unavailable`, and the reason is under `sessile` with all the rest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sessile.sessions.record import Receipt

_NOT_FOUND = {"type": "comparison_response_not_found"}
_ENOUGH = 0.9  # engines keep whole blocks, and compute the last token anew
_SLACK_TOKENS = 64

Message = Mapping[str, Any]
_encode = msgspec.json.Encoder().encode


class Prompt(msgspec.Struct, frozen=True):
    """What an engine is given, as far as it decides what can be reused; messages in their order."""

    model: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    effort: str | None = None


class Compared(msgspec.Struct, frozen=True):
    """The earlier response: its prompt, what it replied, and its receipt where there is one."""

    prompt: Prompt
    replied: Sequence[Message]
    receipt: Receipt | None


class Parting(msgspec.Struct, frozen=True):
    """Where two prompts part: `reason` in the API's words, None if the new one goes on from all of
    the old; `shared` is the share of the new prompt before that. `message` is the first that
    differs, and `character` where in its text."""

    reason: str | None
    shared: float
    message: int | None = None
    character: int | None = None


def part(old: Compared, new: Prompt) -> Parting:
    """Compare two prompts. Tools stand before all messages in what an engine is given."""
    if old.prompt.model != new.model:
        return Parting("model_changed", 0.0)
    if list(old.prompt.tools) != list(new.tools):
        return Parting("tools_changed", 0.0)
    if old.prompt.effort != new.effort:
        return Parting("reasoning_effort_changed", 0.0)
    before = [*old.prompt.messages, *old.replied]
    sizes = [len(_encode(message)) for message in new.messages]
    whole = max(1, sum(sizes) + len(_encode(list(new.tools))))
    same = 0
    for mine, theirs in zip(new.messages, before, strict=False):
        if mine != theirs:
            break
        same += 1
    shared = whole - sum(sizes[same:])
    character = None
    if same < len(before) and same < len(new.messages):
        character = _same_text(before[same], new.messages[same])
        shared += character or 0
    reason = "input_changed" if same < len(old.prompt.messages) else None
    apart = same < len(before) and same < len(new.messages)
    return Parting(reason, shared / whole, same if reason or apart else None, character)


def diagnose(
    old: Compared | None, new: Prompt, receipt: Receipt, prompt_tokens: int | None,
    cached_tokens: int | None,
) -> dict[str, Any]:  # fmt: skip
    """`prompt_cache_diagnostics` of a turn that ran as `receipt` says, with its engine's counts;
    `old` is None where the earlier response is not known."""
    if old is None:
        return dict(_NOT_FOUND)
    parting = part(old, new)
    shared = None if prompt_tokens is None else round(parting.shared * prompt_tokens)
    why = _why(old.receipt, receipt, shared, cached_tokens)
    ours: dict[str, Any] = {
        "why": parting.reason if why is None else why,
        "shared_tokens": shared,
        "cached_tokens": cached_tokens,
        "message": parting.message,
        "character": parting.character,
        "replica": receipt.replica,
        "comparison_replica": old.receipt.replica if old.receipt is not None else None,
    }
    if parting.reason is None:
        return {"type": "cache_hit" if why is None else "unavailable", "sessile": ours}
    if shared is None or prompt_tokens is None:
        return {"type": "unavailable", "sessile": ours}
    return {
        "type": "cache_miss",
        "reason": parting.reason,
        "cache_missed_tokens": prompt_tokens - shared,
        "comparison_reusable_tokens": shared,
        "sessile": ours,
    }


def _why(
    before: Receipt | None, now: Receipt, shared: int | None, cached: int | None
) -> str | None:
    """Why not all was reused that the prompts share; None: it was."""
    if shared is None or cached is None:
        return "not_reported"
    if cached >= _ENOUGH * shared or (cached and shared - cached <= _SLACK_TOKENS):
        return None
    if before is None or before.replica is None:
        return "unknown"
    if before.replica != now.replica:
        return "moved"
    if before.incarnation != now.incarnation:
        return "replica_restarted"
    return "evicted" if shared > _SLACK_TOKENS else "too_short"


def _same_text(one: Message, other: Message) -> int | None:
    """How many characters the texts of two messages have in common at their start; None where they
    are not texts of one role."""
    texts = (one.get("content"), other.get("content"))
    if one.get("role") != other.get("role"):
        return None
    mine, theirs = texts
    if not isinstance(mine, str) or not isinstance(theirs, str):
        return None
    same = 0
    for a, b in zip(mine, theirs, strict=False):
        if a != b:
            break
        same += 1
    return same
