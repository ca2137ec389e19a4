"""``mach bundle switch`` and ``mach bundle loaded``: the bundles of a fleet that serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mach.cli.connection import (
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    TlsOption,
    TlsServerNameOption,
    TokenFileOption,
    make_tls,
    read_token,
)
from mach.cli.console import err, out

if TYPE_CHECKING:
    from mach.fleet.switching import FleetAdmin
    from mach.tls import Tls

__all__ = ["register"]

_FleetFile = Annotated[
    Path | None,
    typer.Option(
        "--fleet-file", help="What `mach serve --fleet-file` wrote; instead of addresses."
    ),
]
_Aggregators = Annotated[
    str, typer.Option(help="Admin ports of all aggregators, HOST:PORT,HOST:PORT.")
]
_Shards = Annotated[str, typer.Option(help="Admin ports of all shard servers, the same way.")]


def _admin(
    fleet_file: Path | None,
    aggregators: str,
    shards: str,
    tls: Tls | None,
    token_file: Path | None,
) -> FleetAdmin:
    from mach.client.connection import token_metadata
    from mach.errors import ConfigError
    from mach.fleet.switching import AdminPort, FleetAdmin, read_fleet_file
    from mach.serving.settings import split_address
    from mach.tls import ClientTls

    if (fleet_file is None) == (not aggregators and not shards):
        raise ConfigError("give --fleet-file, or --aggregators and --shards")
    if fleet_file is not None:
        ports = read_fleet_file(fleet_file)
    else:
        ports = []
        for flag, text in (("--aggregators", aggregators), ("--shards", shards)):
            for address in filter(None, (part.strip() for part in text.split(","))):
                try:
                    split_address(address)
                except ValueError as error:
                    raise ConfigError(f"{flag}: {error}") from None
                is_aggregator = flag == "--aggregators"
                name = f"{'aggregator' if is_aggregator else 'shard'} {address}"
                ports.append(AdminPort(name, address, is_aggregator, tls is not None))
    return FleetAdmin(
        ports,
        tls=None if tls is None else ClientTls(tls),
        metadata=token_metadata(read_token(token_file)),
        on_event=lambda message: err.print(message, markup=False, highlight=False),
    )


def register(bundle_app: typer.Typer) -> None:
    """Add the commands."""

    @bundle_app.command()
    def switch(
        path: str = typer.Argument(help="The bundle's directory on the servers' machines."),
        version: str = typer.Option("", help="The version expected there."),
        fleet_file: _FleetFile = None,
        aggregators: _Aggregators = "",
        shards: _Shards = "",
        tls: TlsOption = False,
        tls_ca: TlsCaOption = None,
        tls_certificate: TlsCertificateOption = None,
        tls_key: TlsKeyOption = None,
        tls_server_name: TlsServerNameOption = "",
        token_file: TokenFileOption = None,
    ) -> None:
        """Change a fleet that serves to another bundle, or back to the one before.

        The bundle is loaded, verified and warmed up beside the active one on every server; only
        then do the aggregators change to it, each at once. No answer mixes two versions. If a
        server refuses the bundle, the fleet goes on with the one it has, and the new one is dropped
        where it was loaded. A server holds two bundles: loading one drops what was on standby.
        """
        how = make_tls(tls, tls_ca, tls_certificate, tls_key, tls_server_name)
        admin = _admin(fleet_file, aggregators, shards, how, token_file)
        former, now = admin.switch(path, version)
        out.print(f"{former} -> {now}", markup=False, highlight=False)

    @bundle_app.command()
    def loaded(
        fleet_file: _FleetFile = None,
        aggregators: _Aggregators = "",
        shards: _Shards = "",
        tls: TlsOption = False,
        tls_ca: TlsCaOption = None,
        tls_certificate: TlsCertificateOption = None,
        tls_key: TlsKeyOption = None,
        tls_server_name: TlsServerNameOption = "",
        token_file: TokenFileOption = None,
    ) -> None:
        """Show which bundles the servers of a fleet hold."""
        from rich.table import Table
        from rich.text import Text

        how = make_tls(tls, tls_ca, tls_certificate, tls_key, tls_server_name)
        admin = _admin(fleet_file, aggregators, shards, how, token_file)
        table = Table(box=None, pad_edge=False)
        for column in ("server", "active", "standby"):
            table.add_column(column, overflow="fold")
        for server, bundles in admin.loaded().items():
            versions = {held.active: f"{held.version[:12]} {held.path}" for held in bundles}
            texts = (server, versions.get(True, "-"), versions.get(False, "-"))
            table.add_row(*map(Text, texts))
        out.print(table)
