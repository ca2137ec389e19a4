"""Writes what was measured into docs/gpu.md, between its markers.

    python -m benchmarks.gpu.report

Markers are ``<!-- gpu:NAME -->`` and ``<!-- /gpu:NAME -->`` for each result ``gpu-NAME.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import RESULTS

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
NOT_MEASURED = "This version has not been measured on a GPU yet."


def _where(result: dict[str, Any]) -> str:
    device, run, limits = result["device"], result["run"], result["limits"]
    versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
    return (
        f"{device.get('card', 'CPU')}, driver {device.get('driver', 'unknown')}, CUDA "
        f"{device.get('cuda')}, {versions}; {run['date']} at {run['commit'] or 'no commit'}. "
        f"Measured in the same call: {limits['fp16_flops'] / 1e12:.0f} TFLOP/s in half precision, "
        f"reading {limits['read_bytes'] / 1e12:.2f} TB/s, {limits['cached_bytes'] / 1e12:.2f} TB/s "
        f"in the cache, {limits['host_bytes'] / 1e9:.0f} GB/s to the host."
    )


def serve(result: dict[str, Any]) -> str:
    lines = [
        "| way | batch | p50 ms | p99 ms | queries/s | floor ms | × floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        floor = max(row["bytes_floor_ms"], row["flops_floor_ms"])
        lines.append(
            f"| {row['way']} | {row['batch']} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | "
            f"{row['queries_per_second']:,.0f} | {floor:.2f} | {row['times_floor']:.1f} |"
        )
    left_out = [f"- {name}: left out: {why}" for name, why in result["left_out"].items()]
    return "\n".join([*lines, "", *left_out, *([""] if left_out else []), _where(result)])


def merge(result: dict[str, Any]) -> str:
    lines = [
        "| scores | batch | share a pass | from | p50 ms | ms a query | floor ms | × floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        floor = max(row["memory_floor_ms"], row["cache_floor_ms"])
        lines.append(
            f"| {row['scores']} | {row['batch']} | {row['group']} | {row['from']} | "
            f"{row['p50_ms']:.2f} | {row['ms_a_query']:.3f} | {floor:.2f} | "
            f"{row['times_floor']:.1f} |"
        )
    return "\n".join([*lines, "", _where(result)])


def train(result: dict[str, Any]) -> str:
    measured, projected = result["measured"], result["projected"]
    lines = [
        "| what | repetitions at once | batch | s per million queries and repetition | GiB |",
        "|---|---|---|---|---|",
    ]
    for name, row in {"the group": measured, **result["variants"]}.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | |")
            continue
        seconds = row["seconds_per_million_queries_per_repetition"]
        memory = "" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
        lines.append(
            f"| {name} | {row['group']} | {row['batch_size']} | {seconds:.3g} | {memory} |"
        )
    projection = (
        f"At the group's rate an epoch of all repetitions takes "
        f"{projected['hours_per_epoch_of_all_repetitions']:.2g} hours and {projected['epochs']} "
        f"epochs {projected['hours_of_all_epochs']:.2g} (projected). That is "
        f"{100 * projected['share_of_matrix_rate']:.0f} % of the card's bf16 matrix rate, "
        f"{result['limits']['bf16_flops'] / 1e12:.0f} TFLOP/s; it waited for data "
        f"{100 * projected['waiting_share']:.1f} % of the time."
    )
    return "\n".join([*lines, "", projection, "", _where(result)])


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "serve": serve,
    "merge": merge,
    "train": train,
}


def render(name: str, results: Path = RESULTS) -> str:
    """The text of a section: a table, or that there is no result."""
    path = results / f"gpu-{name}.json"
    if not path.exists():
        return NOT_MEASURED
    return RENDERERS[name](json.loads(path.read_text()))


def fill(page: str, name: str, text: str) -> str:
    """``page`` with ``text`` between the markers of ``name``."""
    start, end = f"<!-- gpu:{name} -->", f"<!-- /gpu:{name} -->"
    before, found, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{PAGE.name} has no markers {start} and {end}")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"


def main() -> None:
    page = PAGE.read_text()
    for name in RENDERERS:
        page = fill(page, name, render(name))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
