"""Replays agent sessions against a running router, open loop or so many at once, and says what they
met."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import msgspec

from sessile.errors import ReplicaError
from sessile.lab.workload import PlannedSession, PlannedTurn, ceiling
from sessile.relay import UsageRelay, events
from sessile.router.connection import Timeouts
from sessile.router.upstream import Upstream

_TIMEOUTS = Timeouts(connect_s=10.0, first_byte_s=900.0, idle_s=300.0)


class Sample(msgspec.Struct):
    """What one turn met. Times in seconds; `cached_tokens` is None where nothing reports them."""

    session: str
    first: bool
    began: float
    prompt: str
    ended: float = 0.0
    replica: str | None = None
    reason: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    completion_tokens: int = 0
    error: str | None = None


class Report(msgspec.Struct):
    """One pass, summed up. Rates are shares of 1, times are seconds; what nobody reported is None.

    `hit_rate` is of prompt tokens, as the engines count them (where one leaves the count out, it is
    zero, if others are told); `ceiling` is of prompt characters. `session_s` is the mean time from
    a session's first request to its last answer.
    """

    name: str
    turns: int
    errors: int
    hit_rate: float | None
    ceiling: float
    hit_of_ceiling: float | None
    ttft_p50: float | None
    ttft_p90: float | None
    ttft_p99: float | None
    later_ttft_p50: float | None
    later_ttft_p90: float | None
    later_ttft_p99: float | None
    tpot_p50: float | None
    tpot_p90: float | None
    session_s: float | None
    output_tokens_per_s: float
    wall_s: float
    per_replica: dict[str, int]
    first_error: str | None = None


async def replay(
    urls: Sequence[str],
    model: str,
    sessions: Sequence[PlannedSession],
    *,
    max_tokens: int,
    lineage: bool,
    key: str | None,
    done: Callable[[], None],
    at_once: int | None = None,
) -> list[Sample]:
    """Run every session at its time, whatever the others are at, or `at_once` of them, the next one
    when one has ended; one sample a turn.

    The turns of a session go to the servers at `urls` in turn. `lineage` names no session, so that
    the router has to tell by the messages. `done` is called after each turn.
    """
    upstreams = [Upstream(url, _TIMEOUTS) for url in urls]
    began = time.monotonic()
    samples: list[Sample] = []
    places = asyncio.Semaphore(at_once or len(sessions) or 1)

    async def one(session: PlannedSession, start: int) -> None:
        if at_once is None:
            await asyncio.sleep(max(0.0, began + session.start_s - time.monotonic()))
        async with places:
            await turns_of(session, start)

    async def turns_of(session: PlannedSession, start: int) -> None:
        for number, turn in enumerate(session.turns):
            await asyncio.sleep(turn.think_s)
            sample = Sample(session.id, number == 0, time.monotonic() - began, turn.text)
            samples.append(sample)
            name = None if lineage else session.id
            upstream = upstreams[(start + number) % len(upstreams)]
            await _ask(upstream, model, turn, name, max_tokens, key, sample)
            sample.ended = time.monotonic() - began
            done()

    try:
        async with asyncio.TaskGroup() as group:
            for start, session in enumerate(sessions):
                group.create_task(one(session, start))
    finally:
        await asyncio.gather(*(upstream.aclose() for upstream in upstreams))
    return samples


async def _ask(
    upstream: Upstream, model: str, turn: PlannedTurn, session: str | None, max_tokens: int,
    key: str | None, sample: Sample,
) -> None:  # fmt: skip
    body: dict[str, Any] = {
        "model": model,
        "messages": turn.messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = [(b"x-session-id", session.encode())] if session else []
    if key:
        headers.append((b"authorization", b"Bearer " + key.encode()))
    began = time.monotonic()
    first = last = None
    relay, ended = UsageRelay(relay_usage=True), False
    try:
        async with await upstream.open(
            "POST", "/v1/chat/completions", msgspec.json.encode(body), headers
        ) as response:
            sample.replica = response.headers.get(b"x-sessile-replica", b"?").decode()
            sample.reason = response.headers.get(b"x-sessile-reason", b"?").decode()
            if response.status != 200:
                said = b"".join([chunk async for chunk in response])
                sample.error = f"{response.status} {said[:200].decode('utf-8', 'replace')}"
                return
            async for chunk in response:
                last = time.monotonic()
                first = first or last
                whole = relay.feed(chunk)
                ended = ended or b"[DONE]" in whole
                if b'"error"' in whole:
                    broke = next((e["error"] for e in events(whole) if "error" in e), None)
                    sample.error = sample.error or (str(broke) if broke else None)
    except ReplicaError as error:
        sample.error = error.message
        return
    if not ended:
        sample.error = sample.error or "the stream ended early"
    usage = (relay.usage_body or {}).get("usage") or {}
    sample.prompt_tokens = usage.get("prompt_tokens") or 0
    sample.completion_tokens = usage.get("completion_tokens") or 0
    sample.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if first is not None and last is not None:
        sample.ttft_s = first - began
        if sample.completion_tokens > 1:
            sample.tpot_s = (last - first) / (sample.completion_tokens - 1)


def report(name: str, samples: Sequence[Sample], wall_s: float) -> Report:
    """Sum up one pass; its ceiling is computed from the same prompts in the order of sending."""
    good = [sample for sample in samples if sample.error is None]
    prompts = [s.prompt for s in sorted(samples, key=lambda s: s.began)]
    top = ceiling(prompts)
    told = any(s.cached_tokens is not None for s in good)
    prompt_tokens = sum(s.prompt_tokens for s in good)
    cached_tokens = sum(s.cached_tokens or 0 for s in good)
    hit = cached_tokens / prompt_tokens if prompt_tokens and told else None
    spans: dict[str, tuple[float, float]] = {}
    for s in samples:
        first, _ = spans.get(s.session, (s.began, 0.0))
        spans[s.session] = (min(first, s.began), s.ended)
    ttft = [s.ttft_s for s in good if s.ttft_s is not None]
    later = [s.ttft_s for s in good if s.ttft_s is not None and not s.first]
    tpot = [s.tpot_s for s in good if s.tpot_s is not None]
    return Report(
        name=name,
        turns=len(samples),
        errors=len(samples) - len(good),
        hit_rate=hit,
        ceiling=top,
        hit_of_ceiling=hit / top if top and hit is not None else None,
        ttft_p50=quantile(ttft, 0.5),
        ttft_p90=quantile(ttft, 0.9),
        ttft_p99=quantile(ttft, 0.99),
        later_ttft_p50=quantile(later, 0.5),
        later_ttft_p90=quantile(later, 0.9),
        later_ttft_p99=quantile(later, 0.99),
        tpot_p50=quantile(tpot, 0.5),
        tpot_p90=quantile(tpot, 0.9),
        session_s=fmean(end - start for start, end in spans.values()) if spans else None,
        output_tokens_per_s=sum(s.completion_tokens for s in good) / wall_s,
        wall_s=wall_s,
        per_replica=dict(sorted(Counter(s.replica or "?" for s in samples).items())),
        first_error=next((s.error for s in samples if s.error), None),
    )


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of them lie (nearest rank); None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
