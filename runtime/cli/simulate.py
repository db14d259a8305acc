"""`sessile simulate`: policies compared in virtual time, and how many replicas an SLO needs."""

import os
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
    app.command(rich_help_panel=_PANEL)(simulate)


def simulate(
    trace: Annotated[
        Path | None,
        typer.Argument(
            help="JSONL, perhaps gzipped: requests of {timestamp, input_length, output_length, "
            "hash_ids} (Mooncake), or agents' runs of {id, messages}; none: agents made up."
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas.")] = 4,
    kv_tokens: Annotated[
        int, typer.Option(min=1024, help="KV memory of a replica, in tokens.")
    ] = 120_000,
    kv_share: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            help="KV memory of all replicas, as a share of the working set; for --kv-tokens.",
            show_default="unset",
        ),
    ] = None,
    host_tokens: Annotated[
        int, typer.Option(min=0, help="Host cache of a replica, in tokens.")
    ] = 0,
    prefill_rate: Annotated[
        float, typer.Option(min=1, help="Tokens a second that a replica prefills.")
    ] = 20_000.0,
    transfer_rate: Annotated[
        float, typer.Option(min=1, help="Tokens a second out of the host cache.")
    ] = 200_000.0,
    decode_ms: Annotated[float, typer.Option(min=0.001, help="A decode step, in ms.")] = 8.0,
    slots: Annotated[int, typer.Option(min=1, help="Turns at once on a replica.")] = 64,
    policy: Annotated[
        str, typer.Option(help="Policies by comma, or all; the oracle is always there.")
    ] = "session,sticky,round_robin",
    routers: Annotated[int, typer.Option(min=1, help="Routers that share the load.")] = 1,
    sessions: Annotated[
        int | None,
        typer.Option(min=1, help="How many agents; FILE is repeated.", show_default="300"),
    ] = None,
    rate: Annotated[float, typer.Option(min=0.0001, help="Agents that start a second.")] = 0.4,
    arrival: Annotated[str, typer.Option(help="poisson, even or bursts (of 8).")] = "poisson",
    at_once: Annotated[
        int | None,
        typer.Option(min=1, help="Closed loop: so many sessions at once, instead of --rate."),
    ] = None,
    fan_out: Annotated[
        float, typer.Option(min=0, max=1, help="Share of agents that spawn 4 to 16 others.")
    ] = 0.08,
    context: Annotated[int, typer.Option(min=1024, help="The model's context.")] = 32_000,
    speed: Annotated[
        float, typer.Option(min=0.001, help="Replay so many times as fast as it was recorded.")
    ] = 1.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="replica:1@60, router:0@90+30 or redis@120+10; again for more."),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="A value after another, as replicas=2..16.")
    ] = None,
    slo_ttft_p99: Annotated[
        float | None, typer.Option(min=0.001, help="With --sweep: which value keeps it, in s.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="By comma; figures are the medians.")] = "1",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share the work.", show_default="one a core"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: a .png, .svg or .pdf.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the router's own code in virtual time, before replicas that are modelled.

    sessile simulate
    sessile simulate --kv-tokens 60000 --policy all --seeds 1,2,3
    sessile simulate mooncake.jsonl.gz --sweep kv-share=0.1,0.25,0.5,1
    sessile simulate runs.jsonl --sweep replicas=2..16 --slo-ttft-p99 1
    sessile simulate --routers 3 --fault replica:1@60 --fault redis@120+10

    Agents made up share system prompts, pause for tools and fan out.
    The oracle knows every cache and every queue, and sends each turn
    where it costs least now. It holds back nothing and foresees nothing,
    so that a policy may do better. The same seed gives the same numbers.
    """
    from sessile.lab import simulate as lab

    console = Console(stderr=True)
    if plot is not None:
        _can_plot(plot)
    if arrival not in ("poisson", "even", "bursts"):
        raise SettingsError(f"--arrival {arrival!r}: there are poisson, even and bursts")
    setup = lab.Setup(
        trace=None if trace is None else str(trace), replicas=replicas, kv_tokens=kv_tokens,
        kv_share=kv_share, host_tokens=host_tokens, prefill_rate=prefill_rate,
        transfer_rate=transfer_rate, decode_ms=decode_ms, slots=slots, routers=routers,
        sessions=sessions, rate=rate, arrival=arrival,  # type: ignore[arg-type]
        at_once=at_once, fan_out=fan_out, context_tokens=context, speed=speed,
        faults=tuple(lab.parse_fault(text) for text in fault or ()),
    )  # fmt: skip
    swept = lab.parse_sweep(sweep) if sweep else None
    if slo_ttft_p99 is not None and swept is None:
        raise SettingsError("--slo-ttft-p99 asks for a --sweep, as in --sweep replicas=2..16")
    at = lab.points(setup, swept)
    for _, point in at:
        lab.check(point)
    policies, numbers = lab.parse_policies(policy), _seeds(seeds)
    with Progress(
        TextColumn("sessions"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None)
        rows = lab.run_all(
            at, policies, numbers, jobs or os.cpu_count() or 1,
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    met = None
    if swept is not None and slo_ttft_p99 is not None:
        met = lab.first_to_meet(rows, swept, slo_ttft_p99)
    if plot is not None:
        from sessile.lab.plot import draw

        draw(rows, swept, slo_ttft_p99, plot)
    if json:
        print(msgspec.json.format(msgspec.json.encode(_json(setup, numbers, rows, swept, met))
                                  ).decode())  # fmt: skip
        return
    out = Console()
    out.print(_table(lab.load_of(setup, numbers[0]).name, numbers, rows, swept))
    for name, value in (met or {}).items():
        out.print(_verdict(name, value, swept, slo_ttft_p99))


def _seeds(text: str) -> list[int]:
    try:
        found = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise SettingsError(f"--seeds {text!r}: give whole numbers by comma, as 1,2,3") from None
    return list(dict.fromkeys(found))


def _can_plot(path: Path) -> None:
    """Before minutes of work: can it be drawn, and is there a place for it?"""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise SettingsError("--plot needs matplotlib: pip install 'sessile\\[plot]'"
                            .replace("\\", ""))  # fmt: skip
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise SettingsError(f"--plot {path}: name a .png, .svg or .pdf file")
    if not path.parent.is_dir():
        raise SettingsError(f"--plot {path}: there is no folder {path.parent}")


def _json(setup: Any, seeds: list[int], rows: list[Any], swept: Any, met: Any) -> dict[str, Any]:
    runs = []
    for row in rows:
        at = {} if swept is None else {swept.name: row.value}
        runs.append({"policy": row.policy, **at, **msgspec.to_builtins(row.outcome)})
    found: dict[str, Any] = {"setup": msgspec.to_builtins(setup), "seeds": seeds, "runs": runs}
    if met is not None:
        found["meets_slo"] = met
    return found


def _table(name: str, seeds: list[int], rows: list[Any], swept: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=name, title_justify="left")
    many = f"; medians of {len(seeds)} seeds" if len(seeds) > 1 else ""
    table.caption = f"TTFT and session times in seconds{many}"
    table.caption_justify = "left"
    table.add_column("POLICY", no_wrap=True)
    for title in ("HIT\nRATE", "TTFT\nP50", "\nP90", "\nP99", "SESSION\nMEAN", "TOKENS\nCOMPUTED",
                  "MAX/\nMEAN", "\nFAILED"):  # fmt: skip
        table.add_column(title, justify="right", no_wrap=True)
    last = None
    for row in rows:
        if swept is not None and row.value != last:
            last = row.value
            table.add_row(f"{swept.name.replace('_', '-')} {last:,g}", style="bold")
        o = row.outcome
        table.add_row(
            row.policy, f"{o.hit_rate:.3f}", _short(o.ttft_p50_s), _short(o.ttft_p90_s),
            _short(o.ttft_p99_s), f"{o.session_time_mean_s:.1f}",
            f"{o.computed_tokens / 1e6:,.2f}M", f"{o.max_over_mean:.2f}", str(o.failed),
        )  # fmt: skip
    return table


def _short(seconds: float) -> str:
    """Four digits at the most."""
    return f"{seconds:.3f}" if seconds < 10 else f"{seconds:.1f}"


def _verdict(policy: str, value: float | None, swept: Any, slo_s: float | None) -> str:
    name = swept.name.replace("_", "-")
    if value is None:
        return f"{policy}: no value of {name} keeps a TTFT p99 of {slo_s:g} s"
    edge = "from" if swept.more_is_easier else "up to"
    return f"{policy}: {edge} {name} {value:g} on, TTFT p99 stays within {slo_s:g} s"
