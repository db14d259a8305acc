"""The `sessile` command: which subcommands there are, and how an error ends one."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from sessile.cli import admin, bench, deploy, simulate, swap, up
from sessile.errors import SessileError, SettingsError

app = typer.Typer(
    name="sessile",
    epilog="Start with: sessile up",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sessile {version('sessile')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """The serving runtime for AI agents: sessions that stay where their KV cache is."""


up.register(app)
admin.register(app)
swap.register(app)
deploy.register(app)
bench.register(app)
simulate.register(app)


def main() -> None:
    """Run the command; an error is one sentence on standard error, never a traceback."""
    try:
        app()
    except SessileError as error:
        print(f"sessile: {error.message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SettingsError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
