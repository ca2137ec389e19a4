"""``mach token``: the file of bearer tokens that a fleet knows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mach.cli.console import err, out
from mach.cli.numbers import finite

if TYPE_CHECKING:
    from rich.table import Table

    from mach.tokens import TokenFile

__all__ = ["register"]


class _Scope(StrEnum):
    search = "search"
    admin = "admin"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    token_app = typer.Typer(help="Create, list and revoke bearer tokens.", no_args_is_help=True)
    app.add_typer(token_app, name="token")
    file = typer.Argument(help="The token file; servers read it by --tokens.")

    @token_app.command()
    def create(
        path: Path = file,
        name: str = typer.Argument(help="Who will use it; shown in metrics and log lines."),
        scope: list[_Scope] = typer.Option(
            [_Scope.search], help="What it allows: searches, switching bundles; repeatable."
        ),
        rate: float = typer.Option(
            None,
            min=0.001,
            callback=finite,
            help="Queries a second that each server process answers; no limit by default.",
        ),
        burst: int = typer.Option(None, min=1, help="Queries at once. Default: a second's worth."),
        expires_in_days: float = typer.Option(
            None,
            min=0.001,
            max=36500,
            callback=finite,
            help="It is refused after so long; never by default.",
        ),
    ) -> None:
        """Add a token and print it, this once: the file keeps its hash."""
        from mach.tokens import create_token

        expires = None
        if expires_in_days is not None:
            expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=expires_in_days)
        token = create_token(
            path,
            name,
            scopes=[one.value for one in scope],
            rate=rate,
            burst=burst,
            expires=expires,
        )
        out.print(token, markup=False, highlight=False)

    @token_app.command("list")
    def list_tokens(
        path: Path = file,
        as_json: bool = typer.Option(False, "--json", help="Print an object."),
    ) -> None:
        """Show what is known of each token; not the tokens, which nobody has but their users."""
        from mach.tokens import read_tokens

        known = read_tokens(path, "the token file")
        if as_json:
            fields = known.model_dump(mode="json", exclude={"tokens": {"__all__": {"sha256"}}})
            out.print_json(json.dumps(fields))
        else:
            out.print(_table(known))

    @token_app.command()
    def revoke(
        path: Path = file,
        name: str = typer.Argument(help="The token's name or id."),
    ) -> None:
        """Take a token out of the file: servers refuse it within seconds."""
        from mach.tokens import revoke_token

        revoked = revoke_token(path, name)
        err.print(f"revoked {revoked.name} ({revoked.id})", markup=False, highlight=False)


def _table(known: TokenFile) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("name", "id", "allows", "rate", "burst", "created", "expires"):
        table.add_column(column)
    now = datetime.now(UTC)
    for token in known.tokens:
        expires = "never" if token.expires is None else f"{token.expires:%Y-%m-%d %H:%M}"
        if token.expires is not None and token.expires <= now:
            expires = f"[red]{expires}, expired[/]"
        table.add_row(
            Text(token.name),
            Text(token.id),
            ", ".join(token.scopes),
            "-" if token.rate is None else f"{token.rate:g}/s",
            "-" if token.rate is None else f"{token.burst or max(1, token.rate):g}",
            f"{token.created:%Y-%m-%d}",
            expires,
        )
    return table
