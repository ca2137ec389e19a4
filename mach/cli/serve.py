"""``mach serve``: a whole fleet on this machine."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mach.cli.console import err

if TYPE_CHECKING:
    from rich.table import Table

    from mach.fleet import FleetStatus

__all__ = ["fleet_table", "register"]

_POLL_SECONDS = 0.1


class _Signals:
    """Takes SIGINT and SIGTERM; where it matters, what runs asks whether one came.

    A handler that raised would do so anywhere, also where a child has been started and nobody
    knows of it yet; one that sets an event can meet the lock of who waits for it.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: object) -> None:
        self._first = self._first or number

    def check(self) -> None:
        """End what is being started.

        Raises:
            KeyboardInterrupt: after SIGINT.
            typer.Exit: after SIGTERM, with 0, as of servers that are told to end while they load.
        """
        if self._first == signal.SIGINT:
            raise KeyboardInterrupt
        if self._first is not None:
            raise typer.Exit

    def wait(self) -> None:
        """Until one comes."""
        while self._first is None:
            time.sleep(_POLL_SECONDS)


def fleet_table(status: FleetStatus) -> Table:
    """Servers with their addresses and health."""
    from rich.table import Table
    from rich.text import Text

    colours = {"serving": "green", "not serving": "yellow", "down": "red"}
    table = Table(box=None, pad_edge=False)
    for column in ("server", "address", "metrics", "pid", "health", "restarts"):
        table.add_column(column, overflow="fold")
    for server in status.servers:
        table.add_row(
            *map(Text, (server.name, server.address, server.metrics)),
            str(server.pid or "-"),
            f"[{colours[server.health]}]{server.health}[/]",
            str(server.restarts),
        )
    return table


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def serve(
        bundle: Path = typer.Argument(help="The bundle's directory."),
        listen: str = typer.Option("127.0.0.1:50050", help="HOST:PORT of the aggregator."),
        shards: int = typer.Option(
            None, min=1, help="Shard processes; repetitions are divided among them. Default: R."
        ),
        threads: int = typer.Option(
            1, min=1, max=1024, help="Threads of ONNX Runtime in each shard."
        ),
        log_dir: Path = typer.Option(
            None, help="Keep the servers' logs here; a temporary directory by default."
        ),
        monitoring: str = typer.Option(
            None,
            metavar="HOST:PORT",
            help="Start the installed Prometheus here, with this project's alert rules.",
        ),
        tls_certificate: Path = typer.Option(None, help="The aggregator's certificate, PEM."),
        tls_key: Path = typer.Option(None, help="Its key, PEM."),
        tls_client_ca: Path = typer.Option(
            None, help="Authorities of the certificates that clients must show, PEM."
        ),
        tokens: Path = typer.Option(None, help="The file of `mach token`; callers need a token."),
        fleet_file: Path = typer.Option(
            None,
            help="Give the servers admin ports on loopback and write them here, for "
            "`mach bundle switch --fleet-file`; removed at the end.",
        ),
        bundle_root: Path = typer.Option(
            None, help="Where other bundles may be loaded from; default: beside the first."
        ),
    ) -> None:
        """Serve a bundle on this machine: a process a shard and an aggregator.

        Ctrl-C drains: what is in flight is answered, then every process ends; while the fleet
        starts it ends at once. A server that dies is started again.
        """
        from mach.bundle import Bundle
        from mach.errors import ConfigError
        from mach.fleet import LocalFleet
        from mach.fleet.prometheus import LocalPrometheus
        from mach.fleet.switching import (
            check_fleet_file,
            remove_fleet_file,
            write_fleet_file,
        )

        if bundle_root is not None and fleet_file is None:
            raise ConfigError("--bundle-root needs --fleet-file as well")
        if fleet_file is not None:
            check_fleet_file(fleet_file)  # before the time that a start takes
        root = () if bundle_root is None else ("--bundle-root", str(bundle_root.absolute()))
        secure = [
            argument
            for flag, value in (
                ("--tls-certificate", tls_certificate),
                ("--tls-key", tls_key),
                ("--tls-client-ca", tls_client_ca),
                ("--tokens", tokens),
            )
            if value is not None
            for argument in (flag, str(value.absolute()))
        ]
        signals = _Signals()
        fleet = LocalFleet(
            Bundle.open(bundle),
            num_shards=shards,
            listen=listen,
            threads=threads,
            directory=log_dir,
            admin=fleet_file is not None,
            shard_arguments=root,
            aggregator_arguments=[*root, *secure],
            on_event=lambda message: err.print(message, markup=False),
        )
        prometheus = None
        with err.status("starting the fleet"):
            fleet.start(check=signals.check)
        ports = fleet.admin_ports
        try:
            if fleet_file is not None:
                write_fleet_file(fleet_file, ports)
            if monitoring is not None:
                prometheus = LocalPrometheus(
                    fleet, fleet.directory / "prometheus", listen=monitoring
                )
                prometheus.start(check=signals.check)
                err.print(f"metrics and alerts at http://{prometheus.address}", markup=False)
            err.print(fleet_table(fleet.status()))
            err.print(
                f"\nserving at {fleet.address}; logs in {fleet.directory}\n"
                f'try: mach search "…" --address {fleet.address}\nCtrl-C stops',
                highlight=False,
                markup=False,
            )
            signals.wait()
        finally:
            with err.status("draining"):
                if prometheus is not None:
                    prometheus.stop()
                fleet.stop()
                if fleet_file is not None:
                    remove_fleet_file(fleet_file, ports)
        err.print("stopped")
