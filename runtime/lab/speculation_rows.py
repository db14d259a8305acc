"""The figures of the speculation benchmark: passes become rows, one of each kind and batch.

Machines drift, by more than what is to be seen: a ratio is that of the passes of one round, which
follow each other, in the geometric mean of all rounds. How far the rounds lie apart says what it
is worth.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, log, sqrt
from pathlib import Path
from statistics import geometric_mean, harmonic_mean, mean, median, stdev

import msgspec
from rich.table import Table

from sessile.errors import SettingsError
from sessile.lab.speculation_load import Pass

_CLOSE = 0.97  # of the better of on and off, which auto is to reach


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of text and batch, of all rounds. Speeds are decoded tokens a second; `whole` ones
    count the prompts' time too. `break_even` is the acceptance at which on is as fast as off, by
    the cost of their steps; None where the acceptance is not told. The ratios of auto are to the
    better, and `error` is two standard errors of that of decoding, in parts of it; None of one
    round alone. `auto_chosen` is what auto would be of the better, were each of its turns as fast
    as turns are of the engine that it went to, in rounds of that engine alone; None where it
    has others than these two."""

    kind: str
    batch: int
    off_tok_s: float
    on_tok_s: float
    on_ratio: float
    on_whole_ratio: float
    acceptance: float | None
    break_even: float | None
    off_tpot_s: float
    on_tpot_s: float
    auto_tok_s: float | None = None
    auto_tpot_s: float | None = None
    auto_ratio: float | None = None
    auto_whole_ratio: float | None = None
    error: float | None = None
    auto_chosen: float | None = None
    auto_at: dict[str, int] = {}


def rows(passes: Sequence[Pass]) -> list[Row]:
    """Those of which both engines have a pass of one round, in their order."""
    cells: dict[tuple[str, int], list[Pass]] = {}
    for each in passes:
        cells.setdefault((each.kind, each.batch), []).append(each)
    return [
        _row(kind, batch, found)
        for (kind, batch), found in cells.items()
        if _ratios(found, "on", "off")
    ]


def _row(kind: str, batch: int, passes: Sequence[Pass]) -> Row:
    def speed(side: str) -> float:
        return harmonic_mean([each.decode_tok_s for each in passes if each.side == side])

    def tpot(side: str) -> float:
        return median(each.tpot_p50_s for each in passes if each.side == side)

    off, on = speed("off"), speed("on")
    told = [each.acceptance for each in passes if each.side == "on" and each.acceptance]
    acceptance = mean(told) if told else None
    on_ratio = geometric_mean(_ratios(passes, "on", "off"))
    row = Row(
        kind=kind, batch=batch, off_tok_s=off, on_tok_s=on, on_ratio=on_ratio,
        on_whole_ratio=geometric_mean(_ratios(passes, "on", "off", _whole)),
        acceptance=acceptance, break_even=break_even(acceptance, on_ratio),
        off_tpot_s=tpot("off"), on_tpot_s=tpot("on"),
    )  # fmt: skip
    ratios = _ratios(passes, "auto", better(passes))
    if not ratios:
        return row
    at: Counter[str] = Counter()
    for each in passes:
        if each.side == "auto":
            at.update(each.turns_at)
    whole = better(passes, _whole)
    return msgspec.structs.replace(
        row, auto_tok_s=speed("auto"), auto_tpot_s=tpot("auto"),
        auto_ratio=geometric_mean(ratios),
        auto_whole_ratio=geometric_mean(_ratios(passes, "auto", whole, _whole)),
        auto_at=dict(sorted(at.items())), auto_chosen=_chosen(at, on_ratio), error=_error(ratios),
    )  # fmt: skip


def _decoding(each: Pass) -> float:
    return each.decode_tok_s


def _whole(each: Pass) -> float:
    return each.whole_tok_s


def better(passes: Sequence[Pass], speed: Callable[[Pass], float] = _decoding) -> str:
    """The faster engine, of those that have a pass of each in some round."""
    return "on" if geometric_mean(_ratios(passes, "on", "off", speed)) > 1.0 else "off"


def _ratios(
    passes: Sequence[Pass], side: str, to: str, speed: Callable[[Pass], float] = _decoding
) -> list[float]:
    """Of the rounds that have a pass of both."""
    others = {each.round: speed(each) for each in passes if each.side == to}
    found = (each for each in passes if each.side == side and each.round in others)
    return [speed(each) / others[each.round] for each in found]


def _chosen(at: Mapping[str, int], on_ratio: float) -> float | None:
    speeds = {"off": 1.0, "on": on_ratio}
    if not at or at.keys() - speeds.keys():
        return None
    turns = sum(at.values())
    best_s = turns / max(speeds.values())
    return best_s / sum(count / speeds[side] for side, count in at.items())


def _error(ratios: Sequence[float]) -> float | None:
    if len(ratios) < 2:
        return None
    return exp(2.0 * stdev(map(log, ratios)) / sqrt(len(ratios))) - 1.0


def break_even(acceptance: float | None, on_ratio: float) -> float | None:
    """What a step costs with speculation in steps without: as many tokens it has to make. A step
    without makes one token of each sequence, one with makes `acceptance`."""
    return acceptance / on_ratio if acceptance else None


def table(found: Sequence[Row]) -> Table:
    """For people."""
    shown = Table(header_style="bold")
    shown.add_column("kind")
    for name in ("batch", "off tok/s", "on (of off)", "tokens a step", "break-even",
                 "auto (of the better)", "±", "by its choices",
                 "with prompts: on, auto", "auto's turns at"):  # fmt: skip
        shown.add_column(name, justify="right")
    for row in found:
        shown.add_row(
            row.kind, str(row.batch), f"{row.off_tok_s:.1f}",
            f"{row.on_tok_s:.1f} ({row.on_ratio:.2f})",
            _figure(row.acceptance), _figure(row.break_even),
            "-" if row.auto_tok_s is None else f"{row.auto_tok_s:.1f} ({_figure(row.auto_ratio)})",
            _figure(row.error), _figure(row.auto_chosen),
            f"{row.on_whole_ratio:.2f}, {_figure(row.auto_whole_ratio)}",
            ", ".join(f"{replica} {turns}" for replica, turns in row.auto_at.items()) or "-",
        )  # fmt: skip
    return shown


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def verdict(found: Sequence[Row]) -> str:
    """Whether auto is where it should be, and where it is surely not; empty without it."""
    ratios = [row.auto_ratio for row in found if row.auto_ratio is not None]
    if not ratios:
        return ""
    close = sum(ratio >= _CLOSE for ratio in ratios)
    surely = sum(
        row.auto_ratio * (1.0 + row.error) < _CLOSE
        for row in found
        if row.auto_ratio is not None and row.error is not None
    )
    chosen = [row.auto_chosen for row in found if row.auto_chosen is not None]
    by_choices = f"; by its choices at {sum(each >= _CLOSE for each in chosen)} of {len(chosen)}"
    return (
        f"auto is within 3 % of the better of on and off, or above it, at {close} of "
        f"{len(ratios)} points, and below by more than the error at {surely}"
        f"{by_choices if chosen else ''}; "
        f"the worst is {min(ratios):.2f} of it, the mean {geometric_mean(ratios):.2f}"
    )


def read(files: Iterable[Path]) -> list[Row]:
    """The rows that runs have left in their files, be they cut off. Raises `SettingsError`."""
    found: list[Row] = []
    for file in files:
        try:
            found += rows(msgspec.json.decode(file.read_bytes(), type=_File).passes)
        except (OSError, msgspec.DecodeError) as error:
            raise SettingsError(
                f"--table: {file} is no file of this benchmark ({error}); give one that --json made"
            ) from error
    return found


class _File(msgspec.Struct):
    passes: list[Pass]
