"""What the settings say of events holds for the log, whichever store keeps it."""

from typing import Any

import httpx2
import pytest

from scripted_engine import STOP
from sessile.app import make_store
from sessile.sessions.stream_log import LogLimits
from sessile.settings import Settings
from stored_responses import begun, ended, numbers, replayed


@pytest.mark.parametrize("url", [None, "redis://127.0.0.1:1"])
def test_each_limit_reaches_the_log(url: str | None) -> None:
    """An idempotency key stands for events, so they are kept as long as it at least."""
    limits = {"ttl_s": 700.0, "lease_s": 2.0, "most_bytes": 70_000, "most_events": 1100}
    kept = make_store(Settings(store={"url": url}, events=limits)).events.limits
    assert kept == LogLimits(**limits)
    keys = {"idempotency_ttl_s": 900.0}
    kept = make_store(Settings(store={"url": url}, events=limits, sessions=keys)).events.limits
    assert kept == LogLimits(**{**limits, "ttl_s": 900.0})


@pytest.mark.parametrize("kind", ["memory", "redis"])
@pytest.mark.parametrize(
    ("events", "pieces"),
    [({"most_events": 1000}, ["x"] * 1200), ({"most_bytes": 2**16}, ["x" * 30_000] * 4)],
)
async def test_the_oldest_events_over_a_limit_go(
    start: Any, request: Any, http: httpx2.AsyncClient, kind: str, events: Any, pieces: list[str]
) -> None:
    """A marker stands for them, and what comes behind it is whole up to the end."""
    store = request.getfixturevalue("store") if kind == "redis" else {}
    router = await start(store=store, events=events)
    router.engine.plays(*pieces, STOP)
    made = await begun(http, router)
    await ended(http, router, made["id"])
    writer = router.app.responses.turns.writer
    await router.until(lambda: writer.find("default", made["id"]) is None)
    gap, *kept = await replayed(http, router, made["id"])
    assert gap["type"] == "sessile.gap" and gap["first"] == 0
    assert numbers(kept) == list(range(gap["last"] + 1, gap["last"] + 1 + len(kept)))
    assert kept[-1]["type"] == "response.completed" and len(kept) <= 1000


async def test_the_events_of_a_turn_are_kept_as_long_as_is_set(
    start: Any, store: Any, redis_server: Any, http: httpx2.AsyncClient
) -> None:
    """From the last of them on, by Redis itself."""
    router = await start(store=store, events={"ttl_s": 50_000})
    made = await begun(http, router)
    await ended(http, router, made["id"])
    writer = router.app.responses.turns.writer
    await router.until(lambda: writer.find("default", made["id"]) is None)
    kept = [key for key in redis_server.ask("KEYS *").split() if key.endswith(":events")]
    left_s = [int(redis_server.ask(f"TTL {key}").strip(":")) for key in kept]
    assert len(left_s) == 1 and 40_000 < left_s[0] <= 50_000
