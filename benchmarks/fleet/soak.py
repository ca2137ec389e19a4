"""Memory under hours of mixed load: ``python -m benchmarks.fleet.soak --minutes 60``."""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet.faults import capacity_of
from benchmarks.fleet.load import open_loop, running_fleet
from benchmarks.fleet.options import Setup, add_options, say, setup_from
from benchmarks.fleet.report import Goal, Report, Table, measure
from mach.client import MachClient
from mach.errors import MachError, UserError
from mach.fleet import LocalFleet

TITLE = "Memory under steady load"
#: Growth allowed after warm-up.
LIMIT = 0.02
#: Share of the time that counts as warm-up.
WARM_UP = 0.25
#: Of the capacity: what the load generator offers beside the mixed calls.
SHARE = 0.4


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            return int(value.split()[0]) * 1024
    return 0


class Sampler(threading.Thread):
    """Reads every process's memory every so often."""

    def __init__(self, fleet: LocalFleet, interval: float) -> None:
        super().__init__(name="sampler", daemon=True)
        assert fleet.aggregator is not None
        self._servers = [fleet.aggregator, *fleet.shards]
        self._interval = interval
        self.ended = threading.Event()
        self.times: list[float] = []
        self.samples: dict[str, list[int]] = {server.name: [] for server in self._servers}

    def run(self) -> None:
        while not self.ended.wait(self._interval):
            self.times.append(time.monotonic())
            for server in self._servers:
                pid = server.pid
                self.samples[server.name].append(resident_bytes(pid) if pid else 0)

    def growth(self, name: str) -> tuple[float, float, float]:
        """Megabytes after warm-up and at the end, and the growth between them as a share.

        Both are medians over a sixth of the time that is left, so that one moment decides
        nothing.
        """
        values = np.array(self.samples[name][int(len(self.times) * WARM_UP) :], np.float64)
        part = max(1, len(values) // 6)
        first, last = float(np.median(values[:part])), float(np.median(values[-part:]))
        return first / 1e6, last / 1e6, last / first - 1


class Mixture(threading.Thread):
    """Calls of every kind, one after another: batches, filters, mistakes, calls that expire."""

    def __init__(self, fleet: LocalFleet, texts: list[str]) -> None:
        super().__init__(name="mixture", daemon=True)
        self._address = fleet.address
        self._texts = texts
        self._random = random.Random(0)
        self.ended = threading.Event()
        self.calls = 0
        self.failures: dict[str, int] = {}

    def run(self) -> None:
        choose = self._random
        with MachClient(self._address, timeout=10.0) as client:
            kinds = (
                lambda: client.search_batch(choose.sample(self._texts, 20), choose.randint(1, 100)),
                lambda: client.search(choose.choice(self._texts), 50, explain=True),
                lambda: client.search(choose.choice(self._texts), 5, attributes=True),
                lambda: client.search(choose.choice(self._texts) * 20, 1000),
                lambda: client.search(choose.choice(self._texts), timeout=0.002),
                lambda: client.search("x" * 10_000),
                client.describe,
            )
            while not self.ended.wait(0.02):
                self.calls += 1
                try:
                    choose.choice(kinds)()
                except MachError as error:
                    name = type(error).__name__
                    self.failures[name] = self.failures.get(name, 0) + 1


def run(setup: Setup, minutes: float) -> Report:
    """Load for ``minutes``, and look at the memory of every process meanwhile."""
    seconds = minutes * 60
    report = Report()
    with running_fleet(setup, on_event=say) as fleet:
        pids = {server.name: server.pid for server in fleet.status().servers}
        rate = SHARE * capacity_of(fleet, setup)
        sampler = Sampler(fleet, min(5.0, max(0.25, seconds / 200)))
        mixture = Mixture(fleet, setup.texts)
        for thread in (sampler, mixture):
            thread.start()
        load = open_loop(fleet.address, setup.texts, seconds, rate, timeout=5.0)
        for helper in (sampler, mixture):
            helper.ended.set()
            helper.join(30)
        survived = pids == {server.name: server.pid for server in fleet.status().servers}
    growth = {name: sampler.growth(name) for name in sampler.samples}
    worst = max(growth, key=lambda name: growth[name][2])
    report.rounds.append(_round(load.to_json(), sampler, mixture))
    report.figures = {
        "minutes": minutes,
        "rate": rate,
        "growth": {name: share for name, (_, _, share) in growth.items()},
    }
    report.tables.append(
        Table(
            ["process", "MB after warm-up", "MB at the end", "growth"],
            [
                [name, f"{first:.1f}", f"{last:.1f}", f"{share:+.2%}"]
                for name, (first, last, share) in growth.items()
            ],
        )
    )
    report.goals += [
        Goal(f"largest growth of a process ({worst})", growth[worst][2], LIMIT, True),
        Goal("processes that ended", 0.0 if survived else 1.0, 0, True),
        Goal("errors of the steady load", load.errors, 0, True),
    ]
    report.notes.append(
        f"{minutes:g} minutes of {rate:.0f} queries/s ({load.queries:,} answers) beside "
        f"{mixture.calls:,} other calls: batches, explanations, attributes, 1,000 products, "
        "deadlines of 2 ms, texts over the limit. The first quarter is warm-up."
    )
    return report


def _round(load: dict[str, Any], sampler: Sampler, mixture: Mixture) -> dict[str, Any]:
    return {
        "load": load,
        "mixture": {"calls": mixture.calls, "failures": mixture.failures},
        "seconds": [round(at - sampler.times[0], 1) for at in sampler.times],
        "resident_mb": {
            name: [round(value / 1e6, 2) for value in values]
            for name, values in sampler.samples.items()
        },
    }


def main() -> None:
    """Exit with 0 if memory is flat, 1 if not, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.soak", description=TITLE)
    add_options(parser)
    parser.add_argument("--minutes", type=float, default=60.0, help="length (default 60)")
    options = parser.parse_args()
    try:
        setup = replace(setup_from(options), rounds=1)
        report = measure("soak", TITLE, lambda setup: run(setup, options.minutes), setup)
    except UserError as error:
        say(f"soak: {error}")
        sys.exit(2)
    sys.exit(0 if all(goal.met for goal in report.goals) else 1)


if __name__ == "__main__":
    main()
