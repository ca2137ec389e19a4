"""Measuring the merge: this engine, NumPy over every product, and the official decode."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.hashing import UniversalHash
from mach.merge.baselines import GatherTopK, VotedTopK
from mach.merge.engine import TopK
from mach.merge.reference import reference_top_k
from mach.merge.simulate import flat, trained_like
from mach.merge.table import BucketTable

__all__ = ["DISTRIBUTIONS", "BenchSettings", "bench_merge"]

DISTRIBUTIONS = ("trained-like", "flat")
_BATCH = 64
_CHECKED = 3  # queries whose answers are compared with the NumPy reference, score by score


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        products: K.
        repetitions: R.
        buckets: B.
        k: products a query.
        queries: how many are drawn, at least 1.
        seed: of the hashes and of the queries.
        distributions: some of :data:`DISTRIBUTIONS`.
        baselines: whether to measure those too; they need 2 bytes a product and repetition.
        seconds: about how long each engine may take on each distribution; slow ones answer
            fewer of the queries, though at least 3.
    """

    products: int
    repetitions: int
    buckets: int
    k: int = 100
    queries: int = 200
    seed: int = 0
    distributions: tuple[str, ...] = DISTRIBUTIONS
    baselines: bool = True
    seconds: float = 30.0


def bench_merge(
    settings: BenchSettings, on_progress: Callable[[str], None] = lambda note: None
) -> dict[str, Any]:
    """Measure in this process on one thread; a JSON-ready report.

    Times are of single queries on the clock (``p50_ms``, ``p99_ms``) and of the thread
    (``p50_cpu_ms``), which another load on the machine disturbs less. ``recall_at_k`` is against
    the exact answer.

    Raises:
        InvalidInput: if a size is out of its range.
    """
    on_progress("building the index")
    hashes = UniversalHash.draw(
        settings.products, settings.buckets, settings.repetitions, settings.seed
    )
    started = time.perf_counter()
    table = BucketTable.from_hash(hashes, settings.products)
    engine = TopK(table)
    build_seconds = time.perf_counter() - started
    report: dict[str, Any] = {
        "products": settings.products,
        "repetitions": settings.repetitions,
        "buckets": settings.buckets,
        "k": settings.k,
        "seed": settings.seed,
        "distributions": {},
    }
    drawn = {name: _draw(name, table, settings, on_progress) for name in settings.distributions}
    for name, scores in drawn.items():
        on_progress(f"{name}: mach")
        report["distributions"][name] = {"mach": _ours(engine, scores, settings, build_seconds)}
    report["peak_memory_bytes"] = _peak_memory()  # with the queries, before any baseline
    if settings.baselines:
        _add_baselines(report, table, engine, drawn, settings, on_progress)
    return report


def _draw(
    name: str,
    table: BucketTable,
    settings: BenchSettings,
    on_progress: Callable[[str], None],
) -> NDArray[np.float32]:
    on_progress(f"{name}: drawing queries")
    draw = trained_like if name == "trained-like" else flat
    return draw(table, settings.queries, np.random.default_rng(settings.seed))


def _ours(
    engine: TopK, scores: NDArray[np.float32], settings: BenchSettings, build_seconds: float
) -> dict[str, Any]:
    k = settings.k
    measured = _measure(partial(engine.search, k=k), scores, settings)
    batch = scores[: min(measured["queries"], _BATCH)]
    results = engine.search_batch(batch, k)
    alone: list[float] = []
    together: list[float] = []
    begun = time.perf_counter()
    while len(alone) < 5 and (not alone or time.perf_counter() - begun < settings.seconds):
        # In turn, so that another load on the machine disturbs both alike.
        started = time.thread_time()
        for one in batch:
            engine.search(one, k)
        alone.append(time.thread_time() - started)
        started = time.thread_time()
        engine.search_batch(batch, k)
        together.append(time.thread_time() - started)
    return measured | {
        "recall_at_k": 1.0,  # checked against the reference where there are baselines
        "proven": float(np.mean([result.proven for result in results])),
        "candidates_p50": int(np.median([result.candidates for result in results])),
        "batch_size": len(batch),
        "batch_cpu_ms_per_query": 1e3 * float(np.median(together)) / len(batch),
        "single_cpu_ms_per_query": 1e3 * float(np.median(alone)) / len(batch),
        "index_bytes": engine.index_bytes,
        "build_seconds": build_seconds,
    }


def _add_baselines(
    report: dict[str, Any],
    table: BucketTable,
    engine: TopK,
    drawn: dict[str, NDArray[np.float32]],
    settings: BenchSettings,
    on_progress: Callable[[str], None],
) -> None:
    on_progress("building the baselines' index")
    started = time.perf_counter()
    gather = GatherTopK(table)
    gather_seconds = time.perf_counter() - started
    voted = VotedTopK(table)
    for name, scores in drawn.items():
        measured = report["distributions"][name]
        on_progress(f"{name}: checking against the reference")
        measured["mach"]["recall_at_k"] = _checked_recall(engine, gather, scores, settings)
        for key, baseline, seconds in (("numpy", gather, gather_seconds), ("official", voted, 0.0)):
            on_progress(f"{name}: {key}")
            search = partial(baseline.search, k=settings.k)
            measured[key] = _measure(search, scores, settings)
            recalls = [
                _recall(search(one), engine.search(one, settings.k).classes)
                for one in scores[: min(10, measured[key]["queries"])]
            ]
            measured[key] |= {
                "recall_at_k": float(np.mean(recalls)),
                "index_bytes": baseline.index_bytes,
                "build_seconds": seconds,
            }
        measured["speedup_vs_numpy"] = measured["numpy"]["p50_ms"] / measured["mach"]["p50_ms"]
        measured["speedup_vs_official"] = (
            measured["official"]["p50_ms"] / measured["mach"]["p50_ms"]
        )


def _measure(
    search: Callable[[NDArray[np.float32]], object],
    scores: NDArray[np.float32],
    settings: BenchSettings,
) -> dict[str, Any]:
    begun = time.perf_counter()
    for one in scores[:3]:
        search(one)
        if time.perf_counter() - begun > settings.seconds / 10:
            break
    wall, cpu = [], []
    begun = time.perf_counter()
    for one in scores:
        cpu_started, started = time.thread_time(), time.perf_counter()
        search(one)
        wall.append(time.perf_counter() - started)
        cpu.append(time.thread_time() - cpu_started)
        if len(wall) >= 3 and time.perf_counter() - begun > settings.seconds:
            break
    return {
        "p50_ms": 1e3 * float(np.percentile(wall, 50)),
        "p99_ms": 1e3 * float(np.percentile(wall, 99)),
        "p50_cpu_ms": 1e3 * float(np.percentile(cpu, 50)),
        "queries": len(wall),
    }


def _checked_recall(
    engine: TopK, gather: GatherTopK, scores: NDArray[np.float32], settings: BenchSettings
) -> float:
    """Share of the reference's products that the engine returns, over a few queries."""
    found = []
    for one in scores[:_CHECKED]:
        expected, _ = reference_top_k(one, gather.columns, settings.k)
        found.append(_recall(engine.search(one, settings.k).classes, expected))
    return float(np.mean(found))


def _recall(found: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    return len(np.intersect1d(found, expected)) / max(1, len(expected))


def _peak_memory() -> int:
    """The process's greatest resident size so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
