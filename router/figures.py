"""What was counted of a variant's turns, so that two can be held side by side. Pure.

Times are counted by size, each class an eighth wider than the one below: so the counts of routers
add up, and a percentile of the sum is off by a sixteenth at most.
"""

from collections.abc import Iterable, Mapping
from math import ceil, log

import msgspec

from sessile.sessions.record import Receipt

_LEAST_S = 0.001
_STEP = 1.125
_NO_ERROR = frozenset({"ok", "client_gone", "steered", "turn_cancelled"})


class Figures(msgspec.Struct, array_like=True):
    """Counts of one variant at one router, or the sum of several. `refused` are turns that the
    engine answered with an error of the client's; `swapped` sessions came from another variant.
    `made_s` is how long `made_tokens` took from the first one on."""

    sessions: int = 0
    swapped: int = 0
    turns: int = 0
    errors: int = 0
    refused: int = 0
    judged_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    made_tokens: int = 0
    made_s: float = 0.0
    ttft: dict[int, int] = {}

    def count(self, receipt: Receipt) -> None:
        """A turn has ended."""
        self.turns += 1
        if receipt.outcome == "refused":
            self.refused += 1
        elif receipt.outcome not in _NO_ERROR:
            self.errors += 1
        made = receipt.completion_tokens or 0
        self.completion_tokens += made
        if receipt.prompt_tokens is not None and receipt.cached_tokens is not None:
            self.judged_tokens += receipt.prompt_tokens
            self.cached_tokens += receipt.cached_tokens
        if receipt.tpot_s is not None:
            self.made_tokens += made - 1
            self.made_s += receipt.tpot_s * (made - 1)
        if receipt.ttft_s is not None and receipt.outcome == "ok":
            place = _class(receipt.ttft_s)
            self.ttft[place] = self.ttft.get(place, 0) + 1

    def add(self, other: "Figures") -> None:
        """Count what another router did."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for place, count in other.ttft.items():
            self.ttft[place] = self.ttft.get(place, 0) + count

    def ttft_s(self, share: float) -> float | None:
        """The time within which so many of the first tokens came; None before there were any."""
        left = ceil(share * sum(self.ttft.values()))
        for place in sorted(self.ttft):
            left -= self.ttft[place]
            if left <= 0:
                return _middle(place)
        return None

    @property
    def hit_rate(self) -> float | None:
        """Prompt tokens found in the cache, of those of which it is known."""
        return self.cached_tokens / self.judged_tokens if self.judged_tokens else None

    @property
    def tokens_per_s(self) -> float | None:
        """How fast an answer is written once it has begun."""
        return self.made_tokens / self.made_s if self.made_s else None


_NUMBERS = tuple(name for name in Figures.__struct_fields__ if name != "ttft")

ByVariant = dict[str, Figures]


def total(parts: Iterable[Mapping[str, Figures]]) -> ByVariant:
    """The counts of several routers, added up by variant."""
    found: ByVariant = {}
    for part in parts:
        for variant, figures in part.items():
            found.setdefault(variant, Figures()).add(figures)
    return found


def _class(seconds: float) -> int:
    return max(0, ceil(log(max(seconds, _LEAST_S) / _LEAST_S, _STEP)))


def _middle(place: int) -> float:
    return _LEAST_S * _STEP ** (place - 0.5) if place else _LEAST_S
