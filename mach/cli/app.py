"""The command tree and what it does with errors."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import typer
from rich.text import Text

from mach import __version__
from mach.cli.console import err
from mach.errors import MachError, UserError
from mach.interrupts import INTERRUPTED, as_interrupt

__all__ = ["build_app", "main"]

#: Modules with a ``register(app)``, in the order in which ``mach --help`` shows them.
COMMANDS = (
    "train",
    "evaluate",
    "serve",
    "search",
    "inspect",
    "bundle",
    "token",
    "compile",
    "quickstart",
)
BENCH_COMMANDS = ("bench_merge", "bench_fleet")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def build_app() -> typer.Typer:
    """The whole command tree."""
    app = typer.Typer(
        name="mach",
        help="Train, serve and search extreme classifiers with MACH.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def _root(
        version: bool = typer.Option(
            False, "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ) -> None:
        pass

    bench = typer.Typer(help="Measure this installation.", no_args_is_help=True)
    for name in COMMANDS:
        importlib.import_module(f"mach.cli.{name}").register(app)
    for name in BENCH_COMMANDS:
        importlib.import_module(f"mach.cli.{name}").register(bench)
    app.add_typer(bench, name="bench")
    return app


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; never returns.

    Exit codes: 0 done; 1 the fleet could not answer (retry); 2 a mistake in what was asked,
    named in one sentence; 130 interrupted.
    """
    try:
        with as_interrupt():
            build_app()(arguments)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(INTERRUPTED)
    except MachError as error:
        _print_error(str(error))
        sys.exit(2 if isinstance(error, UserError) else 1)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except UnicodeError as error:
        _print_error(f"a name or an argument is not valid Unicode: {error}")
        sys.exit(2)
    except MemoryError as error:
        _print_error(f"not enough memory: {error}")
        sys.exit(2)
    except OSError as error:
        _print_error(_os_error(error))
        sys.exit(2)
    sys.exit(0)


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _print_error(message: str) -> None:
    # A command line's bytes that are no UTF-8 are half surrogates, which no terminal takes.
    message = message.encode(errors="backslashreplace").decode()
    err.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=True)
