"""What a Responses request says of the cache: `prompt_cache_options` and `generate`. Pure.

Engines keep every prefix, and charge nothing for it: `mode` and breakpoints are taken and change
nothing. `ttl` becomes the session's KV lease.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from sessile.errors import InvalidRequest

_WHERE = "prompt_cache_options"
_MODES = ("implicit", "explicit")
_TTL_S = {"30m": 1800.0, "12h": 12 * 3600.0}
_NAMES = ("mode", "prewarm", "ttl", "comparison_response_id")


class CacheOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`generate` is False for a turn that only computes its prompt, `comparison` the response that
    its cache use is to be compared with."""

    generate: bool = True
    mode: str = "implicit"
    ttl: str | None = None
    comparison: str | None = None

    @property
    def hold_s(self) -> float | None:
        """How long the session's KV memory is to be held after the turn, in seconds."""
        return _TTL_S[self.ttl] if self.ttl is not None else None

    def told(self) -> dict[str, Any] | None:
        """What was applied, as the response tells it; None where nothing was asked for: the API
        has no word for a lifetime that is learned."""
        if self.ttl is None:
            return None
        applied = {"mode": self.mode, "ttl": self.ttl}
        if self.comparison is not None:
            applied["comparison_response_id"] = self.comparison
        return applied


def read_cache_options(body: Mapping[str, Any]) -> CacheOptions:
    """The options in `body`; raises `InvalidRequest` with the field's name."""
    generate = body.get("generate")
    if not isinstance(generate, bool | None):
        raise InvalidRequest("generate must be true or false", param="generate")
    given = body.get(_WHERE)
    if given is None:
        return CacheOptions(generate=generate is not False)
    if not isinstance(given, dict):
        raise InvalidRequest(f"{_WHERE} must be an object", param=_WHERE)
    for name in given:
        if name not in _NAMES:
            raise InvalidRequest(f"{_WHERE} has no {name}", param=f"{_WHERE}.{name}")
    prewarm = given.get("prewarm")
    if not isinstance(prewarm, bool | None):
        raise InvalidRequest(f"{_WHERE}.prewarm must be true or false", param=f"{_WHERE}.prewarm")
    comparison = given.get("comparison_response_id")
    if comparison is not None and (not isinstance(comparison, str) or not comparison):
        name = f"{_WHERE}.comparison_response_id"
        raise InvalidRequest(f"{name} must be a non-empty string", param=name)
    return CacheOptions(
        generate=generate is not False and not prewarm,
        mode=_one_of(given, "mode", _MODES) or "implicit",
        ttl=_one_of(given, "ttl", tuple(_TTL_S)),
        comparison=comparison,
    )


def _one_of(given: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is None or value in allowed:
        return value
    where = f"{_WHERE}.{name}"
    raise InvalidRequest(f"{where} must be {' or '.join(allowed)}", param=where)
