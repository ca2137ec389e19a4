"""``mach bench merge``: top-k over many products, without a model or a fleet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mach.cli.console import err, out
from mach.cli.numbers import finite

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["register"]

_ENGINES = {"mach": "mach", "numpy": "NumPy gather", "official": "official decode"}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("merge")
    def bench_merge_command(
        products: int = typer.Option(1_000_000, min=1, help="Products, K."),
        repetitions: int = typer.Option(32, min=1, help="Repetitions, R."),
        buckets: int = typer.Option(10_000, min=1, help="Buckets of a repetition, B."),
        k: int = typer.Option(100, "-k", min=1, help="Products a query."),
        queries: int = typer.Option(200, min=1, help="Queries drawn of each distribution."),
        distribution: str = typer.Option(
            "both", help="trained-like (peaked, with a long tail), flat (the worst case) or both."
        ),
        baselines: bool = typer.Option(
            True, help="Measure NumPy and the official decode too: 2 bytes x K x R more memory."
        ),
        seconds: float = typer.Option(
            30.0, min=0.1, callback=finite, help="About how long an engine may take."
        ),
        seed: int = typer.Option(0, min=0, help="Of hashes and queries."),
        json_file: Path = typer.Option(None, "--json", help="Write the report here as JSON."),
    ) -> None:
        """Measure the merge: this engine, NumPy over every product, and the official decode.

        On one thread, over simulated log-probabilities of products hashed to buckets.
        """
        from mach.errors import InvalidInput
        from mach.files import check_target, write_atomically
        from mach.merge.bench import DISTRIBUTIONS, BenchSettings, bench_merge

        if distribution not in (*DISTRIBUTIONS, "both"):
            choices = ", ".join((*DISTRIBUTIONS, "both"))
            raise InvalidInput("--distribution", f"{distribution!r} is not one of {choices}")
        if json_file is not None:
            check_target("--json", json_file)
        settings = BenchSettings(
            products=products,
            repetitions=repetitions,
            buckets=buckets,
            k=k,
            queries=queries,
            seed=seed,
            distributions=DISTRIBUTIONS if distribution == "both" else (distribution,),
            baselines=baselines,
            seconds=seconds,
        )
        with err.status("") as status:
            report = bench_merge(settings, status.update)
        for name, measured in report["distributions"].items():
            out.print(_table(name, measured))
        if json_file is not None:
            write_atomically(json_file, json.dumps(report, indent=2) + "\n")


def _table(name: str, measured: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("engine", title=name, title_justify="left", box=None)
    for column in ("p50 ms", "p99 ms", "CPU p50 ms", "recall", "index MB", "build s", "queries"):
        table.add_column(column, justify="right")
    for key, label in _ENGINES.items():
        if (one := measured.get(key)) is not None:
            table.add_row(
                label,
                f"{one['p50_ms']:.2f}",
                f"{one['p99_ms']:.2f}",
                f"{one['p50_cpu_ms']:.2f}",
                f"{one['recall_at_k']:.4f}",
                f"{one['index_bytes'] / 1e6:.1f}",
                f"{one['build_seconds']:.1f}",
                f"{one['queries']}",
            )
    ours = measured["mach"]
    notes = [
        f"a batch of {ours['batch_size']} takes {ours['batch_cpu_ms_per_query']:.2f} ms of CPU a "
        f"query, {ours['single_cpu_ms_per_query']:.2f} one by one"
    ]
    if "speedup_vs_numpy" in measured:
        notes.append(f"{measured['speedup_vs_numpy']:.1f} x NumPy")
    table.caption = ", ".join(notes)
    table.caption_justify = "left"
    return table
