"""The examples, each run as its docstring says, against `sessile up` with the real small model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sessile import Client

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "quickstart.py": ("1> ", "2> ", "prompt tokens came from the cache", "fork 2> "),
    "anthropic_client.py": ("counted> ", "first on local-", "second on local-", "usage> "),
    "openai_client.py": ("chat on local-", "stream> ", "responses> ", "usage> "),
    "websocket_chat.py": ("> Hello! What is your name?", "> What did I just ask you?"),
    "agent_loop.py": ("> How warm is it in Oslo?", "> And in Rome?"),
    "langchain_chat.py": ("1> ", "2> "),
}


def test_every_example_is_run() -> None:
    """None is left out of this module."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_example_runs_to_its_end(name: str, sessile_up: str) -> None:
    """It ends well and prints each of its parts."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, sessile_up],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
    )
    assert done.returncode == 0, done.stderr
    for part in SAYS[name]:
        assert part in done.stdout
    assert "Traceback" not in done.stderr


def test_a_real_session_comes_back_to_its_cache(sessile_up: str) -> None:
    """The second turn's prompt is mostly cached on the replica of the first."""
    with Client(sessile_up) as client, client.session(system="You are brief. " * 40) as session:
        first = session.send("Name a colour.", max_output_tokens=8)
        second = session.send("Name another one.", max_output_tokens=8)
        assert second.receipt.replica == first.receipt.replica
        assert second.usage.cached_tokens is not None and second.usage.prompt_tokens is not None
        assert second.usage.cached_tokens > 0.8 * (first.usage.prompt_tokens or 0)
        assert first.text and second.text
