"""The measurement of what KV events cost measures something."""

from sessile.lab.feed_cost import measure


async def test_every_event_arrives_and_costs_something() -> None:
    """Its publisher is another process; the tree holds what that one stored."""
    cost = await measure(events=2000, rate=20_000, run=2, batch=10)
    assert (cost.blocks, cost.events) == (2 * 1999 + 1, 2000)
    assert cost.cpu_ms_per_10k_events > 0 and cost.events_per_s > 0
