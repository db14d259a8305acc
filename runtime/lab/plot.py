"""Draws what was simulated: curves over a swept value, or a bar for each policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sessile.errors import SettingsError
from sessile.lab.sim_routers import ORACLE, SIMULATED
from sessile.lab.simulate import Row, Sweep

_COLOURS = ("#d1495b", "#30638e", "#8d96a3", "#edae49", "#7fb069", "#00798c", "#9b5de5", "#444444")


def draw(rows: Sequence[Row], sweep: Sweep | None, slo_s: float | None, path: Path) -> None:
    """Hit rate and TTFT p99 side by side, written to `path`, whose ending says how."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("--plot needs matplotlib: pip install 'sessile[plot]'") from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    hits, waits = figure.subplots(1, 2)
    if sweep is None:
        _bars(hits, waits, rows)
    else:
        _curves(hits, waits, rows, sweep)
    hits.set_title("hit rate, of prompt tokens", loc="left")
    hits.set_ylim(bottom=0)
    waits.set_title("TTFT p99, s", loc="left")
    if slo_s is not None:
        waits.axhline(slo_s, color="#444444", linewidth=0.8, linestyle=":")
    for axes in (hits, waits):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise SettingsError(f"--plot {path}: {error.strerror}") from error


def _curves(hits: Any, waits: Any, rows: Sequence[Row], sweep: Sweep) -> None:
    for policy in dict.fromkeys(row.policy for row in rows):
        ours = [row for row in rows if row.policy == policy]
        values = [row.value for row in ours]
        style = {
            "color": _colour(policy), "label": policy, "marker": ".",
            "linestyle": "--" if policy == ORACLE else "-",
            "linewidth": 2.2 if policy == "session" else 1.2,
        }  # fmt: skip
        hits.plot(values, [row.outcome.hit_rate for row in ours], **style)
        waits.plot(values, [row.outcome.ttft_p99_s for row in ours], **style)
    waits.set_yscale("log")
    for axis in (waits.yaxis.set_major_formatter, waits.yaxis.set_minor_formatter):
        axis("{x:g}")
    for axes in (hits, waits):
        axes.set_xlabel(sweep.name.replace("_", "-"))
    waits.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))


def _bars(hits: Any, waits: Any, rows: Sequence[Row]) -> None:
    names = [row.policy for row in rows]
    colours = [_colour(name) for name in names]
    for axes, values in (
        (hits, [row.outcome.hit_rate for row in rows]),
        (waits, [row.outcome.ttft_p99_s for row in rows]),
    ):
        bars = axes.bar(names, values, color=colours, width=0.65)
        axes.bar_label(bars, fmt="%.3g", padding=2, fontsize="small")
        axes.tick_params(axis="x", rotation=30)
        axes.margins(y=0.12)


def _colour(policy: str) -> str:
    return _COLOURS[SIMULATED.index(policy) % len(_COLOURS)]
