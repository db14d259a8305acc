"""What a simulated run is measured by."""

from collections.abc import Sequence
from statistics import median

import msgspec

from sessile.lab.bench import quantile
from sessile.lab.sim_engine import Request, SimEngine


class Outcome(msgspec.Struct, frozen=True):
    """What one policy made of a load. A turn's TTFT counts from when its agent first asked, with
    all waiting and sending again; `failed` are turns that never came to an end. `computed_tokens`
    are those of prompts that an engine prefilled, `max_over_mean` is of turns by replica."""

    turns: int
    failed: int
    hit_rate: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    ttft_mean_s: float
    session_time_mean_s: float
    computed_tokens: int
    max_over_mean: float
    queued: int
    moved: int
    sent_again: int
    makespan_s: float
    prediction_error_p50: float | None


class Score:
    """The counts of one run. Every turn is counted once, however often it was sent."""

    def __init__(self) -> None:
        self.expected = 0
        self.queued = self.moved = self.sent_again = 0
        self.session_s: list[float] = []
        self._turns = 0
        self._prompt_tokens = self._cached_tokens = 0
        self._ttfts: list[float] = []
        self._errors: list[float] = []

    def first_token(self, ttft_s: float, predicted_s: float | None, actual_s: float) -> None:
        """A turn's first token has come; `actual_s` counts from when it was sent."""
        self._ttfts.append(ttft_s)
        if predicted_s is not None:
            self._errors.append(abs(predicted_s - actual_s) / max(actual_s, 1e-6))

    def ended(self, request: Request) -> None:
        """A turn has come to its end."""
        self._turns += 1
        self._prompt_tokens += request.prompt_tokens
        self._cached_tokens += request.cached_tokens

    def outcome(self, engines: Sequence[SimEngine], now: float) -> Outcome:
        """All of it in figures."""
        ttfts = sorted(self._ttfts)
        served = [engine.served for engine in engines]
        return Outcome(
            turns=self._turns,
            failed=self.expected - self._turns,
            hit_rate=self._cached_tokens / max(1, self._prompt_tokens),
            ttft_p50_s=quantile(ttfts, 0.5) or 0.0,
            ttft_p90_s=quantile(ttfts, 0.9) or 0.0,
            ttft_p99_s=quantile(ttfts, 0.99) or 0.0,
            ttft_mean_s=sum(ttfts) / max(1, len(ttfts)),
            session_time_mean_s=sum(self.session_s) / max(1, len(self.session_s)),
            computed_tokens=sum(engine.computed_tokens for engine in engines),
            max_over_mean=max(served) * len(served) / max(1, sum(served)),
            queued=self.queued,
            moved=self.moved,
            sent_again=self.sent_again,
            makespan_s=now,
            prediction_error_p50=quantile(self._errors, 0.5),
        )


def medians(outcomes: Sequence[Outcome]) -> Outcome:
    """The median of each figure over the seeds; a whole number stays one."""
    found: dict[str, float | int | None] = {}
    for name in Outcome.__struct_fields__:
        values = [value for o in outcomes if (value := getattr(o, name)) is not None]
        if not values:
            found[name] = None
            continue
        middle = median(values)
        found[name] = round(middle) if all(isinstance(v, int) for v in values) else middle
    return msgspec.convert(found, Outcome)
