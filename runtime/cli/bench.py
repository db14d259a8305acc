"""`sessile bench`: measure what sessions gain, and what the router costs."""

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
