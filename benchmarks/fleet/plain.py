"""Ours against the plain design on the same shards: ``python -m benchmarks.fleet.plain``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fleet.load import CONCURRENCY, closed_loop, cpu_of, running_fleet
from benchmarks.fleet.options import Setup, median, say
from benchmarks.fleet.report import Goal, Report, Table, main
from mach.errors import Unavailable
from mach.fleet import ServerProcess

TITLE = "Against the plain design: one unary call per shard and query"
NAMES = ("ours", "plain")


@contextmanager
def plain_aggregator(
    setup: Setup, shards: Sequence[str], backend: str = "mach"
) -> Iterator[ServerProcess]:
    """A plain aggregator in front of some model servers."""
    with tempfile.TemporaryDirectory(prefix="mach-plain-") as folder:
        server = ServerProcess(
            f"plain {backend}",
            "benchmarks.fleet.plain_aggregator",
            [
                *("--bundle", str(setup.path)),
                *("--shards", ",".join(shards)),
                *("--backend", backend),
            ],
            Path(folder),
            "127.0.0.1:0",
        )
        deadline = time.monotonic() + 120
        try:
            server.start()
            server.wait_bound(deadline)
            while server.health() != "serving":
                if time.monotonic() > deadline or server.pid is None:
                    raise Unavailable(f"the plain aggregator: {server.last_words()}")
                time.sleep(0.05)
            yield server
        finally:
            server.stop(time.monotonic() + 10)


def run(setup: Setup) -> Report:
    """Measure both at two concurrencies, in turn."""
    report = Report()
    with (
        running_fleet(setup) as fleet,
        plain_aggregator(setup, [shard.address for shard in fleet.shards]) as plain,
    ):
        assert fleet.aggregator is not None
        fronts = {"ours": fleet.aggregator, "plain": plain}
        for number in range(setup.rounds):
            for concurrency, seconds in ((CONCURRENCY, setup.seconds), (1, setup.seconds * 0.6)):
                # Whoever is second finds a warmer machine: they take turns at that, too.
                for name in NAMES if number % 2 == 0 else NAMES[::-1]:
                    front = fronts[name]
                    cpu = cpu_of([front, *fleet.shards])
                    found = closed_loop(
                        front.address, setup.texts, seconds, concurrency=concurrency, cpu=cpu
                    )
                    say(f"  {name} at {concurrency}: {found.qps:.0f}/s, p50 {found.p50_ms:.2f} ms")
                    report.rounds.append(
                        {
                            "round": number,
                            "system": name,
                            "concurrency": concurrency,
                            **found.to_json(),
                        }
                    )

    def of(name: str, concurrency: int, figure: str) -> float:
        return median(
            [
                one[figure]
                for one in report.rounds
                if (one["system"], one["concurrency"]) == (name, concurrency)
            ]
        )

    figures = ("qps", "p50_ms", "p99_ms", "cpu_seconds_per_1000_queries", "errors")
    for name in NAMES:
        for concurrency in (CONCURRENCY, 1):
            report.figures[f"{name} at {concurrency}"] = {
                figure: of(name, concurrency, figure) for figure in figures
            }
    report.tables.append(
        Table(
            ["", "concurrency", "queries/s", "p50 ms", "p99 ms", "CPU s / 1000 queries", "errors"],
            [
                [
                    name,
                    str(concurrency),
                    f"{of(name, concurrency, 'qps'):,.0f}",
                    f"{of(name, concurrency, 'p50_ms'):.2f}",
                    f"{of(name, concurrency, 'p99_ms'):.2f}",
                    f"{of(name, concurrency, 'cpu_seconds_per_1000_queries'):.2f}",
                    f"{of(name, concurrency, 'errors'):.0f}",
                ]
                for concurrency in (CONCURRENCY, 1)
                for name in NAMES
            ],
        )
    )
    throughput = of("ours", CONCURRENCY, "qps") / of("plain", CONCURRENCY, "qps")
    latency = of("ours", 1, "p50_ms") / of("plain", 1, "p50_ms")
    report.goals += [
        Goal(f"throughput at concurrency {CONCURRENCY}, times the plain", throughput, 4.0, False),
        Goal("p50 at concurrency 1, times the plain", latency, 0.6, True),
        Goal("requests that failed, ours", of("ours", CONCURRENCY, "errors"), 0, True),
    ]
    report.notes.append(
        "Both stand on the same shards, server, features, merge and 8-bit answers; the load "
        "generator takes its share of the same CPUs."
    )
    return report


if __name__ == "__main__":
    main("plain", TITLE, run)
