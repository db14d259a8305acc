"""`sessile bench`: measure what sessions gain, and what the router costs."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sessile.errors import SettingsError

_PANEL = "Measure"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel=_PANEL)(bench)


def bench(
    file: Annotated[
        Path | None,
        typer.Argument(help="Trajectories, JSONL of {id, messages}; none: generated from --seed."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A running router, or any OpenAI server; measured as it is.")
    ] = None,
    replica: Annotated[
        list[str] | None,
        typer.Option(help="Replicas that run, by ENGINE=URL; each policy gets its own router."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Embedded replicas, without the above.")] = 2,
    policies: Annotated[
        str, typer.Option(help="Policies to compare, by comma.")
    ] = "session,round_robin",
    sessions: Annotated[
        int | None,
        typer.Option(min=1, help="How many; FILE is repeated.", show_default="all of FILE, or 16"),
    ] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="Sessions that start a second.")] = 0.2,
    at_once: Annotated[
        int | None,
        typer.Option(min=1, help="Closed loop: so many sessions at once, instead of --rate."),
    ] = None,
    think: Annotated[float, typer.Option(min=0, help="Mean pause before a turn, in s.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a reply.")] = 16,
    context: Annotated[int, typer.Option(min=256, help="The model's context, in tokens.")] = 8192,
    model: Annotated[str | None, typer.Option(help="The model.", show_default="the first")] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, pauses and generated sessions.")] = 1,
    lineage: Annotated[
        bool, typer.Option("--lineage", help="Name no session: the router has to tell.")
    ] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Measure the router itself instead.")
    ] = False,
    websockets: Annotated[
        bool,
        typer.Option("--websockets", help="Measure the memory of open WebSockets instead."),
    ] = False,
    requests: Annotated[int, typer.Option(min=100, help="Plain requests of --cost.")] = 20_000,
    redis: Annotated[
        str | None,
        typer.Option(help="The store of --cost and --websockets.", show_default="an embedded one"),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="The key for --url.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay multi-turn agent sessions and show hit rate and latency by policy.

    sessile bench
    sessile bench runs.jsonl --policies session,round_robin,least_loaded
    sessile bench --replica sglang=http://gpu1:30000 --replica sglang=http://gpu2:30000
    sessile bench --url http://localhost:8000 --sessions 50 --rate 2
    sessile bench --url http://localhost:8000 --sessions 48 --at-once 32
    sessile bench --cost

    The ceiling is the hit rate that one replica with an endless cache would have on the same
    prompts, by characters. --cost measures the router alone, before a replica that costs nothing.
    A running server is measured with a salt at the head of its prompts; own replicas are fresh.
    """
    console = Console(stderr=True)
    if cost or websockets:
        shown: Any = _run(_instrument(cost, requests, redis, console))
        _print(json, shown, _facts(shown))
        return
    from sessile.lab.workload import generate_trajectories, read_trajectories
    from sessile.router.policy import POLICIES

    trajectories = read_trajectories(file) if file else generate_trajectories(sessions or 16, seed)
    if sessions:
        trajectories = [
            (f"{name}-{n}", messages)
            for n, (name, messages) in enumerate(
                (trajectories * (sessions // len(trajectories) + 1))[:sessions]
            )
        ]
    names = ["as it is"] if url else [name.strip() for name in policies.split(",")]
    for name in () if url else names:
        if name not in POLICIES:
            raise SettingsError(f"there is no policy {name!r}; there are {', '.join(POLICIES)}")
    options = {
        "context_tokens": context, "max_tokens": max_tokens, "rate": rate, "think_s": think,
        "seed": seed,
    }  # fmt: skip
    reports: list[Any] = []
    try:
        for number, name in enumerate(names):
            salt = f"pass {seed}-{number}-{time.time_ns()}" if replica or url else ""
            reports.append(
                _run(
                    _pass(
                        name, trajectories, options, salt, url, replica, replicas, model, lineage,
                        api_key, at_once, console,
                    )
                )
            )  # fmt: skip
    finally:  # Ctrl-C in a long run: what has been measured is shown
        if reports:
            _print(json, reports, _table(reports))
    if any(report.errors == report.turns for report in reports):
        raise typer.Exit(1)


async def _pass(
    name: str, trajectories: Any, options: dict[str, Any], salt: str, url: str | None,
    replica: list[str] | None, replicas: int, model: str | None, lineage: bool,
    key: str | None, at_once: int | None, console: Console,
) -> Any:  # fmt: skip
    """One policy: its own router (and with embedded replicas, its own replicas), one replay."""
    from sessile.lab.bench import replay, report
    from sessile.lab.workload import plan

    sessions = plan(trajectories, salt=salt, **options)
    total = sum(len(session.turns) for session in sessions)
    async with _router(name, url, replica, replicas, options["context_tokens"]) as target:
        served = model or await _first_model(target, key)
        with Progress(
            TextColumn(f"{name}: turns"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        ) as bar:  # fmt: skip
            task = bar.add_task(name, total=total)
            began = time.monotonic()
            samples = await replay(
                [target], served, sessions, max_tokens=options["max_tokens"], lineage=lineage,
                key=key, done=lambda: bar.advance(task), at_once=at_once,
            )  # fmt: skip
            return report(name, samples, time.monotonic() - began)


def _router(
    policy: str, url: str | None, replica: list[str] | None, replicas: int, context: int
) -> AbstractAsyncContextManager[str]:
    if url is not None:
        return nullcontext(url.rstrip("/").removesuffix("/v1"))
    from sessile.engines.supervisor import free_ports

    (port,) = free_ports(1)
    command = ["-m", "sessile.cli"]
    if replica:
        command += ["serve", *(part for each in replica for part in ("--replica", each))]
    else:
        command += ["up", "--replicas", str(replicas), "--context", str(context)]
    command += ["--policy", policy, "--port", str(port)]
    return _started(command, f"http://127.0.0.1:{port}")


class _started(AbstractAsyncContextManager[str]):
    """A router in a process of its own."""

    def __init__(self, command: list[str], url: str) -> None:
        from sessile.lab.processes import child

        self._url = url
        self._child = child(command, url, "/ready", 180.0)

    async def __aenter__(self) -> str:
        from sessile.lab.processes import all_ready

        await self._child.__aenter__()
        await all_ready(self._url, 120.0)
        return self._url

    async def __aexit__(self, *error: Any) -> None:
        await self._child.__aexit__(*error)


async def _first_model(url: str, key: str | None) -> str:
    import httpx2

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
            listed = (await http.get(f"{url}/v1/models")).json()["data"]
    except (httpx2.HTTPError, ValueError, KeyError) as error:
        raise SettingsError(f"{url} does not list its models: {error}") from error
    if not listed:
        raise SettingsError(f"{url} serves no model yet")
    return str(listed[0]["id"])


async def _instrument(cost: bool, requests: int, redis: str | None, console: Console) -> Any:
    from sessile.lab.cost import measure_cost, measure_sockets

    with console.status("starting") as status:
        if cost:
            return await measure_cost(requests, requests // 40, 200, redis, status.update)
        return await measure_sockets(1000, 256, redis, status.update)


def _run(main: Any) -> Any:
    """Run to the end; Ctrl-C cancels it, which stops what it has started."""
    return asyncio.run(main)


def _print(json: bool, value: Any, table: Table) -> None:
    if json:
        print(msgspec.json.format(msgspec.json.encode(value)).decode())
    else:
        Console().print(table)


def _facts(value: Any) -> Table:
    table = Table("what", "measured", header_style="bold")
    for name, figure in msgspec.to_builtins(value).items():
        shown = f"{figure:.3f}" if isinstance(figure, float) else str(figure)
        table.add_row(name.replace("_", " "), shown)
    return table


def _table(reports: list[Any]) -> Table:
    table = Table(header_style="bold")
    table.add_column("")
    for report in reports:
        table.add_column(report.name, justify="right")
    rows: dict[str, Callable[[Any], str]] = {
        "turns (errors)": lambda r: f"{r.turns} ({r.errors})",
        "hit rate (of tokens)": lambda r: _spread(r.hit_rate),
        "ceiling (of characters)": lambda r: _spread(r.ceiling),
        "hit / ceiling": lambda r: _spread(r.hit_of_ceiling),
        "TTFT p50/p90/p99, s": lambda r: _spread(r.ttft_p50, r.ttft_p90, r.ttft_p99),
        "later turns' TTFT, s": lambda r: _spread(
            r.later_ttft_p50, r.later_ttft_p90, r.later_ttft_p99
        ),
        "TPOT p50/p90, s": lambda r: _spread(r.tpot_p50, r.tpot_p90),
        "session time (mean), s": lambda r: _spread(r.session_s),
        "output tokens/s": lambda r: f"{r.output_tokens_per_s:.1f}",
        "turns per replica": lambda r: ", ".join(f"{k}: {n}" for k, n in r.per_replica.items()),
        "wall, s": lambda r: f"{r.wall_s:.1f}",
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(report) for report in reports))
    for report in reports:
        if report.first_error:
            table.caption = f"first error of {report.name}: {report.first_error}"
    return table


def _spread(*values: float | None) -> str:
    return " / ".join("-" if value is None else f"{value:.3f}" for value in values)
