"""Options that are numbers."""

from __future__ import annotations

import math

import typer

__all__ = ["finite"]


def finite(value: float | None) -> float | None:
    """The callback of an option: NaN, which no minimum or maximum refuses, and infinity are none.

    Raises:
        BadParameter: if the value is not finite.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value
