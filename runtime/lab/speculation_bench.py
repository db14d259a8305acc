"""`python -m sessile.lab.speculation_bench --off URL --on URL`: when speculation pays.

The same conversations go to an engine without speculation, to one with it and, with `--auto`, to a
router before both, for each kind of text and number of conversations at once. The servers take
turns within a round, in another order each, so that what drifts drifts for all; figures are
medians over the rounds.

A router has texts of its own: an engine that drafts from all that it has said would know those of
the pass before. `--again` holds each conversation once unmeasured first, which is the case of an
agent that does again what it did before; then all have the same texts.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from statistics import median

import msgspec
from rich.console import Console
from rich.table import Table

from sessile.errors import SessileError, SettingsError
from sessile.lab.speculation_load import Pass, Side, run_pass
from sessile.lab.speculation_texts import KINDS, conversation

_CLOSE = 0.97  # of the better of on and off, which auto is to reach


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of every server. `output` is tokens a turn, `learn` the conversations of each
    kind and batch before the measured ones; `name` tells this run's sessions from all others."""

    kinds: tuple[str, ...] = tuple(KINDS)
    batches: tuple[int, ...] = (1, 4, 16)
    output: int = 256
    turns: int = 3
    rounds: int = 3
    learn: int = 0
    again: bool = False
    seed: int = 1
    name: str = "spec"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of text and batch. Speeds are decoded tokens a second; `whole` ones count the
    prompts' time too. `break_even` is the acceptance at which on is as fast as off, by the cost of
    their steps; None where the acceptance is not told. The ratios of auto are to the better."""

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
    auto_at: dict[str, int] = {}


# -- the passes


async def measure(setup: Setup, sides: Sequence[Side]) -> AsyncIterator[list[Pass]]:
    """The passes of each kind and batch, one after another. Raises `SessileError`."""
    for kind in setup.kinds:
        for batch in setup.batches:
            yield await _cell(setup, sides, kind, batch)


async def _cell(setup: Setup, sides: Sequence[Side], kind: str, batch: int) -> list[Pass]:
    async def one(side: Side, number: int, label: str, drawn: str) -> Pass:
        scripts = [
            conversation(kind, setup.turns, setup.output, Random(f"{drawn} {index}"))
            for index in range(batch)
        ]
        name = f"{setup.name}-{side.name}-{kind}-{batch}-{number}{label}"
        return await run_pass(side, kind, scripts, name, number=number, tokens=setup.output)

    for side in sides:
        for number in range(-(-setup.learn // batch)):
            await one(side, number, "-learn", f"{setup.seed} learn {kind} {batch} {number}")
    passes = []
    for number in range(setup.rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            own = "auto" if side.name == "auto" and not setup.again else ""
            drawn = f"{setup.seed} {kind} {batch} {number} {own}"
            if setup.again:
                await one(side, number, "-before", drawn)
            passes.append(await one(side, number, "", drawn))
    return passes


# -- the figures


def rows(passes: Sequence[Pass]) -> list[Row]:
    """The medians of each kind and batch, in the order of the passes."""
    cells: dict[tuple[str, int], list[Pass]] = {}
    for each in passes:
        cells.setdefault((each.kind, each.batch), []).append(each)
    return [_row(kind, batch, found) for (kind, batch), found in cells.items()]


def _row(kind: str, batch: int, passes: Sequence[Pass]) -> Row:
    def of(side: str, figure: Callable[[Pass], float]) -> float:
        return median(figure(each) for each in passes if each.side == side)

    def speed(side: str) -> float:
        return of(side, lambda each: each.decode_tok_s)

    def whole(side: str) -> float:
        return of(side, lambda each: each.whole_tok_s)

    def tpot(side: str) -> float:
        return of(side, lambda each: each.tpot_p50_s)

    off, on = speed("off"), speed("on")
    told = [each.acceptance for each in passes if each.side == "on" and each.acceptance]
    acceptance = median(told) if told else None
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
    )  # fmt: skip


def break_even(acceptance: float | None, off_tok_s: float, on_tok_s: float) -> float | None:
    """What a step costs with speculation in steps without: as many tokens it has to make. A step
    without makes one token of each sequence, one with makes `acceptance`."""
    return acceptance * off_tok_s / on_tok_s if acceptance else None


# -- the command


def table(found: Sequence[Row]) -> Table:
    """For people."""
    shown = Table(header_style="bold")
    shown.add_column("kind")
    for name in ("batch", "off tok/s", "on (of off)", "tokens a step", "break-even",
                 "auto (of the better)", "with prompts: on, auto"):  # fmt: skip
        shown.add_column(name, justify="right")
    for row in found:
        shown.add_row(
            row.kind, str(row.batch), f"{row.off_tok_s:.1f}",
            f"{row.on_tok_s:.1f} ({row.on_ratio:.2f})",
            _figure(row.acceptance), _figure(row.break_even),
            "-" if row.auto_tok_s is None else f"{row.auto_tok_s:.1f} ({_figure(row.auto_ratio)})",
            f"{row.on_whole_ratio:.2f}, {_figure(row.auto_whole_ratio)}",
        )  # fmt: skip
    return shown


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def verdict(found: Sequence[Row]) -> str:
    """Whether auto is where it should be; empty without it."""
    ratios = [row.auto_ratio for row in found if row.auto_ratio is not None]
    if not ratios:
        return ""
    close = sum(ratio >= _CLOSE for ratio in ratios)
    return (
        f"auto is within 3 % of the better of on and off, or above it, at {close} of "
        f"{len(ratios)} points; the worst is {min(ratios):.2f} of it"
    )


async def _run(setup: Setup, sides: Sequence[Side], file: Path | None) -> list[Row]:
    console = Console(stderr=True)
    passes: list[Pass] = []
    async with AsyncExitStack() as stack:
        for side in sides:
            stack.push_async_callback(side.aclose)
            await side.find()
        async for cell in measure(setup, sides):
            passes += cell
            console.print(table(rows(cell)))
            if file is not None:  # after each of them: a run that is cut short has something
                whole = {"setup": setup, "rows": rows(passes), "passes": passes}
                file.write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")  # noqa: ASYNC240 - no turn is under way
    return rows(passes)


def _setup(given: argparse.Namespace) -> Setup:
    kinds = tuple(given.kinds.split(","))
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise SettingsError(f"--kinds: there is no {unknown[0]!r}; there are {', '.join(KINDS)}")
    try:
        batches = tuple(int(batch) for batch in given.batches.split(","))
    except ValueError as error:
        raise SettingsError(f"--batches: {given.batches!r} is not numbers by comma") from error
    if min(*batches, given.rounds, given.turns, given.output - 1, given.learn + 1) < 1:
        raise SettingsError("--batches, --rounds and --turns begin at 1, --output at 2")
    if given.json is not None and not given.json.absolute().parent.is_dir():
        raise SettingsError(f"--json: there is no folder {given.json.parent}; make it first")
    return Setup(
        kinds=kinds, batches=batches, output=given.output, turns=given.turns,
        rounds=given.rounds, learn=given.learn, again=given.again, seed=given.seed,
        name=f"{time.time_ns():x}",
    )  # fmt: skip


def main() -> None:
    """The command; its defaults are those of `Setup`."""
    default = Setup()
    parser = argparse.ArgumentParser(prog="python -m sessile.lab.speculation_bench")
    parser.add_argument("--off", required=True, help="URL of an engine that does not speculate")
    parser.add_argument("--on", required=True, help="URL of one that does")
    parser.add_argument("--auto", help="URL of a router before both")
    parser.add_argument("--model", help="default: the first that each serves")
    parser.add_argument("--key", default="none")
    parser.add_argument("--kinds", default=",".join(default.kinds), help="of text, by comma")
    parser.add_argument("--batches", default=",".join(map(str, default.batches)),
                        help="conversations at once, by comma")  # fmt: skip
    parser.add_argument("--output", type=int, default=default.output, help="tokens a turn")
    parser.add_argument("--turns", type=int, default=default.turns, help="of a conversation")
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--learn", type=int, default=default.learn,
                        help="unmeasured conversations first, of each kind and batch")  # fmt: skip
    parser.add_argument("--again", action="store_true",
                        help="hold each conversation once unmeasured first")  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed,
                        help="another for servers that know the texts of the last run")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, as far as it came")
    given = parser.parse_args()
    urls = {"off": given.off, "on": given.on, "auto": given.auto}
    try:
        setup = _setup(given)
        sides = [Side(name, url, given.key, given.model) for name, url in urls.items() if url]
        found = asyncio.run(_run(setup, sides, given.json))
    except SessileError as error:
        sys.exit(f"error: {error.message}")
    console = Console()
    console.print(table(found))
    console.print(verdict(found))


if __name__ == "__main__":
    main()
