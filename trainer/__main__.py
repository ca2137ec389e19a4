"""``python -m trainer``: what a container that trains runs."""

from __future__ import annotations

import sys

import typer

from mach.errors import MachError, UserError
from mach.interrupts import INTERRUPTED, as_interrupt
from trainer.command import make_command


def main() -> None:
    """Run the command line. Exit codes as of ``mach``: 2 a mistake to mend, 1 a failure."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(make_command(parts=True))
    try:
        with as_interrupt():
            app(prog_name="python -m trainer")
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; the same command continues", INTERRUPTED))
    except MachError as error:
        sys.exit(_fail(f"error: {error}", 2 if isinstance(error, UserError) else 1))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_fail(f"error: {where}{error.strerror or error}", 2))


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
