"""What the fleet costs beside the work itself: ``python -m benchmarks.fleet.cpu``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.fleet.load import CONCURRENCY, closed_loop, cpu_of, metric_sum, running_fleet
from benchmarks.fleet.options import Setup, median, say
from benchmarks.fleet.report import Goal, Report, Table, main
from mach.evaluation import LocalPipeline
from mach.loadtest import spent

TITLE = "CPU beside the bare work, and the latency of one process"
#: Goals for the p50 of a single query in one process, in milliseconds, by repetitions.
LATENCY_GOALS = {4: 0.6, 16: 2.0}
_K = 10


@dataclass(frozen=True)
class Latency:
    """Milliseconds of single queries."""

    p50: float
    p99: float


def single_queries(pipeline: LocalPipeline, texts: Sequence[str]) -> Latency:
    """Text to products, one after another."""
    for text in texts[:50]:
        pipeline.search([text], _K)
    seconds = []
    for text in texts:
        start = time.perf_counter()
        pipeline.search([text], _K)
        seconds.append(time.perf_counter() - start)
    return Latency(*(np.percentile(seconds, (50, 99)) * 1e3))


def batch_cpu_ms(pipeline: LocalPipeline, texts: Sequence[str], size: int, seconds: float) -> float:
    """CPU milliseconds a query, in batches of ``size``."""
    pipeline.search(texts[:size], _K)
    start, end = time.process_time(), time.perf_counter() + seconds
    done = 0
    while time.perf_counter() < end:
        at = done % max(1, len(texts) - size)
        pipeline.search(texts[at : at + size], _K)
        done += size
    return (time.process_time() - start) / done * 1e3


def run(setup: Setup) -> Report:
    """Measure the fleet and one process doing the same, in turn."""
    report = Report()
    pipeline = LocalPipeline(setup.bundle)
    total = setup.bundle.manifest.num_repetitions
    parts = {count: pipeline.first(count) for count in (4, 16, total) if count <= total}
    with running_fleet(setup) as fleet:
        assert fleet.aggregator is not None
        cpu = cpu_of([fleet.aggregator, *fleet.shards])
        front = cpu_of([fleet.aggregator])
        counter = "mach_aggregator_batch_size"
        for number in range(setup.rounds):
            before = [metric_sum(fleet.aggregator, counter + end) for end in ("_sum", "_count")]
            front_before = front.read()
            found = closed_loop(fleet.address, setup.texts, setup.seconds, cpu=cpu)
            front_seconds = spent(front_before, front.read())
            assert front_seconds is not None
            after = [metric_sum(fleet.aggregator, counter + end) for end in ("_sum", "_count")]
            queries, batches = (b - a for a, b in zip(before, after, strict=True))
            size = max(1, round(queries / batches))
            assert found.cpu_seconds_per_1000_queries is not None
            one = {
                "round": number,
                "fleet_cpu_ms": found.cpu_seconds_per_1000_queries,
                "aggregator_cpu_ms": front_seconds / queries * 1e3,
                "fleet_qps": found.qps,
                "errors": found.errors,
                "batch_size": queries / batches,
                "bare_cpu_ms": batch_cpu_ms(pipeline, setup.texts, size, setup.seconds * 0.6),
                "latency_ms": {},
            }
            for count, part in parts.items():
                latency = single_queries(part, setup.texts[:400])
                one["latency_ms"][str(count)] = {"p50": latency.p50, "p99": latency.p99}
            say(
                f"  fleet {one['fleet_cpu_ms']:.2f} ms, bare {one['bare_cpu_ms']:.2f} ms a query "
                f"in batches of {size}"
            )
            report.rounds.append(one)

    def of(figure: str) -> float:
        return median([one[figure] for one in report.rounds])

    ratio = median([one["fleet_cpu_ms"] / one["bare_cpu_ms"] for one in report.rounds])
    names = ("fleet_cpu_ms", "aggregator_cpu_ms", "bare_cpu_ms", "batch_size", "fleet_qps")
    report.figures = {name: of(name) for name in names} | {"ratio": ratio}
    report.tables.append(
        Table(
            ["at saturation", "CPU ms a query"],
            [
                ["the whole fleet", f"{of('fleet_cpu_ms'):.3f}"],
                ["the aggregator's part of it", f"{of('aggregator_cpu_ms'):.3f}"],
                ["one process, same batches, no RPC", f"{of('bare_cpu_ms'):.3f}"],
            ],
        )
    )
    report.goals.append(Goal("CPU of the fleet, times the bare work", ratio, 2.0, True))
    rows = []
    for count in parts:
        p50, p99 = (
            median([one["latency_ms"][str(count)][at] for one in report.rounds])
            for at in ("p50", "p99")
        )
        rows.append([f"{count} repetitions", f"{p50:.3f}", f"{p99:.3f}"])
        report.figures[f"latency_{count}"] = {"p50_ms": p50, "p99_ms": p99}
        if count in LATENCY_GOALS:
            what = f"p50 of one query in one process, {count} repetitions, ms"
            report.goals.append(Goal(what, p50, LATENCY_GOALS[count], True))
    report.tables.append(Table(["one process, one thread", "p50 ms", "p99 ms"], rows))
    report.notes.append(
        f"Closed loop of {CONCURRENCY} requests; the fleet put {of('batch_size'):.1f} queries into "
        "a message on average, and the one process ran batches of that size. Text to products in "
        "both; the load generator is not counted."
    )
    return report


if __name__ == "__main__":
    main("cpu", TITLE, run)
