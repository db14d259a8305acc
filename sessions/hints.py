"""What a request says of how it wants to be scheduled; pure. All of it may be left out.

Priority comes from `X-Priority`, OpenAI's `service_tier`, `nvext.agent_hints` or vLLM's
`agentic_context`; the last two also bring a deadline, the length of the reply and the program.
`X-Sessile-When-Busy` says what is to become of a turn whose session runs another.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import msgspec

from sessile.errors import InvalidRequest

_TIERS = {"priority": 0, "fast": 0, "auto": 1, "default": 1, "standard": 1, "flex": 2}
_MOST_PRIORITY = 9
_WHEN_BUSY = b"x-sessile-when-busy"
HEADERS = frozenset((b"x-priority", b"x-dynamo-session-final", _WHEN_BUSY))
"""All that `read_hints` looks at."""


WhenBusy = Literal["queue", "fork", "refuse"]


class Hints(msgspec.Struct, frozen=True, kw_only=True):
    """`priority` is a class, 0 the most urgent and 1 the usual one; times are in seconds. Without
    `when_busy` a turn that extends a stored conversation queues behind the one that runs, and one
    that carries its whole history runs beside it."""

    priority: int = 1
    deadline_s: float | None = None
    output_tokens: int | None = None
    hold_s: float | None = None
    program: str | None = None
    final: bool = False
    when_busy: WhenBusy | None = None

    def out_of_the_way(self) -> "Hints":
        """Of a turn that extends no conversation: it waits for no other, and none for it."""
        return self if self.when_busy is None else msgspec.structs.replace(self, when_busy=None)


_NONE = Hints()
_EMPTY: Mapping[str, Any] = {}


def read_hints(headers: Iterable[tuple[bytes, bytes]], body: Mapping[str, Any]) -> Hints:
    """The hints of one request; raises `InvalidRequest` for a header that is no such hint. What a
    body field holds beyond a number is the engine's business."""
    priority: int | None = None
    final = False
    when_busy: WhenBusy | None = None
    for name, value in headers:
        if name == b"x-priority":
            priority = _header(value)
        elif name == b"x-dynamo-session-final":
            final = value.strip().lower() in (b"1", b"true")
        elif name == _WHEN_BUSY:
            when_busy = _when_busy(value.decode("latin-1"))
    tier = body.get("service_tier")
    asked = body.get("max_completion_tokens") or body.get("max_tokens")
    context = _inner(body, "vllm_xargs", "agentic_context")
    hints = _inner(body, "nvext", "agent_hints")
    if priority is None and not (final or when_busy or tier or context or hints):
        most = _positive(asked) if asked is not None else None
        return _NONE if most is None else Hints(output_tokens=int(most))
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
        when_busy=when_busy,
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


def _when_busy(value: str) -> WhenBusy:
    for known in get_args(WhenBusy):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise InvalidRequest(
        "X-Sessile-When-Busy must be queue, fork or refuse", param="x-sessile-when-busy"
    )


def _inner(body: Mapping[str, Any], outer: str, name: str) -> Mapping[str, Any]:
    around = body.get(outer)
    found = around.get(name) if isinstance(around, dict) else None
    return found if isinstance(found, dict) else _EMPTY


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: Any) -> float | None:
    return float(value) if _is_number(value) and 0 < value < float("inf") else None
