"""What the simulator replays: made-up agents, recorded runs, traces of requests."""

import gzip
import json

import pytest

from sessile.errors import InvalidRequest
from sessile.lab.sim_load import Shape, agent_load, is_trace, trace_load, trajectory_load


def line(at=0, tokens=1200, output=10, hashes=(1, 2, 3)):
    """One request of a trace."""
    return json.dumps(
        {"timestamp": at, "input_length": tokens, "output_length": output, "hash_ids": hashes}
    )  # fmt: skip


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_trace_is_read(tmp_path, name):
    """Plain or gzipped: in the order of time, in seconds, full blocks only."""
    path = tmp_path / name
    text = "\n".join([line(4000), "", line(2000, hashes=[7, 8, 9])]).encode()
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert is_trace(path)
    load = trace_load(path, speed=2.0)
    first, second = load.sessions()
    assert (first.start_s, second.start_s) == (1.0, 2.0)
    assert first.turns[0].blocks == (7, 8) and first.turns[0].prompt_tokens == 1200
    assert load.count == 2 and load.working_set_tokens() == 4 * 512


def test_a_bad_line_is_named(tmp_path):
    """By file and number; a file that is empty, missing or something else says so."""
    path = tmp_path / "t.jsonl"
    path.write_text(line() + "\n\n{}\n")
    with pytest.raises(InvalidRequest, match=r"t\.jsonl:3 is not a line"):
        trace_load(path)
    path.write_text("{}\n")
    with pytest.raises(InvalidRequest, match=r"t\.jsonl:1 is neither"):
        is_trace(path)
    path.write_text("nonsense\n")
    with pytest.raises(InvalidRequest, match=r"t\.jsonl:1 is not JSON"):
        is_trace(path)
    path.write_text("")
    with pytest.raises(InvalidRequest, match="is empty"):
        is_trace(path)
    with pytest.raises(InvalidRequest, match="cannot read"):
        is_trace(tmp_path / "none.jsonl")


def every(session):
    """A session and all that it spawns."""
    yield session
    for turn in session.turns:
        for child in turn.spawns:
            yield from every(child)


def test_made_up_agents_are_the_seeds():
    """The same again for the same seed, others for another; a second call makes them anew."""
    load = agent_load(Shape(sessions=20), 1)
    first = list(load.sessions())
    assert first == list(load.sessions()) == list(agent_load(Shape(sessions=20), 1).sessions())
    assert first != list(agent_load(Shape(sessions=20), 2).sessions())
    assert len(first) == load.count == 20


def test_turns_extend_each_other_and_stay_in_the_context():
    """Each prompt begins with all of the turn before, and a child with its parent's."""
    shape = Shape(sessions=20, fan_out=1.0, context_tokens=8_000)
    for top in agent_load(shape, 3).sessions():
        for session in every(top):
            for before, after in zip(session.turns, session.turns[1:], strict=False):
                assert after.blocks[: len(before.after)] == before.after
            for turn in session.turns:
                assert turn.prompt_tokens + turn.output_tokens <= 8_000
                assert len(turn.blocks) == turn.prompt_tokens // 128
                for child in turn.spawns:
                    assert child.parent == session.id and child.program == session.program
                    shared = len(turn.after)
                    assert child.turns[0].blocks[:shared] == turn.after


def test_equal_beginnings_are_equal_keys():
    """Agents of one system prompt share its blocks, and nothing after them."""
    sessions = list(agent_load(Shape(sessions=9, systems=1, fan_out=0.0), 1).sessions())
    shared = 2_000 // 128
    one, two = (session.turns[0].blocks for session in sessions[:2])
    assert one[:shared] == two[:shared]
    assert not set(one[shared:]) & set(two[shared:])


def test_recorded_runs_are_repeated_as_other_tasks(tmp_path):
    """Their lengths are the recorded ones; only the system prompt is shared."""
    path = tmp_path / "runs.jsonl"
    messages = [
        {"role": role, "content": text * 900}
        for role, text in (("system", "a b "), ("user", "c d "), ("assistant", "e "))
    ]
    path.write_text(json.dumps({"id": "r", "messages": messages}) + "\n")
    assert not is_trace(path)
    one, two = trajectory_load(path, Shape(sessions=2, fan_out=0.0), 1).sessions()
    assert one.turns[0].prompt_tokens == two.turns[0].prompt_tokens
    assert one.turns[0].blocks[0] == two.turns[0].blocks[0]
    assert one.turns[0].blocks[-1] != two.turns[0].blocks[-1]
