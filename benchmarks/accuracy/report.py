"""The table, as Markdown and JSON, and its copy in the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.accuracy.datasets import Prepared
from mach.files import write_atomically

__all__ = ["update_page", "write_report"]

METRICS = ("P@1", "P@3", "P@5", "R@10", "R@20", "R@100", "nDCG@10", "PSP@5")
COSTS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("train s", lambda r: f"{r['train']['wall_s']:,.0f}"),
    ("CPU s", lambda r: f"{r['train']['cpu_s']:,.0f}"),
    ("peak RSS MB", lambda r: f"{r['train']['peak_rss_mb']:,.0f}"),
    ("model MB", lambda r: f"{r['model_mb']:,.0f}"),
    ("p50 ms", lambda r: f"{r['single_p50_ms']:.2f}"),
    ("p99 ms", lambda r: f"{r['single_p99_ms']:.2f}"),
    ("batch q/s", lambda r: f"{r['batch_qps']:,.0f}"),
)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _digits(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _accuracy_rows(results: Sequence[dict[str, Any]]) -> list[str]:
    best = {name: max(_digits(r["metrics"][name]) for r in results) for name in METRICS}
    rows = [_line(["system", *METRICS]), _line(["---", *["---:"] * len(METRICS)])]
    for result in results:
        shown = [_digits(result["metrics"][name]) for name in METRICS]
        cells = [
            f"**{text}**" if text == best[name] else text
            for name, text in zip(METRICS, shown, strict=True)
        ]
        rows.append(_line([result["name"], *cells]))
    return rows


def _cost_rows(results: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        _line(["system", *(name for name, _ in COSTS)]),
        _line(["---", *["---:"] * len(COSTS)]),
    ]
    return rows + [_line([r["name"], *(show(r) for _, show in COSTS)]) for r in results]


def render(data: Prepared, results: Sequence[dict[str, Any]]) -> str:
    """Markdown of one data set's results, those that failed included."""
    facts = data.facts
    done = [result for result in results if "failed" not in result]
    lines = [
        f"**{facts.title}**: {facts.train_queries:,} training queries "
        f"({facts.train_pairs:,} pairs), {facts.dev_queries:,} scored queries "
        f"({facts.dev_pairs:,} pairs, {facts.unseen_dev_pairs:,} of them with a product that "
        f"train never saw), {facts.classes:,} products.",
        "",
    ]
    if done:
        lines += [*_accuracy_rows(done), "", *_cost_rows(done), ""]
    lines += [f"- {result['name']}: {result['about']}." for result in done]
    lines += [f"- {r['name']}: no result ({r['failed']})." for r in results if "failed" in r]
    machines = sorted({
        f"{r['machine']['cpu']}, {r['machine']['cpus']} CPUs, {r['machine']['memory_gib']} GiB"
        for r in results
    })  # fmt: skip
    threads = sorted({r["threads"] for r in results})
    runs = sorted({f"{r['date']} at {r['commit'] or 'no commit'}" for r in results})
    return "\n".join([
        *lines,
        "",
        f"Measured {'; '.join(runs)} on {'; '.join(machines)}; training with "
        f"{'/'.join(map(str, threads))} thread(s), serving on one core.",
        "",
    ])  # fmt: skip


def write_report(data: Prepared, results: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write ``accuracy-<data set>.md`` and ``.json``, and return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = render(data, results)
    base = folder / f"accuracy-{data.facts.name}"
    write_atomically(base.with_suffix(".md"), text)
    kept = [{k: v for k, v in r.items() if k != "fingerprint"} for r in results]
    content = {"dataset": asdict(data.facts), "results": kept}
    write_atomically(base.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    return text


def update_page(page: Path, dataset: str, text: str) -> bool:
    """Put ``text`` between a page's two markers of the data set; False if it has none.

    The markers are ``<!-- accuracy:NAME -->`` and ``<!-- /accuracy:NAME -->``.
    """
    if not page.is_file():
        return False
    start, end = f"<!-- accuracy:{dataset} -->", f"<!-- /accuracy:{dataset} -->"
    before, found, rest = page.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        return False
    write_atomically(page, f"{before}{start}\n\n{text}\n{end}{after}")
    return True
