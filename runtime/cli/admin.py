"""The commands that look at a running router and act on it: status, replicas, drain, sessions.

They speak to the native API as any client could; nothing here touches the pool or the store.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from sessile.cli.tables import adapter_table, replica_table, session_table, status_view
from sessile.client import calls
from sessile.client.address import read_address
from sessile.client.http import Http
from sessile.engines.detect import named
from sessile.errors import (
    InvalidRequest,
    ReplicaNotFound,
    RouterUnreachable,
    SessileError,
    SettingsError,
)

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The router; else SESSILE_URL, else port 8000 here."),
]
Key = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help="Its key; else SESSILE_API_KEY.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

PANEL = "Watch and manage"
_POLL_S = 0.5


def register(app: typer.Typer) -> None:
    """Add the commands to the `sessile` command line."""
    app.command(
        rich_help_panel=PANEL,
        epilog=examples("status", "status --once", "status --json | jq .ready"),
    )(status)
    app.command(rich_help_panel=PANEL, epilog=examples("drain local-0", "drain local-0 --wait"))(
        drain
    )
    app.command(
        rich_help_panel=PANEL,
        epilog=examples("sessions", "sessions ses_5f3a", "sessions ses_5f3a --close"),
    )(sessions)
    group = typer.Typer(
        invoke_without_command=True,
        epilog=examples("replicas", "replicas add sglang=http://gpu1:30000"),
    )
    group.callback()(replicas)
    group.command("list", epilog=examples("replicas list --json"))(list_replicas)
    group.command(
        "add",
        epilog=examples(
            "replicas add sglang=http://gpu1:30000 --id gpu1",
            "replicas add sglang=http://gpu2:30000 --pool green --standby",
        ),
    )(add_replicas)
    group.command("remove", epilog=examples("replicas remove sglang-0"))(remove_replica)
    group.command("resume", epilog=examples("replicas resume sglang-0"))(resume_replica)
    app.add_typer(group, name="replicas", rich_help_panel=PANEL)
    group = typer.Typer(
        invoke_without_command=True,
        epilog=examples("adapters", "adapters add sql --base llama-8b --path /adapters/sql"),
    )
    group.callback()(adapters)
    group.command("add", epilog=examples("adapters add sql --base llama-8b --path /adapters/sql"))(
        add_adapter
    )
    group.command("remove", epilog=examples("adapters remove sql"))(remove_adapter)
    app.add_typer(group, name="adapters", rich_help_panel=PANEL)


def status(
    once: Annotated[bool, typer.Option("--once", help="Print it once, and end.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between looks.")] = 1,
    json: Json = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Show the router and its replicas: state, load, sessions, hit rate; live, until Ctrl-C.

    With --once or --json, or where the output is no terminal, it is shown once; the exit code is
    then 1 unless the router takes turns.
    """
    console = Console()
    with connected(url, api_key) as http:
        if json or once or not console.is_terminal:
            ready, found = http.call(calls.ready()), http.call(calls.list_replicas())
            releases = http.call(calls.list_releases()).releases
            if json:
                print_json({"ready": ready, "replicas": found.replicas, "releases": releases})
            else:
                console.print(status_view(http.url, ready, found.replicas, releases))
            if ready.status not in ("ready", "degraded"):
                raise typer.Exit(1)
            return
        with Live(_look(http), console=console, auto_refresh=False, screen=False) as live:
            while True:
                time.sleep(every_s)
                live.update(_look(http), refresh=True)


def replicas(
    context: typer.Context, json: Json = False, url: Url = None, api_key: Key = None
) -> None:
    """List the replicas; add, remove or resume one."""
    if context.invoked_subcommand is None:
        list_replicas(json, url, api_key)


def list_replicas(json: Json = False, url: Url = None, api_key: Key = None) -> None:
    """List the replicas of the pool."""
    with connected(url, api_key) as http:
        found = http.call(calls.list_replicas()).replicas
    if json:
        print_json(found)
    else:
        Console().print(replica_table(found) if found else "no replica")


def add_replicas(
    specs: Annotated[list[str], typer.Argument(metavar="[ENGINE=]URL...")],
    id: Annotated[str | None, typer.Option("--id", help="A name; else ENGINE-N.")] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", metavar="NAME", help="What a swap knows them by.")
    ] = None,
    standby: Annotated[
        bool, typer.Option("--standby", help="They take no session but by a swap to the pool.")
    ] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Take replicas that run already into the pool; they serve once a probe says so."""
    with connected(url, api_key) as http:
        if id is not None and len(specs) > 1:
            raise InvalidRequest("--id names one replica; add them one by one")
        for spec in specs:
            engine, address = named(spec)
            if not address:
                raise InvalidRequest(
                    f"{spec!r} is neither a URL nor ENGINE=URL, as in sglang=http://gpu1:30000"
                )
            added = http.call(calls.add_replica(engine, address, id, pool, standby))
            typer.echo(f"{added.id} added ({added.state})")


def remove_replica(
    id: Annotated[str, typer.Argument(metavar="ID")], url: Url = None, api_key: Key = None
) -> None:
    """Take a replica out of the pool now; `sessile drain ID --wait` first lets its turns finish."""
    with connected(url, api_key) as http:
        http.call(calls.remove_replica(id))
        typer.echo(f"{id} removed")


def resume_replica(
    id: Annotated[str, typer.Argument(metavar="ID")], url: Url = None, api_key: Key = None
) -> None:
    """Let a drained replica take sessions again."""
    with connected(url, api_key) as http:
        typer.echo(f"{id} {http.call(calls.resume_replica(id)).state}")


def adapters(
    context: typer.Context, json: Json = False, url: Url = None, api_key: Key = None
) -> None:
    """List the LoRA adapters; add or remove one."""
    if context.invoked_subcommand is not None:
        return
    with connected(url, api_key) as http:
        found = http.call(calls.list_adapters()).adapters
    if json:
        print_json(found)
        return
    Console().print(adapter_table(found) if found else "no adapter")
    for adapter in found:
        for why in adapter.refused.values():
            typer.echo(f"{adapter.name}: {why}")


def add_adapter(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    base: Annotated[str, typer.Option("--base", help="The model that it is for.")],
    path: Annotated[str, typer.Option("--path", help="Where the engines find it.")],
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Serve an adapter under its name; it is loaded when a turn asks for it."""
    with connected(url, api_key) as http:
        added = http.call(calls.add_adapter(name, base, path))
        typer.echo(f"{added.name} added, an adapter of {added.base}")


def remove_adapter(
    name: Annotated[str, typer.Argument(metavar="NAME")], url: Url = None, api_key: Key = None
) -> None:
    """Serve an adapter no more, and unload it."""
    with connected(url, api_key) as http:
        http.call(calls.remove_adapter(name))
        typer.echo(f"{name} removed")


def drain(
    id: Annotated[str, typer.Argument(metavar="ID")],
    wait: Annotated[bool, typer.Option("--wait", help="Until none of its turns runs.")] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Give a replica no new session; `sessile replicas resume ID` takes it back."""
    console = Console()
    with connected(url, api_key) as http:
        replica = http.call(calls.drain_replica(id))
        if wait:
            with console.status(_left(id, replica.in_flight)) as shown:
                while replica.in_flight:
                    time.sleep(_POLL_S)
                    replica.in_flight = _in_flight(http, id)
                    shown.update(_left(id, replica.in_flight))
        left = f", {replica.in_flight} turns in flight" if replica.in_flight else ", nothing runs"
        typer.echo(f"{id} {replica.state}{left}")


def sessions(
    id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    close: Annotated[bool, typer.Option("--close", help="End the session ID.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many to list.")] = 50,
    json: Json = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """List the sessions, the last used first; or show, or close, one of them."""
    with connected(url, api_key) as http:
        if id is None:
            if close:
                raise InvalidRequest("--close needs the id of a session")
            found = http.call(calls.list_sessions(limit)).sessions
        else:
            call = calls.close_session(id) if close else calls.show_session(id)
            found = [http.call(call)]
    if json:
        print_json(found if id is None else found[0])
    else:
        Console().print(session_table(found, time.time()) if found else "no session yet")


@contextmanager
def connected(url: str | None, api_key: str | None) -> Iterator[Http]:
    """The router's HTTP side; an error is one sentence on stderr, and exit code 1 (2: settings)."""
    try:
        http = Http(read_address(url, api_key))
        try:
            yield http
        finally:
            http.close()
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except SessileError as error:
        typer.echo(f"sessile: {error.message}", err=True)
        raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from None


def _look(http: Http) -> RenderableType:
    """One frame of the live view; a router that is away for a while is shown as that."""
    try:
        return status_view(
            http.url, http.call(calls.ready()), http.call(calls.list_replicas()).replicas,
            http.call(calls.list_releases()).releases,
        )  # fmt: skip
    except RouterUnreachable as error:
        return Text(error.message, "red")


def _in_flight(http: Http, id: str) -> int:
    """The turns at a replica, or at all ranks of a server."""
    named = [r for r in http.call(calls.list_replicas()).replicas if id in (r.id, r.server)]
    if not named:
        raise ReplicaNotFound(f"{id} has left the pool")
    return sum(replica.in_flight for replica in named)


def _left(id: str, in_flight: int) -> str:
    return f"draining {id}: {in_flight} turns in flight"


def print_json(value: Any) -> None:
    """What the router said, for programs."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def examples(*commands: str) -> str:
    """The end of a command's help: lines to copy."""
    return "Examples:\n\n" + "\n\n".join(f"  sessile {command}" for command in commands)
