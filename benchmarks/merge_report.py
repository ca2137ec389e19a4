"""Tables and the plot of docs/merge.md from results/merge.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
TARGETS_MS = {"35000": 0.4, "1000000": 3.0, "10000000": 15.0, "49460000": 40.0}
COST = """What a search costs beyond preparing the scores is adding up codes, R a product, in vector
instructions from the second-level cache. It is less than reading a table of buckets would take.

![Median CPU time of a search against the number of products](merge-cost.svg)"""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " ---: |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def count(number: float) -> str:
    return f"{round(number):,}"


def target(p50: float, most: float | None) -> str:
    """A goal of so many milliseconds, and whether it was met."""
    if most is None:
        return ""
    return f"{most:g}: " + ("met" if p50 <= most else f"missed, {p50 / most:.1f} x")


def sizes(results: dict[str, Any]) -> str:
    rows = []
    for key, one in results.items():
        products = key.split("-")[0]
        for name, measured in one["distributions"].items():
            ours, numpy = measured["mach"], measured["numpy"]
            official = measured["official"]
            trained = name == "trained-like"
            rows.append(
                [
                    count(int(products)),
                    str(one["repetitions"]),
                    count(one["buckets"]),
                    name,
                    f"{ours['p50_ms']:.2f}",
                    f"{ours['p50_cpu_ms']:.2f}",
                    f"{ours['p99_ms']:.1f}",
                    target(ours["p50_ms"], TARGETS_MS.get(products)) if trained else "",
                    f"{numpy['p50_ms']:.1f}",
                    f"{measured['speedup_vs_numpy']:.1f} x",
                    f"{official['p50_ms']:.1f}",
                    f"{official['recall_at_k']:.3f}",
                    f"{100 * ours['proven']:.0f} %",
                ]
            )
    header = [
        *("K", "R", "B", "distribution", "p50 ms", "CPU p50", "p99", "target"),
        *("NumPy p50", "NumPy / ours", "official p50", "official recall@100", "ours exact"),
    ]
    return table(header, rows)


def memory(results: dict[str, Any]) -> str:
    rows = []
    for key, one in results.items():
        ours = one["distributions"]["trained-like"]["mach"]
        rows.append(
            [
                count(int(key.split("-")[0])),
                f"{ours['index_bytes'] / 1e6:.1f}",
                f"{ours['build_seconds']:.2f}",
                f"{one['peak_memory_bytes'] / 2**30:.2f}",
                f"{ours['batch_cpu_ms_per_query']:.2f}",
                f"{ours['single_cpu_ms_per_query']:.2f}",
            ]
        )
    header = ["K", "index MB", "build s", "peak GiB", "batch of 64, CPU ms a query", "one by one"]
    return table(header, rows)


def provenance(results: dict[str, Any], machine: dict[str, Any]) -> str:
    """When, at which commit, on what and beside how much other load."""
    runs = sorted({f"{one['run']['date']} at {one['run']['commit']}" for one in results.values()})
    loads = [one["load"] for one in results.values()]
    return (
        f"Measured {'; '.join(runs)} on {machine['cpu']}, {machine['cpus']} CPU(s), "
        f"{machine['memory_gib']} GiB, load average {min(loads):.1f} to {max(loads):.1f}."
    )


def by_row(results: dict[str, Any], first: str) -> str:
    labels = list(next(iter(results.values()))["rows"])
    rows = []
    for label in labels:
        cells = [label]
        for one in results.values():
            row = one["rows"][label]
            cells.append(f"{row['p50_cpu_ms']:.2f} ({count(row['candidates_p50'])})")
        rows.append(cells)
    return table([first, *(f"K = {count(one['products'])}" for one in results.values())], rows)


def slowest_filter(results: dict[str, Any]) -> str:
    """How the goal of twice the unfiltered search was met, of shares of 1 % and above."""
    lines = []
    for one in results.values():
        rows = one["rows"]
        ratio, label = max(
            (row["p50_cpu_ms"] / rows["all"]["p50_cpu_ms"], label)
            for label, row in rows.items()
            if label != "all" and float(label) >= 0.01
        )
        met = "met" if ratio <= 2 else "missed"
        lines.append(
            f"- K = {count(one['products'])}: the slowest at 1 % and above, {label}, takes "
            f"{ratio:.2f} x the unfiltered search (goal: 2 x, {met})."
        )
    return "\n".join(lines)


def explicit(results: dict[str, Any]) -> str:
    rows = [
        [
            count(one["products"]),
            name,
            f"{row['p50_cpu_ms']:.2f}",
            f"{row['index_bytes'] / 1e6:.1f}",
            f"{row['build_seconds']:.2f}",
        ]
        for one in results.values()
        for name, row in one["rows"].items()
    ]
    return table(["K", "buckets", "CPU p50 ms", "index MB", "build s"], rows)


def plot(results: dict[str, Any], path: Path) -> None:
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "merge"
    ones = sorted(results.values(), key=lambda one: one["products"])
    products = [one["products"] for one in ones]
    bandwidth = max(one["bandwidth"] for one in ones)
    cached = max(one["cache_bandwidth"] for one in ones)
    rows, buckets = ones[0]["repetitions"], ones[0]["buckets"]
    figure, axes = plt.subplots(figsize=(7, 4.5))
    measured = [one["distributions"]["trained-like"] for one in ones]
    axes.plot(products, [one["mach"]["p50_cpu_ms"] for one in measured], "o-", label="this engine")
    with_numpy = [(k, one["numpy"]) for k, one in zip(products, measured, strict=True)
                  if "numpy" in one]  # fmt: skip
    axes.plot(
        [k for k, _ in with_numpy],
        [one["p50_cpu_ms"] for _, one in with_numpy],
        "s-",
        label="NumPy gather and argpartition",
    )
    axes.plot(
        products,
        [1e3 * 2 * rows * k / bandwidth for k in products],
        "--",
        color="grey",
        label="reading a table of buckets: 2 R K bytes / memory bandwidth",
    )
    axes.plot(
        products,
        [1e3 * rows * k / cached for k in products],
        "-.",
        color="grey",
        label="floor of adding up: R K bytes / cache bandwidth",
    )
    axes.axhline(
        1e3 * 4 * rows * buckets / bandwidth,
        linestyle=":",
        color="grey",
        label="floor of any search: 4 R B bytes / bandwidth",
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"products K (R = {rows}, B = {buckets:,}, k = 100)",
        ylabel="median CPU ms a query, one thread",
    )
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write_report(report: dict[str, Any]) -> None:
    """Rewrite what stands between the markers of docs/merge.md, and the plot."""
    made = {
        "sizes": lambda: (
            sizes(report["sizes"]) + "\n\n" + provenance(report["sizes"], report["machine"])
        ),
        "memory": lambda: memory(report["sizes"]),
        "filters": lambda: (
            by_row(report["filters"], "products allowed")
            + "\n\n"
            + slowest_filter(report["filters"])
        ),
        "scaling": lambda: COST,
        "explicit": lambda: explicit(report["explicit"]),
    }
    if "scaling" in report:
        plot(report["scaling"], DOCS / "merge-cost.svg")
    page = DOCS / "merge.md"
    text = page.read_text()
    for name, make in made.items():
        if name.replace("memory", "sizes") not in report:
            continue
        start, end = f"<!-- merge:{name} -->", f"<!-- /merge:{name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n\n{make()}\n\n{end}{rest.split(end)[1]}"
    page.write_text(text)
