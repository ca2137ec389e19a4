"""``mach quickstart``: the whole path on a simulated store."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import typer

from mach.cli.console import err, out

__all__ = ["register"]


class _Steps:
    """Announces steps and says how long each took."""

    def __init__(self) -> None:
        self._number = 0
        self._start = time.perf_counter()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        self._number += 1
        err.print(f"\n[bold cyan]{self._number}. {what}[/]")
        start = time.perf_counter()
        yield
        err.print(f"[dim]took {time.perf_counter() - start:.1f} s[/]", highlight=False)

    def finish(self) -> None:
        err.print(f"\ndone in {time.perf_counter() - self._start:.1f} s", highlight=False)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def quickstart(
        products: int = typer.Option(3_000, min=100, help="Products in the simulated store."),
        clicks: int = typer.Option(60_000, min=1_000, help="Rows of its query log."),
        repetitions: int = typer.Option(4, min=1, max=64, help="R."),
        seed: int = typer.Option(
            0, min=0, max=2**63 - 1, help="The same seed invents the same store."
        ),
        keep: Path = typer.Option(None, help="Keep data and bundle in this new directory."),
    ) -> None:
        """Invent a store, train on its log, serve the bundle, search it, stop.

        Two minutes or less on two cores.
        """
        from mach.errors import InvalidInput

        if keep is not None and keep.exists():
            raise InvalidInput("--keep", f"{keep} exists already")
        place = nullcontext(keep) if keep else tempfile.TemporaryDirectory(prefix="mach-")
        with place as directory:
            _run(Path(directory), products, clicks, repetitions, seed)
        if keep:
            err.print(f"try: mach serve {keep / 'bundle'}", markup=False)


def _run(directory: Path, products: int, clicks: int, repetitions: int, seed: int) -> None:
    from mach.bundle import Bundle
    from mach.cli.serve import fleet_table
    from mach.evaluation import evaluate
    from mach.fleet import LocalFleet
    from mach.simulation import simulate_store
    from trainer.interactions import read_queries
    from trainer.progress import Reporter
    from trainer.run import Job, train
    from trainer.settings import TrainSettings

    steps = _Steps()
    with steps.step(f"invent a store of {products:,} products and {clicks:,} clicks"):
        store = simulate_store(directory / "store", products, clicks, seed)
        _show_sample(store.clicks, store.products)
    with steps.step(f"train {repetitions} repetitions"):
        settings = TrainSettings(repetitions=repetitions, epochs=4, hidden=64, seed=seed)
        job = Job([store.clicks], store.products, directory / "bundle", settings)
        train(job, Reporter())
    bundle = Bundle.open(directory / "bundle")
    with steps.step("evaluate on clicks that were held out"):
        (result,) = evaluate(bundle, read_queries([store.held_out]))
        figures = (f"{name} {value:.3f}" for name, value in result.metrics.items())
        err.print("  ".join(figures), f" p50 {result.latency_p50_ms:.2f} ms", highlight=False)
    with steps.step("start the fleet: a process for each repetition, and an aggregator"):
        fleet = LocalFleet(bundle, on_event=lambda message: err.print(message, markup=False))
        fleet.start()
    try:
        err.print(fleet_table(fleet.status()))
        with steps.step("search it"):
            _search(fleet.address, store.held_out)
    finally:
        with steps.step("stop: drain and end every process"):
            fleet.stop()
    steps.finish()


def _show_sample(clicks: Path, products: Path) -> None:
    import pyarrow.parquet as pq

    titles = pq.read_table(products, columns=["product_id", "title"]).to_pydict()
    title_of = dict(zip(titles["product_id"], titles["title"], strict=True))
    for row in pq.ParquetFile(clicks).read_row_group(0).slice(0, 3).to_pylist():
        err.print(
            f"  {row['query']!r} → {title_of[row['product_id']]}", highlight=False, markup=False
        )


def _search(address: str, held_out: Path) -> None:
    from rich.text import Text

    from aggregator.requests import SearchOptions
    from mach.cli.search import found_table, search_fleet
    from trainer.interactions import read_queries

    asked: set[str] = set()
    for query, _ in read_queries([held_out]):
        if query in asked:
            continue
        asked.add(query)
        found = search_fleet(address, query, SearchOptions(k=3, include_attributes=True), 5.0)
        out.print(Text(f"\n{query}", "bold"))
        out.print(found_table(found))
        if len(asked) == 3:
            return
