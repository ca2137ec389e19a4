"""``mach bench fleet``: load on a running fleet, or on one started for the purpose."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

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
from mach.cli.numbers import finite

if TYPE_CHECKING:
    from rich.table import Table

    from mach.loadtest import LoadPlan, LoadReport, MetricsCpu, Outcomes
    from mach.tls import Tls

__all__ = ["register"]


def _texts(queries: Path | None, bundle: Path | None, limit: int) -> list[str]:
    from itertools import islice

    from mach.bundle import Bundle
    from mach.errors import InvalidInput
    from trainer.interactions import read_queries

    if queries is not None:
        return [text for text, _ in islice(read_queries([queries]), limit)]
    if bundle is not None:
        catalog = Bundle.open(bundle).catalog
        if "title" in catalog.attributes:
            titles = catalog.table["title"].slice(0, limit).to_pylist()
            return [title for title in titles if title]
    raise InvalidInput("--queries", "name a file with a column query, or --bundle with titles")


def _measure(
    address: str, plan: LoadPlan, cpu: MetricsCpu | None, tls: Tls | None, token: str | None
) -> LoadReport:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from mach.loadtest import run_load

    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("load", total=plan.seconds, note="warming up")

        def show(seconds: float, outcomes: Outcomes) -> None:
            rate = len(outcomes.seconds) / max(seconds, 1e-9)
            failed = outcomes.statuses.total()
            bar.update(task, completed=seconds, note=f"{rate:,.0f} answers/s, {failed:,} failed")

        return asyncio.run(run_load(address, plan, cpu=cpu, on_progress=show, tls=tls, token=token))


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("fleet")
    def bench_fleet(
        address: str = typer.Option(None, help="HOST:PORT of the aggregator to measure."),
        bundle: Path = typer.Option(None, help="Or start a local fleet of this bundle."),
        shards: int = typer.Option(None, min=1, help="Its shard processes; default one each."),
        queries: Path = typer.Option(None, help="Interactions whose queries are sent."),
        concurrency: int = typer.Option(None, min=1, help="Closed loop: requests in flight."),
        rate: float = typer.Option(
            None, min=0.001, callback=finite, help="Open loop: requests a second."
        ),
        seconds: float = typer.Option(
            10.0, min=0.1, max=86400, callback=finite, help="Length of the measurement."
        ),
        warm_up: float = typer.Option(
            2.0, min=0, callback=finite, help="Seconds of load before it."
        ),
        k: int = typer.Option(10, "-k", min=1, help="Products a query."),
        timeout: float = typer.Option(
            1.0, min=0.001, callback=finite, help="Seconds a request may take."
        ),
        connections: int = typer.Option(4, min=1, help="gRPC connections."),
        metrics: list[str] = typer.Option(
            [], help="Metrics URLs of the fleet's processes, for CPU seconds; repeatable."
        ),
        json_file: Path = typer.Option(None, "--json", help="Also write the figures here."),
        tls: TlsOption = False,
        tls_ca: TlsCaOption = None,
        tls_certificate: TlsCertificateOption = None,
        tls_key: TlsKeyOption = None,
        tls_server_name: TlsServerNameOption = "",
        token_file: TokenFileOption = None,
    ) -> None:
        """Measure a fleet under load.

        With --concurrency the loop is closed: a request follows an answer. With --rate it is
        open: requests arrive at random times at that rate whatever the fleet does, and latency
        counts from when a request was due, so that stalls are not hidden. Default:
        --concurrency 16.
        """
        from mach.bundle import Bundle
        from mach.errors import InvalidInput, Unavailable
        from mach.files import check_target, write_atomically
        from mach.fleet import LocalFleet
        from mach.loadtest import LoadPlan, MetricsCpu

        if (address is None) == (bundle is None):
            raise InvalidInput("--address", "give either --address or --bundle")
        if concurrency is not None and rate is not None:
            raise InvalidInput("--rate", "give either --rate or --concurrency")
        if json_file is not None:
            check_target("--json", json_file)
        plan = LoadPlan(
            texts=_texts(queries, bundle, 20_000),
            concurrency=None if rate else concurrency or 16,
            rate=rate,
            seconds=seconds,
            warm_up_seconds=warm_up,
            k=k,
            timeout=timeout,
            connections=connections,
        )
        with ExitStack() as stack:
            if bundle is not None:
                with err.status("starting the fleet"):
                    fleet = stack.enter_context(LocalFleet(Bundle.open(bundle), num_shards=shards))
                address = fleet.address
                servers = fleet.status().servers
                metrics = [f"http://{server.metrics}/metrics" for server in servers]
            report = _measure(
                address,
                plan,
                MetricsCpu(metrics) if metrics else None,
                make_tls(tls, tls_ca, tls_certificate, tls_key, tls_server_name),
                read_token(token_file),
            )
        out.print(_table(report, bool(metrics)))
        _warn(report)
        if json_file is not None:
            write_atomically(json_file, json.dumps(report.to_json(), indent=2) + "\n")
        if not report.queries:
            failed = ", ".join(f"{count:,} x {name}" for name, count in report.statuses.items())
            raise Unavailable(f"no query was answered ({failed or 'none was sent'})")


def _warn(report: LoadReport) -> None:
    """Say where figures are rather the generator's than the fleet's."""
    from mach.loadtest import UNSENT

    unsent = report.statuses.get(UNSENT, 0)
    if unsent:
        err.print(f"warning: {unsent:,} requests were not sent: the generator fell behind the rate")
    elif report.late_ms > max(1.0, report.p99_ms / 2):
        err.print(
            f"warning: the generator fell behind the rate: one in a hundred requests was sent "
            f"{report.late_ms:,.0f} ms or more after it was due, and latencies contain that"
        )


def _table(report: LoadReport, has_metrics: bool) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    cpu = report.cpu_seconds_per_1000_queries
    unknown = "not measured"
    if has_metrics and report.queries:
        unknown += ": a server was restarted, or did not say"
    for name, value in (
        ("mode", report.mode),
        ("answered", f"{report.qps:,.1f}/s ({report.queries:,} in {report.seconds:.1f} s)"),
        ("offered", f"{report.offered_qps:,.1f}/s"),
        ("p50 / p90", f"{report.p50_ms:.2f} / {report.p90_ms:.2f} ms"),
        (
            "p99 / p99.9 / max",
            f"{report.p99_ms:.2f} / {report.p999_ms:.2f} / {report.max_ms:.2f} ms",
        ),
        ("errors, shed", f"{report.errors:,}, {report.shed:,}"),
        ("coverage", f"{report.coverage:.4f}"),
        ("sent late, p99", f"{report.late_ms:.2f} ms" if report.mode == "open" else "-"),
        ("CPU s / 1000 queries", unknown if cpu is None else f"{cpu:.3f}"),
        *((status, f"{count:,}") for status, count in report.statuses.items()),
    ):
        table.add_row(f"[bold]{name}[/]", str(value))
    return table
