"""Ctrl-C, however a command that it ends reports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["INTERRUPTED", "as_interrupt"]

#: Exit code of a command that was interrupted.
INTERRUPTED = 130


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Make a KeyboardInterrupt of what became of one on its way.

    Raises:
        KeyboardInterrupt: where typer caught one and said nothing, or compiled code met it.
    """
    try:
        yield
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        raise
    except SystemError as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
