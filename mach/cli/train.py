"""``mach train``: interactions to a bundle."""

from __future__ import annotations

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from trainer.command import make_command

    app.command("train")(make_command(parts=False))
