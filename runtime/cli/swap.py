"""`sessile swap`: replace what serves a model while sessions run, and watch both sides.

It speaks to the native API as any client could.
"""

import re
from typing import Annotated, Any

import typer
from rich.console import Console, Group

from sessile.cli.admin import PANEL, Json, Key, Url, connected, examples, print_json
from sessile.cli.tables import release_line, release_view
from sessile.client import calls
from sessile.errors import InvalidRequest

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def register(app: typer.Typer) -> None:
    """Add the command to the `sessile` command line."""
    app.command(
        rich_help_panel=PANEL,
        epilog=examples(
            "swap llama --to green --percent 10",
            "swap llama --percent 50",
            "swap llama --finish --deadline 10m",
            "swap llama --roll-back",
            "swap",
        ),
    )(swap)


def swap(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="What clients ask for.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TARGET", help="Begin: a model, a pool, or ENGINE-VERSION; MODEL@POOL."
        ),
    ] = None,
    percent: Annotated[
        float | None, typer.Option("--percent", help="Of the new sessions.  \\[default: 100]")
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline", metavar="TIME", help="When sessions move that still run: 90s, 10m, 2h."
        ),
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="End it: all to the target.")] = False,
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="End it: all back, at once or by --deadline.")
    ] = False,
    json: Json = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Replace what serves MODEL while sessions run; without an option: both sides' figures.

    New sessions go to the target, by percentage; each stays where it began, with all its turns and
    forks, until it ends or a deadline has passed. Then its next turn goes to the other side, whole.
    """
    with connected(url, api_key) as http:
        call = _command(model, to, percent, deadline, finish, roll_back)
        if call is not None:
            changed = http.call(call)
            if json:
                print_json(changed)
            else:
                Console().print(release_line(changed))
            return
        found = http.call(calls.list_releases()).releases
        if model is not None:
            found = [each for each in found if each.model == model]
    if json:
        print_json(found)
    elif found:
        Console().print(Group(*(release_view(each) for each in found)))
    else:
        typer.echo("no swap yet" if model is None else f"no swap of {model} yet")


def _command(
    model: str | None, to: str | None, percent: float | None, deadline: str | None, finish: bool,
    roll_back: bool,
) -> calls.Call[calls.ReleaseInfo] | None:  # fmt: skip
    """What is to be changed, if anything. Raises `InvalidRequest`."""
    deadline_s = None if deadline is None else seconds(deadline)
    asked: dict[str, Any] = {
        "--to": to is not None, "--finish": finish, "--roll-back": roll_back,
        "--percent": percent is not None and to is None,
    }  # fmt: skip
    given = [name for name, is_given in asked.items() if is_given]
    if len(given) > 1:
        raise InvalidRequest(f"{given[0]} and {given[1]} are two commands; give one")
    if deadline is not None and given not in (["--to"], ["--finish"], ["--roll-back"]):
        raise InvalidRequest("--deadline goes with --to, --finish or --roll-back")
    if not given:
        return None
    if model is None:
        raise InvalidRequest(f"{given[0]} needs the MODEL that clients ask for")
    if to is not None:
        return calls.begin_swap(model, to, 100.0 if percent is None else percent, deadline_s)
    if percent is not None:
        return calls.grow_swap(model, percent)
    end = calls.finish_swap if finish else calls.roll_back_swap
    return end(model, deadline_s)


def seconds(text: str) -> float:
    """A time span such as 90, 90s, 10m, 2h or 1d. Raises `InvalidRequest`."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"--deadline {text!r} is no time span, as 90s, 10m or 2h are")
    return float(match[1]) * _UNITS[match[2] or "s"]
