"""``mach evaluate``: accuracy and cost of a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mach.cli.console import err, out
from mach.cli.numbers import finite

if TYPE_CHECKING:
    from rich.table import Table

    from mach.evaluation import Evaluation

__all__ = ["register"]


def _counts(text: str | None) -> list[int] | None:
    from mach.errors import InvalidInput

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInput("--repetitions", f"{text!r} is no list such as 1,2,4,8") from None


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def evaluate(
        bundle: Path = typer.Argument(help="The bundle's directory."),
        interactions: list[Path] = typer.Argument(help="Held-out interactions."),
        repetitions: str = typer.Option(
            None, help="Numbers of repetitions to compare, such as 1,2,4,8; all by default."
        ),
        limit: int = typer.Option(None, min=1, help="Score only the first so many queries."),
        max_skipped: float = typer.Option(
            0.05, min=0, max=1, callback=finite, help="Share of rows that may be unusable."
        ),
        threads: int = typer.Option(
            2, min=1, max=1024, help="Threads of ONNX Runtime while scoring."
        ),
        json_file: Path = typer.Option(None, "--json", help="Also write the figures here."),
        plot: Path = typer.Option(None, help="Draw accuracy and cost against repetitions (PNG)."),
    ) -> None:
        """Score a bundle on interactions that it was not trained on; each row counts once,
        whatever its weight.

        P@k divides by k, recall by the number of true products; products that training never
        saw count as true all the same. Latency is text to products in process, one thread.
        """
        from itertools import islice

        from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from mach.bundle import Bundle
        from mach.evaluation import evaluate as score
        from mach.files import check_target, write_atomically
        from trainer.interactions import SkipReport, read_queries

        for option, path in (("--json", json_file), ("--plot", plot)):
            if path is not None:
                check_target(option, path)
        if plot is not None:
            from mach.evaluation.plot import check_plotting, plot_repetitions

            check_plotting()
        opened = Bundle.open(bundle)
        opened.verify()
        report = SkipReport()

        def pairs() -> Iterator[tuple[str, list[str]]]:
            yield from islice(read_queries(interactions, report), limit)
            report.check_rows(interactions[0], max_skipped)

        columns = (TextColumn("scoring"), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=err, transient=True) as progress:
            task = progress.add_task("scoring", total=limit)
            results = score(
                opened,
                pairs(),
                repetitions=_counts(repetitions),
                threads=threads,
                on_progress=lambda done: progress.update(task, completed=done),
            )
        out.print(_table(results))
        for line in report.lines():
            err.print(line, markup=False, highlight=False, soft_wrap=True)
        if results[-1].unseen:
            err.print(f"{results[-1].unseen:,} true products are not in the catalog: never found")
        if json_file is not None:
            figures = {"bundle_version": opened.version, **results[-1].to_json()}
            figures |= {"rows": report.rows, "skipped": report.skipped}
            if repetitions is not None:
                figures["by_repetitions"] = [result.to_json() for result in results]
            write_atomically(json_file, json.dumps(figures, indent=2) + "\n")
        if plot is not None:
            plot_repetitions(results, plot)


def _table(results: Sequence[Evaluation]) -> Table:
    from rich.table import Table

    caption = f"{results[0].queries:,} queries"
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("R", justify="right", no_wrap=True)
    for name in results[0].metrics:
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("p50 ms", "p99 ms", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            str(result.repetitions),
            *(f"{value:.3f}" for value in result.metrics.values()),
            f"{result.latency_p50_ms:.2f}",
            f"{result.latency_p99_ms:.2f}",
            f"{result.model_bytes / 1e6:.1f}",
        )
    return table
