"""What is replayed: read, cut, planned, and the best that any cache could make of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.errors import InvalidRequest
from sessile.lab.workload import (
    CHARS_PER_TOKEN,
    Message,
    ceiling,
    generate_trajectories,
    plan,
    read_trajectories,
)

PLAN: dict[str, Any] = {
    "context_tokens": 8192, "max_tokens": 16, "rate": 1.0, "think_s": 1.0, "seed": 1,
}  # fmt: skip


def talk(*contents: str) -> list[Message]:
    """A system message, and then user and assistant in turn."""
    roles = ("user", "assistant")
    spoken = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents[1:])]
    return [{"role": "system", "content": contents[0]}, *spoken]


def write(folder: Path, *lines: str) -> Path:
    """A trajectory file."""
    path = folder / "runs.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_tools_become_plain_text(tmp_path: Path) -> None:
    """Messages that a small model's template cannot take are rendered for roles that it can."""
    call = {"id": "c", "function": {"name": "ls", "arguments": '{"path": "."}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "a.txt"},
    ]
    [(name, read)] = read_trajectories(
        write(tmp_path, "", json.dumps({"id": "run", "messages": messages}))
    )
    assert name == "run"
    assert [message["role"] for message in read] == ["user", "assistant", "user"]
    assert 'ls {"path": "."}' in read[1]["content"] and "a.txt" in read[2]["content"]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "7", "{}", '{"messages": 7}', '{"messages": []}', '{"messages": ["hi"]}',
     '{"messages": [{"content": "no role"}]}', '{"messages": [{"role": "user", "content": 7}]}'],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    """The error names the file and the line."""
    good = json.dumps({"id": "x", "messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(InvalidRequest, match=r"runs\.jsonl:2 is not"):
        read_trajectories(write(tmp_path, good, line))


def test_no_file_and_an_empty_file_are_errors(tmp_path: Path) -> None:
    """Each is one sentence that names the path."""
    with pytest.raises(InvalidRequest, match="gone"):
        read_trajectories(tmp_path / "gone")
    with pytest.raises(InvalidRequest, match="no trajectory"):
        read_trajectories(write(tmp_path, ""))


def test_a_turn_for_each_reply_with_all_before_it() -> None:
    """Each assistant message marks a turn, whose prompt is everything before it."""
    messages = talk("sys", "one", "first", "two", "second", "three")
    [session] = plan([("a", messages)], **PLAN)
    assert [turn.messages for turn in session.turns] == [messages[:2], messages[:4]]
    assert session.turns[0].think_s == 0 < session.turns[1].think_s


def test_a_trajectory_is_cut_to_the_context() -> None:
    """It ends before the first prompt that does not fit; one that never fits is left out."""
    long = "x" * int(1000 * CHARS_PER_TOKEN)
    talks = [("cut", talk("s", "one", "1", long, "2")), ("out", talk(long, "one", "1"))]
    [session] = plan(talks, **{**PLAN, "context_tokens": 1000})
    assert session.id == "cut" and len(session.turns) == 1
    with pytest.raises(InvalidRequest):
        plan(talks[1:], **{**PLAN, "context_tokens": 1000})


def test_a_seed_gives_the_same_run() -> None:
    """Sessions, arrivals and pauses follow from the seed alone."""

    def made(seed: int) -> Any:
        return plan(generate_trajectories(6, seed), **{**PLAN, "seed": seed})

    assert made(3) == made(3) != made(4)
    starts = [session.start_s for session in made(3)]
    assert len(starts) == 6 and starts == sorted(starts)


def test_passes_with_different_salts_share_nothing() -> None:
    """What one pass left in the caches is of no use to the next."""
    talks = generate_trajectories(2, 1)
    one, other = (
        [turn.text for session in plan(talks, salt=salt, **PLAN) for turn in session.turns]
        for salt in ("a", "b")
    )
    assert ceiling([*one, *other]) == pytest.approx((ceiling(one) + ceiling(other)) / 2, abs=0.01)


def test_ceiling_of_a_conversation() -> None:
    """Of two equal prompts half is cached, of strangers nothing, of a longer one its beginning."""
    assert ceiling(["abcd", "abcd"]) == 0.5
    assert ceiling(["abcd", "wxyz"]) == 0
    assert ceiling(["ab", "abcd"]) == pytest.approx(2 / 6)
    assert ceiling([]) == 0


@given(st.lists(st.text("ab", max_size=6), max_size=12))
def test_ceiling_is_what_comparing_all_pairs_finds(prompts: list[str]) -> None:
    """Looking only at the neighbours in order finds the longest shared beginning of all."""
    shared = 0
    for index, prompt in enumerate(prompts):
        shared += max(
            (
                max(n for n in range(len(prompt) + 1) if other.startswith(prompt[:n]))
                for other in prompts[:index]
            ),
            default=0,
        )
    total = sum(map(len, prompts))
    assert ceiling(prompts) == pytest.approx(shared / total if total else 0)
