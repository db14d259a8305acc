"""Which runs an experiment consists of, and what it comes to."""

import json
from pathlib import Path

import msgspec
import pytest

from sessile.errors import SettingsError
from sessile.lab.sim_routers import SIMULATED
from sessile.lab.sim_world import Fault
from sessile.lab.simulate import (
    Row,
    Setup,
    Sweep,
    check,
    first_to_meet,
    load_of,
    parse_fault,
    parse_policies,
    parse_sweep,
    points,
    run_all,
    run_one,
)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("replicas=2..5", "replicas", (2, 3, 4, 5)),
        ("replicas=2..16:7", "replicas", (2, 9, 16)),
        ("kv-tokens=60000..180000", "kv_tokens", (60000, 120000, 180000)),
        ("kv-share=0.1..0.4", "kv_share", (0.1, 0.2, 0.3, 0.4)),
        ("kv_share = 0.1, 0.5,1", "kv_share", (0.1, 0.5, 1.0)),
        ("rate=2", "rate", (2.0,)),
    ],
)
def test_a_sweep_is_read(text: str, name: str, values: tuple[float, ...]) -> None:
    """Ranges, ranges with a step, and lists."""
    sweep = parse_sweep(text)
    assert (sweep.name, sweep.values) == (name, values)
    assert all(type(value) is type(expected)
               for value, expected in zip(sweep.values, values, strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour=1..3", "only replicas"),
        ("replicas", "whole numbers"),
        ("replicas=0..4", "whole numbers"),
        ("replicas=2.5", "whole numbers"),
        ("rate=b", "numbers above 0"),
        ("replicas=5..2", "whole numbers"),
        ("kv-tokens=1..1000000", "give a step"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_with_an_example(text: str, said: str) -> None:
    """One sentence."""
    with pytest.raises(SettingsError, match=said):
        parse_sweep(text)


def test_faults_are_read() -> None:
    """What, when, and for how long."""
    assert parse_fault("replica:1@60") == Fault("replica", 60.0, 1, 10.0)
    assert parse_fault("router:0@90+30") == Fault("router", 90.0, 0, 30.0)
    assert parse_fault("redis@120.5+2.5") == Fault("redis", 120.5, 0, 2.5)
    for text in ("replica@60", "redis:1@5", "disk@5", "replica:1", "replica:x@3", ""):
        with pytest.raises(SettingsError, match="is not like"):
            parse_fault(text)
    with pytest.raises(SettingsError, match="there are 4"):
        check(Setup(faults=(Fault("replica", 1.0, 4),)))
    check(Setup(faults=(Fault("replica", 1.0, 3), Fault("redis", 1.0))))


def test_policies_are_read_and_the_oracle_stands_beside_them() -> None:
    """Once each."""
    assert parse_policies("session, sticky,session") == ["session", "sticky", "oracle"]
    assert parse_policies("all") == list(SIMULATED)
    with pytest.raises(SettingsError, match="luck"):
        parse_policies("session,luck")


def test_what_the_load_is_follows_from_the_file(tmp_path: Path) -> None:
    """A trace, recorded runs, or agents that are made up."""
    trace, runs = tmp_path / "trace.jsonl", tmp_path / "runs.jsonl"
    entry = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    trace.write_text(json.dumps(entry))
    roles = ("system", "user", "assistant")
    runs.write_text(json.dumps({"messages": [{"role": r, "content": "hello"} for r in roles]}))
    assert load_of(Setup(trace=str(trace)), 1).count == 1
    assert load_of(Setup(trace=str(runs), sessions=7), 1).count == 7
    assert load_of(Setup(sessions=9), 1).count == 9


def test_a_share_of_the_working_set_is_divided_among_the_replicas() -> None:
    """With all of it in memory nothing is computed twice but where it is spread."""
    small, all_of_it = (
        run_one(Setup(sessions=20, kv_share=share, replicas=2), "sticky", 1) for share in (0.1, 1.5)
    )
    assert small.hit_rate < all_of_it.hit_rate


def test_processes_change_nothing() -> None:
    """The same rows in the same order, and all sessions told of."""
    at = points(Setup(sessions=10), Sweep("replicas", (1, 2)))
    told: list[tuple[int, int]] = []
    alone = run_all(at, ["session", "oracle"], [1, 2], 1, lambda *done: told.append(done))
    assert told[-1] == (80, 80)
    assert alone == run_all(at, ["session", "oracle"], [1, 2], 2, lambda *done: None)
    assert [(row.policy, row.value) for row in alone] == [
        ("session", 1), ("oracle", 1), ("session", 2), ("oracle", 2),
    ]  # fmt: skip


def rows(name: str, waits: dict[float, float]) -> list[Row]:
    """Rows of one policy with these TTFTs by swept value."""
    outcome = run_one(Setup(sessions=2), "sticky", 1)
    return [
        Row(name, value, Setup(), msgspec.structs.replace(outcome, ttft_p99_s=wait))
        for value, wait in waits.items()
    ]


def test_how_many_replicas_an_objective_needs() -> None:
    """From where on it is kept for good: a lucky value below that does not count."""
    found = rows("a", {2: 0.9, 3: 1.2, 4: 1.0, 5: 0.5}) + rows("b", {2: 9.0, 3: 8.0})
    assert first_to_meet(found, Sweep("replicas", ()), 1.0) == {"a": 4, "b": None}


def test_how_much_load_an_objective_allows() -> None:
    """Of a burden it is the largest value up to which all is well."""
    found = rows("a", {0.5: 0.2, 1.0: 0.8, 2.0: 3.0, 4.0: 0.9})
    assert first_to_meet(found, Sweep("rate", ()), 1.0) == {"a": 1.0}
