"""The figures of the speculation benchmark: passes become rows, one of each kind and batch.

The passes of one server differ from each other by chance; a row says what that makes of the ratio
of auto, which is worth no more.
"""

from collections.abc import Iterable, Sequence
from math import exp, hypot, log, sqrt
from pathlib import Path
from statistics import harmonic_mean, mean, median, stdev

import msgspec
from rich.table import Table

from sessile.errors import SettingsError
from sessile.lab.speculation_load import Pass

_CLOSE = 0.97  # of the better of on and off, which auto is to reach


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of text and batch, of all rounds. Speeds are decoded tokens a second; `whole` ones
    count the prompts' time too. `break_even` is the acceptance at which on is as fast as off, by
    the cost of their steps; None where the acceptance is not told. The ratios of auto are to the
    better, and `error` is two standard errors of that of decoding, in parts of it, by how far the
    passes of either lay apart; None where one had one pass only."""

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
    auto_at: dict[str, int] = {}


def rows(passes: Sequence[Pass]) -> list[Row]:
    """Those of which both engines have a pass, in their order."""
    cells: dict[tuple[str, int], list[Pass]] = {}
    for each in passes:
        cells.setdefault((each.kind, each.batch), []).append(each)
    return [
        _row(kind, batch, found)
        for (kind, batch), found in cells.items()
        if {"off", "on"} <= {each.side for each in found}
    ]


def _row(kind: str, batch: int, passes: Sequence[Pass]) -> Row:
    def whole(side: str) -> float:
        return harmonic_mean([each.whole_tok_s for each in passes if each.side == side])

    def tpot(side: str) -> float:
        return median(each.tpot_p50_s for each in passes if each.side == side)

    def speed(side: str) -> float:
        return _speed(passes, side)

    off, on = speed("off"), speed("on")
    told = [each.acceptance for each in passes if each.side == "on" and each.acceptance]
    acceptance = mean(told) if told else None
    row = Row(
        kind=kind, batch=batch, off_tok_s=off, on_tok_s=on, on_ratio=on / off,
        on_whole_ratio=whole("on") / whole("off"), acceptance=acceptance,
        break_even=break_even(acceptance, off, on), off_tpot_s=tpot("off"), on_tpot_s=tpot("on"),
    )  # fmt: skip
    auto = [each for each in passes if each.side == "auto"]
    if not auto:
        return row
    at: dict[str, int] = {}
    for each in auto:
        for replica, turns in each.turns_at.items():
            at[replica] = at.get(replica, 0) + turns
    return msgspec.structs.replace(
        row, auto_tok_s=speed("auto"), auto_tpot_s=tpot("auto"),
        auto_ratio=speed("auto") / max(off, on),
        auto_whole_ratio=whole("auto") / max(whole("off"), whole("on")), auto_at=at,
        error=_error(passes, ("auto", better(passes))),
    )  # fmt: skip


def better(passes: Sequence[Pass]) -> str:
    """The engine that decodes faster, of those that have a pass of each."""
    return max(("off", "on"), key=lambda side: _speed(passes, side))


def _speed(passes: Sequence[Pass], side: str) -> float:
    """All tokens of the passes, which have as many each, by all the time that they took."""
    return harmonic_mean([each.decode_tok_s for each in passes if each.side == side])


def _error(passes: Sequence[Pass], sides: Sequence[str]) -> float | None:
    errors = []
    for side in sides:
        speeds = [log(each.decode_tok_s) for each in passes if each.side == side]
        if len(speeds) < 2:
            return None
        errors.append(stdev(speeds) / sqrt(len(speeds)))
    return exp(2.0 * hypot(*errors)) - 1.0


def break_even(acceptance: float | None, off_tok_s: float, on_tok_s: float) -> float | None:
    """What a step costs with speculation in steps without: as many tokens it has to make. A step
    without makes one token of each sequence, one with makes `acceptance`."""
    return acceptance * off_tok_s / on_tok_s if acceptance else None


def table(found: Sequence[Row]) -> Table:
    """For people."""
    shown = Table(header_style="bold")
    shown.add_column("kind")
    for name in ("batch", "off tok/s", "on (of off)", "tokens a step", "break-even",
                 "auto (of the better)", "±", "with prompts: on, auto",
                 "auto's turns at"):  # fmt: skip
        shown.add_column(name, justify="right")
    for row in found:
        shown.add_row(
            row.kind, str(row.batch), f"{row.off_tok_s:.1f}",
            f"{row.on_tok_s:.1f} ({row.on_ratio:.2f})",
            _figure(row.acceptance), _figure(row.break_even),
            "-" if row.auto_tok_s is None else f"{row.auto_tok_s:.1f} ({_figure(row.auto_ratio)})",
            _figure(row.error), f"{row.on_whole_ratio:.2f}, {_figure(row.auto_whole_ratio)}",
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
    return (
        f"auto is within 3 % of the better of on and off, or above it, at {close} of "
        f"{len(ratios)} points, and below by more than the error at {surely}; "
        f"the worst is {min(ratios):.2f} of it"
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
