"""`python -m sessile.lab.speculation_bench --off URL --on URL`: when speculation pays.

The same conversations go to an engine without speculation, to one with it and, with `--auto`, to a
router before both, for each kind of text and number of conversations at once. The servers take
turns within a round, in another order each, so that what drifts drifts for all; a ratio is the mean
of those of all rounds, with the error that their difference makes. Where the router is held to the
better of two that are far apart, `--more` has further rounds of these two only. Beside it stands
what its choices alone would make, by the speeds of the engines that its turns went to.

A router has texts of its own: an engine that drafts from all that it has said would know those of
the pass before. `--again` holds the conversations of a point once unmeasured first and then the
same in each round, which is the case of an agent that does again what it did before; so all have
the same prompts, in which stands what the first server answered the first time. `--least` holds
more conversations than run at once, one after another, since what one of them is drawn tells
little. `--learn` lets the router have passes first: what it makes of a kind of text that it
knows is measured then, not how it finds out. On cores that others share, `--pids URL=PID URL=PID`
times each turn by what the engine that ran it computes; a router is asked for its engines' URLs.
Routers may stand before all: so many replicas that speculate, that do not, and some of each.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import msgspec
from rich.console import Console

from sessile.errors import SessileError, SettingsError
from sessile.lab.speculation_load import Pass, Side, run_pass
from sessile.lab.speculation_rows import Row, better, read, rows, table, verdict
from sessile.lab.speculation_texts import KINDS, Script, conversation
from sessile.lab.speculation_watch import computed_s


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of every server. `output` is tokens a turn, `least` the conversations of a
    pass, `learn` the passes of each kind and batch that the router has before the measured ones;
    `more` are the further rounds of the router and the better engine; `name` tells this run's
    sessions from all others."""

    kinds: tuple[str, ...] = tuple(KINDS)
    batches: tuple[int, ...] = (1, 4, 16)
    output: int = 256
    turns: int = 3
    least: int = 1
    rounds: int = 3
    learn: int = 0
    more: int = 0
    again: bool = False
    seed: int = 1
    name: str = "spec"


# -- the passes


async def measure(setup: Setup, sides: Sequence[Side]) -> AsyncIterator[Pass]:
    """The passes, those of each kind and batch one after another. Raises `SessileError`."""
    for kind in setup.kinds:
        for batch in setup.batches:
            async for each in _point(setup, sides, kind, batch):
                yield each


async def _point(setup: Setup, sides: Sequence[Side], kind: str, batch: int) -> AsyncIterator[Pass]:
    held = max(setup.least, batch)
    known: list[Script] = []  # the same for all

    async def one(side: Side, number: int, label: str, drawn: str) -> Pass:
        scripts = known or [
            conversation(kind, setup.turns, setup.output, Random(f"{drawn} {index}"))
            for index in range(held)
        ]
        name = f"{setup.name}-{side.name}-{kind}-{batch}-{number}{label}"
        measured, said = await run_pass(
            side, kind, scripts, name, batch=batch, number=number, tokens=setup.output
        )
        if setup.again:
            known[:] = known or said
        return measured

    # The router first: what it sends is new to its replicas then, of which it learns what a prompt
    # costs; an engine would know the prompts of `--again` from having been asked itself.
    first = sorted(sides, key=lambda side: side.name != "auto")
    for number in range(max(setup.learn, setup.again)):
        for side in first:
            if number < _unmeasured(setup, side.name):
                await one(side, number, "-learn", f"{setup.seed} {kind} {batch} learn {number}")
    passes: list[Pass] = []
    for number in range(setup.rounds + setup.more):
        if number == setup.rounds:
            sides = [side for side in sides if side.name in ("auto", better(passes))]
        turn = number % len(sides)
        for side in (*sides[turn:], *sides[:turn]):
            own = f"{number} {'auto' if side.name == 'auto' else ''}"
            passes.append(await one(side, number, "", f"{setup.seed} {kind} {batch} {own}"))
            yield passes[-1]


def _unmeasured(setup: Setup, side: str) -> int:
    """How many passes come before those that are measured. An engine has nothing to learn but what
    it says, and what comes with the first prompts of that size."""
    return max(setup.learn if side == "auto" else min(setup.learn, 1), setup.again)


# -- the command


async def _run(
    setup: Setup, sides: Sequence[Side], file: Path | None, seconds: float | None
) -> list[Row]:
    """All rows; after so many seconds those of which both engines have a pass by then."""
    console = Console(stderr=True)
    passes: list[Pass] = []
    point = setup.rounds * len(sides) + setup.more * (len(sides) - 1)
    async with AsyncExitStack() as stack:
        for side in sides:
            stack.push_async_callback(side.aclose)
            await side.find()
        try:
            async with asyncio.timeout(seconds):
                async for each in measure(setup, sides):
                    passes.append(each)
                    if file is not None:  # after each of them: who is killed leaves something
                        _write(file, setup, passes)
                    if len(passes) % point == 0:
                        console.print(table(rows(passes[-point:])))
        except TimeoutError:
            points = len(setup.kinds) * len(setup.batches)
            done = f"{len(passes)} of {points * point} passes"
            console.print(f"cut off after {seconds:g} s, with {done}")
    return rows(passes)


def _write(file: Path, setup: Setup, passes: Sequence[Pass]) -> None:
    whole = {"setup": setup, "rows": rows(passes), "passes": passes}
    file.write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")


def _setup(given: argparse.Namespace) -> Setup:
    if not (given.off and given.on):
        raise SettingsError("--off and --on are the engines to compare; name the URLs of both")
    kinds = tuple(given.kinds.split(","))
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise SettingsError(f"--kinds: there is no {unknown[0]!r}; there are {', '.join(KINDS)}")
    try:
        batches = tuple(int(batch) for batch in given.batches.split(","))
    except ValueError as error:
        raise SettingsError(f"--batches: {given.batches!r} is not numbers by comma") from error
    least = min(*batches, given.least, given.rounds, given.turns, given.output - 1)
    least = min(least, given.learn + 1, given.more + 1)
    if least < 1:
        raise SettingsError("--batches, --least, --rounds and --turns begin at 1, --output at 2")
    if given.json is not None and not given.json.absolute().parent.is_dir():
        raise SettingsError(f"--json: there is no folder {given.json.parent}; make it first")
    return Setup(
        kinds=kinds, batches=batches, output=given.output, turns=given.turns,
        least=given.least, rounds=given.rounds, learn=given.learn, more=given.more,
        again=given.again, seed=given.seed, name=f"{time.time_ns():x}",
    )  # fmt: skip


def _pids(given: Sequence[str]) -> dict[str, int]:
    """The processes to be timed, by the URLs of their engines; none, where the clock is to
    count."""
    found: dict[str, int] = {}
    for each in given:
        url, _, pid = each.rpartition("=")
        if not (url and pid.isdecimal()):
            raise SettingsError(f"--pids: {each!r} is not URL=PID, an engine's and its process")
        found[url] = int(pid)
        computed_s(found[url])  # that it is there is to be known before anything is asked
    return found


def main() -> None:
    """The command; its defaults are those of `Setup`."""
    default = Setup()
    parser = argparse.ArgumentParser(prog="python -m sessile.lab.speculation_bench")
    parser.add_argument("--off", help="URL of an engine that does not speculate")
    parser.add_argument("--on", help="URL of one that does")
    parser.add_argument("--auto", help="URL of a router before both")
    parser.add_argument("--model", help="default: the first that each serves")
    parser.add_argument("--key", default="none")
    parser.add_argument("--kinds", default=",".join(default.kinds), help="of text, by comma")
    parser.add_argument("--batches", default=",".join(map(str, default.batches)),
                        help="conversations at once, by comma")  # fmt: skip
    parser.add_argument("--output", type=int, default=default.output, help="tokens a turn")
    parser.add_argument("--turns", type=int, default=default.turns, help="of a conversation")
    parser.add_argument("--least", type=int, default=default.least,
                        help="conversations of a pass, if fewer run at once")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--learn", type=int, default=default.learn,
                        help="unmeasured passes first, of each point, for the router")  # fmt: skip
    parser.add_argument("--more", type=int, default=default.more,
                        help="further rounds of the router and the better engine")  # fmt: skip
    parser.add_argument("--again", action="store_true",
                        help="hold the same in each round, once unmeasured first")  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed,
                        help="another for servers that know the texts of the last run")  # fmt: skip
    parser.add_argument("--pids", metavar="URL=PID", nargs="+", default=(),
                        help="time by what these engines compute, not by the clock")  # fmt: skip
    parser.add_argument("--seconds", type=float, help="end after so long with what there is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, as far as it came")
    parser.add_argument("--table", type=Path, metavar="FILE", nargs="+",
                        help="measure nothing, show what these files of --json hold")  # fmt: skip
    given = parser.parse_args()
    urls = {"off": given.off, "on": given.on, "auto": given.auto}
    try:
        if given.table:
            found = read(given.table)
        else:
            setup = _setup(given)
            pids = _pids(given.pids)
            engines = {given.off: "off", given.on: "on"}
            sides = [
                Side(name, url, given.key, given.model, pids, engines if name == "auto" else None)
                for name, url in urls.items()
                if url
            ]
            found = asyncio.run(_run(setup, sides, given.json, given.seconds))
    except SessileError as error:
        sys.exit(f"error: {error.message}")
    console = Console()
    console.print(table(found))
    console.print(verdict(found))


if __name__ == "__main__":
    main()
