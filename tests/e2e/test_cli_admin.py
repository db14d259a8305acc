"""The commands that look at a running router and act on it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sessile import Client
from sessile.cli.admin import register
from sessile.engines.supervisor import free_ports

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(router: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command against the router; its exit code and all that it wrote."""
    monkeypatch.setenv("SESSILE_URL", router)
    monkeypatch.setenv("COLUMNS", "120")
    app = typer.Typer()
    register(app)

    def invoke(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def test_status_shows_the_replicas(run: Run) -> None:
    """As a table, and the same as JSON."""
    code, text = run("status")
    assert code == 0
    assert "ready" in text and "replicas 2/2" in text and "openai-0" in text
    code, text = run("status", "--json")
    told = json.loads(text)
    assert (code, told["ready"]["status"]) == (0, "ready")
    assert {replica["id"] for replica in told["replicas"]} == {"openai-0", "openai-1"}


def test_a_replica_is_drained_and_taken_back(run: Run) -> None:
    """`drain --wait` returns once nothing runs there; `resume` makes it ready again."""
    assert run("drain", "openai-1", "--wait") == (0, "openai-1 draining, nothing runs\n")
    assert "draining" in run("replicas")[1]
    assert run("replicas", "resume", "openai-1") == (0, "openai-1 ready\n")


def test_a_replica_is_added_and_removed(run: Run) -> None:
    """By ENGINE=URL and a name of one's own; it need not be up yet."""
    code, text = run("replicas", "add", "openai=http://127.0.0.1:9", "--id", "late")
    assert code == 0 and text.startswith("late added")
    while not (late := replica(run, "late"))["why"]:
        time.sleep(0.05)
    for shown in (run("replicas")[1], run("status")[1]):  # in one line, below the table
        assert f"\nlate: {late['why'][:40]}" in shown
    assert run("replicas", "remove", "late") == (0, "late removed\n")
    assert "late" not in run("replicas", "list")[1]


def test_the_ranks_of_a_server_are_shown_and_drained_together(run: Run) -> None:
    """By the name of the server; each has a row of its own."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "sessile.lab.fake_replica", "--port", str(port)]
    with subprocess.Popen([*command, "--model", "ranked", "--ranks", "2"]) as server:
        try:
            run("replicas", "add", f"sglang=http://127.0.0.1:{port}", "--id", "pair")
            while "pair@1" not in (shown := run("status")[1]):
                time.sleep(0.1)
            assert "pair@0" in shown and "pair@1" in shown
            assert run("drain", "pair", "--wait") == (0, "pair draining, nothing runs\n")
            told = json.loads(run("replicas", "--json")[1])
            states = {each["id"]: each["state"] for each in told if each["server"] == "pair"}
            assert states == {"pair@0": "draining", "pair@1": "draining"}
            assert run("replicas", "resume", "pair") == (0, "pair ready\n")
            assert run("replicas", "remove", "pair@0")[0] == 1
            assert run("replicas", "remove", "pair") == (0, "pair removed\n")
        finally:
            server.terminate()


def replica(run: Run, name: str) -> dict[str, Any]:
    """A replica as the router tells of it."""
    listed = json.loads(run("replicas", "--json")[1])
    found: dict[str, Any] = next(each for each in listed if each["id"] == name)
    return found


def test_an_adapter_is_added_listed_and_removed(run: Run) -> None:
    """Its base need not be served yet."""
    added = run("adapters", "add", "sql", "--base", "later", "--path", "/adapters/sql")
    assert added == (0, "sql added, an adapter of later\n")
    (shown,) = json.loads(run("adapters", "--json")[1])
    assert (shown["name"], shown["base"], shown["loaded"]) == ("sql", "later", [])
    assert "/adapters/sql" in run("adapters")[1]
    assert run("adapters", "remove", "sql") == (0, "sql removed\n")
    assert run("adapters") == (0, "no adapter\n")


def test_sessions_are_listed_shown_and_closed(run: Run, router: str) -> None:
    """The last used is first; a closed one says so."""
    with Client(router) as client:
        client.session("cli-1").send("hello")
    assert json.loads(run("sessions", "--limit", "1", "--json")[1])[0]["session"] == "cli-1"
    code, text = run("sessions", "cli-1")
    assert code == 0 and "cli-1" in text and "echo" in text
    code, text = run("sessions", "cli-1", "--close", "--json")
    assert json.loads(text)["state"] == "closed"
    assert "closed" in run("sessions")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("drain", "nobody"), 1, "nobody"),
        (("sessions", "nobody"), 1, "nobody"),
        (("sessions", "--close"), 1, "--close needs the id"),
        (("replicas", "add", "gpu1:30000"), 1, "is neither a URL nor ENGINE=URL"),
        (("replicas", "add", "a=http://x", "b=http://y", "--id", "z"), 1, "--id names one"),
        (("status", "--url", "http://127.0.0.1:9"), 1, "start one with `sessile up`"),
        (("status", "--url", "nowhere"), 2, "base_url must be"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    run: Run, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """No traceback: a sentence with the remedy, and an exit code."""
    got, text = run(*arguments)
    assert got == code and said in text and "Traceback" not in text
    assert text.startswith("sessile: ") and text.count("\n") == 1


def test_help_teaches_by_examples() -> None:
    """Every command's help ends with lines to copy."""
    app = typer.Typer()
    register(app)
    commands: list[Any] = [typer.main.get_command(app)]
    seen = 0
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        if command.callback is not None and command.name in (
            "status", "drain", "sessions", "replicas", "list", "add", "remove", "resume",
            "adapters",
        ):  # fmt: skip
            assert command.epilog.startswith("Examples:"), command.name
            seen += 1
    assert seen == 11
