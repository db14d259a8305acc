"""What a person sees of replicas and of where they are found."""

from typing import Any

from rich.console import Console

from sessile.cli.tables import replica_table, status_view
from sessile.client.calls import Ready, ReplicaInfo


def shown(view: Any, width: int = 80) -> str:
    """The view as a pipe gets it."""
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def replica(name: str, **fields: Any) -> ReplicaInfo:
    told = {"id": name, "url": "http://gpu1:30000", "engine": "sglang", "state": "ready"}
    return ReplicaInfo(**{**told, **fields})


def test_why_a_replica_is_not_ready_is_a_line_below_the_table():
    """Whole, however narrow the columns; of one that is ready only its warning is said."""
    why = "it says that it is healthy, but serves nothing: a turn of one token was answered 500"
    found = [replica("a", state="down", why=why), replica("b", why="old news"),
             replica("c", warning="its context is short")]  # fmt: skip
    for view in (status_view("http://r", Ready("ready"), found), replica_table(found)):
        text = shown(view, 120)
        assert text.splitlines()[-2:] == [f"a: {why}", "c: its context is short"]


def test_the_acceptance_of_a_replica_that_speculates_is_in_the_status():
    """Tokens a step: one where it is known not to speculate, a dash where nothing is known."""
    found = [replica("fast", acceptance_length=2.345), replica("plain", speculates=False),
             replica("new", speculates=True)]  # fmt: skip
    lines = shown(status_view("http://r", Ready("ready"), found), 120).splitlines()
    assert any("TOKENS/" in line for line in lines) and any("STEP" in line for line in lines)
    ends = {line.split()[0]: line.split()[-1] for line in lines if line.strip()}
    assert (ends["fast"], ends["plain"], ends["new"]) == ("2.3", "1", "-")


def test_a_source_that_cannot_be_read_is_told():
    """It is why there is no replica, where there is none."""
    name = "kubernetes://ml?selector=app=sglang"
    away = Ready("down", discovery={name: "the API is away", "dns://engines:1": "ok"})
    assert f"no replica yet\nsource {name}: the API is away\n" in shown(
        status_view("http://r", away, [])
    )
    text = shown(status_view("http://r", away, [replica("a")]))
    assert text.endswith(f"source {name}: the API is away\n")
    assert "replicas add URL" in shown(status_view("http://r", Ready("down"), []))
