"""What a condition is made of, and how its mistakes are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mach.errors import InvalidInput

__all__ = ["Literal", "Name", "error_at", "shown"]

_MOST_SHOWN = 80  # characters of what a message quotes


@dataclass(frozen=True)
class Name:
    """An attribute's name and the character where it begins."""

    text: str
    position: int


@dataclass(frozen=True)
class Literal:
    """A value (text, Decimal or bool), what was written, and the character where that begins."""

    value: Any
    written: str
    position: int


def error_at(position: int, message: str) -> InvalidInput:
    """A mistake at a character, counted from 0 here and from 1 for people."""
    return InvalidInput("filter", f"at character {position + 1}: {message}")


def shown(text: str) -> str:
    """Text to quote in a message."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
