"""What a request says of how it wants to be scheduled; pure. All of it may be left out.

Priority comes from `X-Priority`, OpenAI's `service_tier`, `nvext.agent_hints` or vLLM's
`agentic_context`; the last two also bring a deadline, the length of the reply and the program.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sessile.errors import InvalidRequest

_TIERS = {"priority": 0, "fast": 0, "auto": 1, "default": 1, "standard": 1, "flex": 2}
_MOST_PRIORITY = 9
HEADERS = frozenset((b"x-priority", b"x-dynamo-session-final"))
"""All that `read_hints` looks at."""


class Hints(msgspec.Struct, frozen=True, kw_only=True):
    """`priority` is a class, 0 the most urgent and 1 the usual one; times are in seconds."""

    priority: int = 1
    deadline_s: float | None = None
    output_tokens: int | None = None
    hold_s: float | None = None
    program: str | None = None
    final: bool = False


_NONE = Hints()
_EMPTY: Mapping[str, Any] = {}


def read_hints(headers: Iterable[tuple[bytes, bytes]], body: Mapping[str, Any]) -> Hints:
    """The hints of one request; raises `InvalidRequest` for a header that is no such hint. What a
    body field holds beyond a number is the engine's business."""
    priority: int | None = None
    final = False
    for name, value in headers:
        if name == b"x-priority":
            priority = _header(value)
        elif name == b"x-dynamo-session-final":
            final = value.strip().lower() in (b"1", b"true")
    tier = body.get("service_tier")
    asked = body.get("max_completion_tokens") or body.get("max_tokens")
    context = _inner(body, "vllm_xargs", "agentic_context")
    hints = _inner(body, "nvext", "agent_hints")
    if priority is None and not final and asked is None and not (tier or context or hints):
        return _NONE
    if priority is None:
        told = context.get("priority", hints.get("priority"))
        priority = _TIERS.get(tier, 1) if isinstance(tier, str) else 1
        if _is_number(told):
            priority = min(max(int(told), 0), _MOST_PRIORITY)
    expected = context.get("expected_output_length", hints.get("osl", asked))
    program = context.get("program_id")
    return Hints(
        priority=priority,
        deadline_s=_positive(context.get("deadline_seconds")),
        output_tokens=int(expected) if _positive(expected) else None,
        hold_s=_positive(context.get("kv_retention_ttl_seconds")),
        program=program if isinstance(program, str) and program else None,
        final=final,
    )


def _header(value: bytes) -> int:
    try:
        priority = int(value)
    except ValueError:
        priority = -1
    if not 0 <= priority <= _MOST_PRIORITY:
        raise InvalidRequest(
            f"X-Priority must be a whole number from 0 (most urgent) to {_MOST_PRIORITY}",
            param="x-priority",
        )
    return priority


def _inner(body: Mapping[str, Any], outer: str, name: str) -> Mapping[str, Any]:
    around = body.get(outer)
    found = around.get(name) if isinstance(around, dict) else None
    return found if isinstance(found, dict) else _EMPTY


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: Any) -> float | None:
    return float(value) if _is_number(value) and 0 < value < float("inf") else None
