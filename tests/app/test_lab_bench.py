"""A replay meets what the replica does, good and bad."""

import pytest

from sessile.lab.bench import Sample, replay, report
from sessile.lab.fake_replica import FakeReplica, Fault, serve_fake
from sessile.lab.workload import PlannedSession, generate_trajectories, plan


def sessions(count: int) -> list[PlannedSession]:
    """Short generated sessions that start at once and do not pause."""
    return plan(
        generate_trajectories(count, 1),
        context_tokens=8192, max_tokens=4, rate=1000.0, think_s=0, seed=1,
    )  # fmt: skip


async def replayed(
    replica: FakeReplica, count: int = 1, lineage: bool = False, at_once: int | None = None
) -> list[Sample]:
    """What the turns of `count` sessions met at `replica`."""
    return await replay(
        [replica.url], "fake", sessions(count), max_tokens=4, lineage=lineage, key="secret",
        done=lambda: None, at_once=at_once,
    )  # fmt: skip


async def test_every_turn_is_sent_with_its_session_and_its_history() -> None:
    """The prompts are the recorded ones, in order, under the session's id; tokens are counted."""
    async with serve_fake() as replica:
        samples = await replayed(replica, 2)
        by_session = {
            session.id: [seen.body["messages"] for seen in replica.seen
                         if seen.headers["x-session-id"] == session.id]
            for session in sessions(2)
        }  # fmt: skip
    assert by_session == {s.id: [turn.messages for turn in s.turns] for s in sessions(2)}
    assert replica.seen[0].headers["authorization"] == "Bearer secret"
    assert all(s.error is None and s.completion_tokens == 4 and s.ttft_s for s in samples)


async def test_one_endless_cache_comes_close_to_the_ceiling() -> None:
    """A replica that forgets nothing has about the hit rate that is computed for one."""
    async with serve_fake() as replica:
        summed = report("x", await replayed(replica, 3), wall_s=1.0)
    assert summed.errors == 0
    assert summed.hit_rate == pytest.approx(summed.ceiling, abs=0.05)


async def test_so_many_sessions_run_at_once() -> None:
    """The next one begins when one has ended."""
    async with serve_fake(always=Fault(pause_s=0.001)) as replica:
        samples = await replayed(replica, 4, at_once=2)
    spans = [
        (min(s.began for s in mine), max(s.ended for s in mine))
        for session in sessions(4)
        if (mine := [s for s in samples if s.session == session.id])
    ]
    assert len(spans) == 4
    for start, _ in spans:
        assert sum(began <= start < ended for began, ended in spans) <= 2


async def test_lineage_names_no_session() -> None:
    """The router then has to tell by the messages."""
    async with serve_fake() as replica:
        await replayed(replica, lineage=True)
    assert all("x-session-id" not in seen.headers for seen in replica.seen)


@pytest.mark.parametrize(
    "fault",
    [Fault(status=503), Fault(drop_after=0), Fault(drop_after=2, pause_s=0.01)],
    ids=["refused", "lost before the first byte", "broken off"],
)
async def test_a_failed_turn_is_counted_and_the_session_goes_on(fault: Fault) -> None:
    """Exactly the turn that failed is an error, whichever way it failed."""
    async with serve_fake() as replica:
        replica.fail(fault)
        samples = await replayed(replica)
    assert [sample.error is not None for sample in samples] == [True] + [False] * (len(samples) - 1)
