"""What is replayed in virtual time."""

import gzip
import json
from pathlib import Path

import pytest

from sessile.errors import InvalidRequest
from sessile.lab.sim_load import (
    BLOCK_TOKENS,
    Load,
    Shape,
    SimSession,
    agent_load,
    is_trace,
    trace_load,
    trajectory_load,
)


def everyone(load: Load) -> list[SimSession]:
    """Its sessions, and those that they spawn."""
    found = []
    for session in load.sessions():
        found.append(session)
        found += [child for turn in session.turns for child in turn.spawns]
    return found


def run(*contents: str) -> str:
    """A trajectory of a system prompt, and then user and assistant in turn."""
    roles = ["system", *["user", "assistant"] * len(contents)]
    messages = [
        {"role": role, "content": text} for role, text in zip(roles, contents, strict=False)
    ]
    return json.dumps({"id": "run", "messages": messages})


def test_each_turn_goes_on_from_the_one_before() -> None:
    """A prompt begins with the prompt and the reply before it, and grows."""
    for session in everyone(agent_load(Shape(sessions=30), 1)):
        assert session.turns
        for before, turn in zip(session.turns, session.turns[1:], strict=False):
            assert turn.blocks[: len(before.after)] == before.after
            assert turn.prompt_tokens > before.prompt_tokens + before.output_tokens
            assert turn.gap_s > 0
        for turn in session.turns:
            assert len(turn.blocks) == turn.prompt_tokens // BLOCK_TOKENS
            assert len(turn.after) == (turn.prompt_tokens + turn.output_tokens) // BLOCK_TOKENS
            assert turn.prompt_tokens + turn.output_tokens <= 32_000


def test_sessions_share_their_system_prompt_and_nothing_else() -> None:
    """As many beginnings as there are system prompts; after them all go their own way."""
    found = list(agent_load(Shape(sessions=50, systems=3, fan_out=0.0), 1).sessions())
    shared = 2_000 // BLOCK_TOKENS
    assert len({session.turns[0].blocks[:shared] for session in found}) == 3
    last = [session.turns[-1].blocks[-1] for session in found]
    assert len(set(last)) == 50


def test_children_begin_with_their_parent_s_turn() -> None:
    """They share its prompt and reply, and then differ from each other."""
    parents = [s for s in agent_load(Shape(sessions=100), 1).sessions()
               if any(turn.spawns for turn in s.turns)]  # fmt: skip
    assert parents
    for parent in parents:
        for turn in parent.turns:
            firsts = [child.turns[0].blocks for child in turn.spawns]
            assert all(blocks[: len(turn.after)] == turn.after for blocks in firsts)
            assert len({child.turns[-1].after for child in turn.spawns}) == len(turn.spawns)
            assert all(child.parent == parent.id for child in turn.spawns)


def test_a_seed_gives_the_same_load_each_time_it_is_made() -> None:
    """In any process, and another with another seed."""
    load = agent_load(Shape(sessions=20), 7)
    first, again = list(load.sessions()), list(load.sessions())
    assert first == again and len(first) == load.count == 20
    assert first != list(agent_load(Shape(sessions=20), 8).sessions())


@pytest.mark.parametrize("arrival", ["poisson", "even", "bursts"])
def test_arrivals_come_at_the_rate(arrival: str) -> None:
    """In the mean, and in order."""
    shape = Shape(sessions=800, rate=2.0, arrival=arrival)  # type: ignore[arg-type]
    starts = [session.start_s for session in agent_load(shape, 3).sessions()]
    assert starts == sorted(starts) and 300 < starts[-1] < 500
    together = sum(a == b for a, b in zip(starts, starts[1:], strict=False))
    assert together == (700 if arrival == "bursts" else 0)


def test_the_working_set_counts_each_block_once() -> None:
    """However often it is used."""
    load = agent_load(Shape(sessions=10, fan_out=0.0), 1)
    blocks = {key for session in load.sessions() for turn in session.turns for key in turn.after}
    assert load.working_set_tokens() == len(blocks) * BLOCK_TOKENS


def test_a_recorded_run_is_repeated_as_other_tasks(tmp_path: Path) -> None:
    """Only the system prompt is shared; a turn for each reply; gzip or not."""
    path = tmp_path / "runs.jsonl.gz"
    path.write_bytes(gzip.compress(run("s" * 4000, "u" * 2000, "a", "u" * 900, "b").encode()))
    found = list(trajectory_load(path, Shape(sessions=3, fan_out=0.0), 1).sessions())
    assert [len(session.turns) for session in found] == [2, 2, 2]
    system = 1025 // BLOCK_TOKENS
    one, other = found[0].turns[0].blocks, found[1].turns[0].blocks
    assert one[:system] == other[:system] and one[-1] != other[-1]


def test_recorded_runs_fan_out(tmp_path: Path) -> None:
    """Children go on with the rest of the run, each with other tool output."""
    path = tmp_path / "runs.jsonl"
    path.write_text(run("s" * 4000, *(letter * 800 for letter in "uauauaua")))
    shape = Shape(sessions=5, fan_out=1.0, children=(2, 3))
    parents = list(trajectory_load(path, shape, 1).sessions())
    spawning = [turn for parent in parents for turn in parent.turns if turn.spawns]
    assert spawning
    for turn in spawning:
        firsts = {child.turns[0].blocks for child in turn.spawns}
        assert len(firsts) == len(turn.spawns) >= 2
        assert all(blocks[: len(turn.after)] == turn.after for blocks in firsts)


def test_a_run_that_does_not_fit_is_cut_or_refused(tmp_path: Path) -> None:
    """It ends before the first turn that is too long."""
    path = tmp_path / "runs.jsonl"
    path.write_text(run("s" * 1000, "u", "a", "u" * 20_000, "b"))
    [session] = trajectory_load(path, Shape(sessions=1, context_tokens=2_000), 1).sessions()
    assert len(session.turns) == 1
    with pytest.raises(InvalidRequest, match="no trajectory"):
        trajectory_load(path, Shape(context_tokens=100), 1)


def test_a_trace_is_read_with_its_times(tmp_path: Path) -> None:
    """Milliseconds, divided by the speed; the last, partial block belongs to nobody."""
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 2000, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 0, "input_length": 512, "output_length": 0, "hash_ids": [1]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert is_trace(path)
    load = trace_load(path, speed=2.0)
    early, late = load.sessions()
    assert (early.start_s, late.start_s) == (0.0, 1.0)
    assert late.turns[0].blocks == (1, 2) and early.turns[0].output_tokens == 1
    assert (load.count, load.block_tokens, load.working_set_tokens()) == (2, 512, 1024)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{", "trace.jsonl:1 is not JSON"),
        ("[]", "neither"),
        ('{"x": 1}', "neither"),
        ('{"hash_ids": [1]}', "trace.jsonl:1 is not a line"),
    ],
)
def test_a_file_that_is_neither_is_named(tmp_path: Path, text: str, said: str) -> None:
    """With its line, and what it should be."""
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=said):
        assert is_trace(path)
        trace_load(path)


def test_no_file_is_one_sentence(tmp_path: Path) -> None:
    """And one that is no gzip, too."""
    (tmp_path / "x.gz").write_text("plain")
    for name in ("gone.jsonl", "x.gz"):
        with pytest.raises(InvalidRequest, match="cannot read"):
            is_trace(tmp_path / name)
