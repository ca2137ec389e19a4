"""The merge at several sizes: writes results/merge.json, the tables of docs/merge.md, its plot.

    python -m benchmarks.merge measure [PART ...]   # sizes, scaling, filters, explicit
    python -m benchmarks.merge report

Each measurement is its own process on one thread; parts measured before are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import describe_machine, describe_run
from mach.hashing import UniversalHash
from mach.merge import BucketTable, ProductSet, TopK
from mach.merge.bench import BenchSettings, bench_merge
from mach.merge.simulate import trained_like

RESULTS = Path(__file__).parent / "results" / "merge.json"
SIZES = (
    (35_000, 16, 2_000),
    (1_000_000, 32, 10_000),
    (10_000_000, 32, 10_000),
    (49_460_000, 32, 20_000),
)
SCALING = (31_623, 100_000, 316_228, 1_000_000, 3_162_278, 10_000_000, 31_622_777, 100_000_000)
SELECTIVITIES = (1.0, 0.5, 0.1, 0.03, 0.01, 0.001)
K = 100
SECONDS = 6.0  # for a row's queries, and at least 5 of them


def bandwidth(size: int) -> float:
    """Bytes a second that one thread reads from ``size`` bytes over and over: the best of some."""
    data = np.ones(size // 8, np.float64)
    times, seconds = max(1, (1 << 27) // size), []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(times):
            data.max()
        seconds.append((time.perf_counter() - started) / times)
    return data.nbytes / min(seconds)


def size(products: int, repetitions: int, buckets: int) -> dict[str, Any]:
    settings = BenchSettings(products, repetitions, buckets, K, queries=100, seconds=6)
    return bench_merge(settings, lambda note: print(note, file=sys.stderr))


def scale(products: int) -> dict[str, Any]:
    settings = BenchSettings(
        products, 32, 10_000, K, queries=60, distributions=("trained-like",),
        baselines=products <= 10_000_000, seconds=5,
    )  # fmt: skip
    rates = {"bandwidth": bandwidth(1 << 29), "cache_bandwidth": bandwidth(32 * 10_000)}
    return bench_merge(settings) | rates


def timed(search: Callable[[np.ndarray], Any], scores: np.ndarray) -> dict[str, float]:
    wall, cpu, found = [], [], []
    search(scores[0])
    begun = time.perf_counter()
    for one in scores:
        if len(wall) >= 5 and time.perf_counter() - begun > SECONDS:
            break
        cpu_started, started = time.thread_time(), time.perf_counter()
        found.append(search(one))
        wall.append(time.perf_counter() - started)
        cpu.append(time.thread_time() - cpu_started)
    return {
        "p50_ms": 1e3 * float(np.median(wall)),
        "p50_cpu_ms": 1e3 * float(np.median(cpu)),
        "candidates_p50": float(np.median([result.candidates for result in found])),
    }


def filters(products: int, repetitions: int, buckets: int) -> dict[str, Any]:
    """Cost by the share of products a search is restricted to."""
    table = BucketTable.from_hash(UniversalHash.draw(products, buckets, repetitions, 0), products)
    engine = TopK(table)
    rng = np.random.default_rng(0)
    scores = trained_like(table, 31, rng)
    rows = {"all": timed(lambda one: engine.search(one, K), scores)}
    for share in SELECTIVITIES:
        allowed = ProductSet.from_mask(rng.random(products) < share)
        rows[str(share)] = timed(
            lambda one, allowed=allowed: engine.search(one, K, allowed=allowed), scores
        )
    return {"products": products, "repetitions": repetitions, "buckets": buckets, "rows": rows}


def explicit(products: int, repetitions: int, buckets: int) -> dict[str, Any]:
    """Buckets of a hash beside the same given product by product."""
    hashed = BucketTable.from_hash(UniversalHash.draw(products, buckets, repetitions, 0), products)
    scores = trained_like(hashed, 31, np.random.default_rng(0))
    rows = {}
    for name in ("hash", "explicit"):
        started = time.perf_counter()
        table = hashed
        if name == "explicit":
            table = BucketTable.from_assignment(hashed.columns(), buckets)
        engine = TopK(table)
        build = time.perf_counter() - started
        rows[name] = timed(lambda one, engine=engine: engine.search(one, K), scores) | {
            "index_bytes": engine.index_bytes,
            "build_seconds": build,
        }
    return {"products": products, "repetitions": repetitions, "buckets": buckets, "rows": rows}


def parts() -> Iterator[tuple[str, Callable[..., dict[str, Any]], tuple[int, ...]]]:
    for one in SIZES:
        yield "sizes", size, one
    for products in SCALING:
        yield "scaling", scale, (products,)
    for one in SIZES:
        yield "filters", filters, one
    for one in SIZES[:3]:
        yield "explicit", explicit, one


def measure(wanted: list[str]) -> None:
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, function, arguments in parts():
        if wanted and name not in wanted:
            continue
        print(name, *arguments, file=sys.stderr)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.merge", "one", function.__name__,
             *map(str, arguments)],
            check=True, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        measured = json.loads(done.stdout) | {"run": describe_run(), "load": os.getloadavg()[0]}
        report.setdefault(name, {})["-".join(map(str, arguments))] = measured
        report["machine"] = describe_machine()
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["measure", "report", "one"])
    parser.add_argument("arguments", nargs="*")
    chosen = parser.parse_args()
    if chosen.action == "measure":
        measure(chosen.arguments)
    elif chosen.action == "one":
        name, *numbers = chosen.arguments
        function = {f.__name__: f for _, f, _ in parts()}[name]
        measured = function(*map(int, numbers))
        measured["process_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(measured))
    else:
        from benchmarks.merge_report import write_report  # noqa: PLC0415 - needs matplotlib

        write_report(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
