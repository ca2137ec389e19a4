"""A shard stopped, a shard killed, under steady load: ``python -m benchmarks.fleet.faults``."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.fleet.load import closed_loop, open_loop, running_fleet
from benchmarks.fleet.options import Setup, median, say
from benchmarks.fleet.report import Goal, Report, Table, main
from mach.client import MachClient
from mach.fleet import LocalFleet, ServerProcess
from mach.loadtest import Outcomes

TITLE = "A shard stopped, and a shard killed, at half the capacity"
_RECALL_QUERIES = 2000


class Timeline:
    """Latencies of an open loop, by the moment each request was due."""

    def __init__(self) -> None:
        self._outcomes: Outcomes | None = None

    def watch(self, seconds: float, outcomes: Outcomes) -> None:
        """What :func:`open_loop` reports its progress to."""
        self._outcomes = outcomes

    def between(self, start: float, end: float) -> dict[str, Any]:
        """Figures of the answers due from ``start`` to ``end``, by ``time.perf_counter``."""
        assert self._outcomes is not None
        seconds = np.frombuffer(self._outcomes.seconds, np.float64)
        due = np.frombuffer(self._outcomes.finished, np.float64) - seconds
        coverage = np.frombuffer(self._outcomes.coverage, np.float64)
        inside = (due >= start) & (due < end)
        if not inside.any():
            return {"answers": 0, "p50_ms": None, "p99_ms": None, "max_ms": None, "coverage": None}
        p50, p99, longest = np.percentile(seconds[inside], (50, 99, 100)) * 1e3
        return {
            "answers": int(inside.sum()),
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "max_ms": float(longest),
            "coverage": float(coverage[inside].mean()),
        }


def capacity_of(fleet: LocalFleet, setup: Setup) -> float:
    """Queries a second at saturation."""
    return closed_loop(fleet.address, setup.texts, setup.seconds).qps


def recall_at_20(address: str, setup: Setup) -> float:
    """Share of the true products among the first 20, over some queries."""
    known = [(text, true) for text, true in setup.known if true][:_RECALL_QUERIES]
    total = 0.0
    with MachClient(address, timeout=30.0) as client:
        for start in range(0, len(known), 50):
            part = known[start : start + 50]
            results = client.search_batch([text for text, _ in part], 20)
            for (_, true), result in zip(part, results, strict=True):
                found = {product.product_id for product in result.products}
                total += len(found & set(true)) / len(set(true))
    return total / len(known)


def left_out(fleet: LocalFleet, address: str, since: float, limit: float) -> float:
    """Seconds from ``since`` until the aggregator says that it does not use a shard."""
    with MachClient(fleet.address, timeout=2.0) as client:
        while time.perf_counter() < since + limit:
            states = {shard.address: shard.ready for shard in client.describe().shards}
            if not states[address]:
                return time.perf_counter() - since
            time.sleep(0.02)
    return float("inf")


def under_load(
    fleet: LocalFleet, setup: Setup, rate: float, script: Callable[[float], None], seconds: float
) -> tuple[Timeline, dict[str, Any]]:
    """Run ``script(start)`` in a thread beside an open loop; its errors are raised here."""
    timeline = Timeline()
    failures: list[BaseException] = []

    def guarded(start: float) -> None:
        try:
            script(start)
        except BaseException as error:  # raised in the caller's thread
            failures.append(error)

    start = time.perf_counter() + 1.0  # after the warm-up
    thread = threading.Thread(target=guarded, args=(start,))
    thread.start()
    try:
        found = open_loop(
            fleet.address, setup.texts, seconds, rate, timeout=2.0, on_progress=timeline.watch
        )
    finally:
        thread.join()
    if failures:
        raise failures[0]
    return timeline, found.to_json()


def stop_one(fleet: LocalFleet, setup: Setup, rate: float, before: float) -> dict[str, Any]:
    """One shard gets SIGSTOP in the middle and SIGCONT near the end."""
    victim = fleet.shards[len(fleet.shards) // 2]
    marks: dict[str, float] = {}
    stay = max(3.0, setup.seconds)

    def script(start: float) -> None:
        time.sleep(max(0.0, start + setup.seconds - time.perf_counter()))
        marks["hit"] = time.perf_counter()
        os.kill(require_pid(victim), signal.SIGSTOP)
        try:
            marks["detected"] = marks["hit"] + left_out(fleet, victim.address, marks["hit"], stay)
            marks["end"] = max(marks["hit"], min(marks["detected"], time.perf_counter())) + stay
            time.sleep(max(0.0, marks["end"] - time.perf_counter()))
            marks["recall"] = recall_at_20(fleet.address, setup)
        finally:
            os.kill(require_pid(victim), signal.SIGCONT)

    timeline, found = under_load(fleet, setup, rate, script, 2 * setup.seconds + 2 * stay)
    return {
        "load": found,
        "detection_s": marks["detected"] - marks["hit"],
        "before": timeline.between(0.0, marks["hit"]),
        "until_detected": timeline.between(marks["hit"], marks["detected"]),
        "after": timeline.between(marks["detected"], marks["end"]),
        "recall_before": before,
        "recall_after": marks["recall"],
    }


def kill_one(fleet: LocalFleet, setup: Setup, rate: float) -> dict[str, Any]:
    """One shard gets SIGKILL in the middle; its supervisor starts it again."""
    victim = fleet.shards[0]
    marks: dict[str, float] = {}

    def script(start: float) -> None:
        time.sleep(max(0.0, start + setup.seconds - time.perf_counter()))
        marks["hit"] = time.perf_counter()
        os.kill(require_pid(victim), signal.SIGKILL)

    timeline, found = under_load(fleet, setup, rate, script, 3 * setup.seconds)
    return {
        "load": found,
        "before": timeline.between(0.0, marks["hit"]),
        "after": timeline.between(marks["hit"], float("inf")),
    }


def require_pid(server: ServerProcess) -> int:
    """Of a process that must be running."""
    pid = server.pid
    assert pid is not None, f"{server.name} does not run"
    return pid


def wait_complete(fleet: LocalFleet, seconds: float = 60.0) -> None:
    """Until every shard is used again."""
    end = time.monotonic() + seconds
    with MachClient(fleet.address, timeout=2.0) as client:
        while not all(shard.ready for shard in client.describe().shards):
            assert time.monotonic() < end, "a shard is not used again"
            time.sleep(0.1)


def run(setup: Setup) -> Report:
    """Find the capacity, then hit a shard at half of it, in each round."""
    report = Report()
    with running_fleet(setup) as fleet:
        rate = capacity_of(fleet, setup) / 2
        before = recall_at_20(fleet.address, setup)
        for number in range(setup.rounds):
            stopped = stop_one(fleet, setup, rate, before)
            wait_complete(fleet)
            killed = kill_one(fleet, setup, rate)
            wait_complete(fleet)
            say(
                f"  stopped: found out after {stopped['detection_s']:.2f} s, p99 "
                f"{stopped['before']['p99_ms']:.1f} → {stopped['after']['p99_ms']:.1f} ms, "
                f"{stopped['load']['statuses']}; killed: {killed['load']['statuses']}"
            )
            report.rounds.append({"round": number, "stopped": stopped, "killed": killed})
    _conclude(report, rate)
    return report


def _conclude(report: Report, rate: float) -> None:
    def of(*path: str) -> float:
        values = []
        for one in report.rounds:
            value: Any = one
            for name in path:
                value = value[name]
            values.append(float("nan") if value is None else value)
        return median(values)

    p99 = median(
        [
            one["stopped"]["after"]["p99_ms"] / one["stopped"]["before"]["p99_ms"]
            for one in report.rounds
        ]
    )
    recall = of("stopped", "recall_after") - of("stopped", "recall_before")
    errors = {
        kind: sum(one[kind]["load"]["errors"] + one[kind]["load"]["shed"] for one in report.rounds)
        for kind in ("stopped", "killed")
    }
    report.figures = {
        "rate": rate,
        "detection_s": of("stopped", "detection_s"),
        "p99_ratio": p99,
        "recall_change": recall,
        "errors": errors,
    }
    rows = [
        [
            f"{kind}: {what}",
            f"{of(kind, part, 'p50_ms'):.2f}",
            f"{of(kind, part, 'p99_ms'):.2f}",
            f"{of(kind, part, 'max_ms'):.1f}",
            f"{of(kind, part, 'coverage'):.3f}",
        ]
        for kind, part, what in (
            ("stopped", "before", "before"),
            ("stopped", "until_detected", "until it is found out"),
            ("stopped", "after", "from then on"),
            ("killed", "before", "before"),
            ("killed", "after", "from then on, its restart included"),
        )
    ]
    report.tables.append(Table(["", "p50 ms", "p99 ms", "max ms", "coverage"], rows))
    report.goals += [
        Goal("errors, one shard stopped", errors["stopped"], 0, True),
        Goal("p99 once it is found out, times that before", p99, 1.5, True),
        Goal("recall@20 lost while it is stopped", -recall, 0.01, True),
        Goal("errors, one shard killed", errors["killed"], 0, True),
    ]
    report.notes.append(
        f"Open loop of {rate:.0f} queries/s, half of what the fleet answered at saturation; "
        f"latency counts from when a request was due. The stopped shard was left out after "
        f"{of('stopped', 'detection_s'):.2f} s; recall@20 {of('stopped', 'recall_before'):.4f} "
        f"with it and {of('stopped', 'recall_after'):.4f} without. Requests refused count as "
        "errors."
    )


if __name__ == "__main__":
    main("faults", TITLE, run)
