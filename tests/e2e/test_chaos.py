"""The chaos lab itself: all of its processes, and clients that hang up."""

from sessile.lab.chaos import run


async def test_clients_that_hang_up_lose_nothing() -> None:
    """Each comes back at either router until its turn has ended, and every token is checked."""
    steps = []
    row = await run("clients", 12, 1, lambda: steps.append(1))
    assert (row.completed, row.failed, row.wrong, row.left, row.lasting) == (12, {}, [], 0, 0)
    assert row.connections > 12 and len(steps) == 12
    assert row.replay is not None and row.resume is not None
    assert row.replay.times >= row.resume.times > 0
