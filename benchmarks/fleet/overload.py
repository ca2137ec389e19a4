"""Three times what the fleet can do: ``python -m benchmarks.fleet.overload``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.fleet.load import closed_loop, open_loop, running_fleet
from benchmarks.fleet.options import Setup, median, say
from benchmarks.fleet.report import Goal, Report, Table, main

TITLE = "Three times the capacity offered"
_TIMES = 3.0
_TIMEOUT = 1.0


def pin(pid: str, cpus: Iterable[int]) -> None:
    """Keep every thread of a process on some CPUs; what it starts later is kept there, too."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), set(cpus))


@contextmanager
def kept_busy(cpus: Iterable[int]) -> Iterator[None]:
    """Have some CPU never idle, and whatever else runs there go first.

    Where two CPUs are threads of one core, each may be slower while the other works: a generator of
    overload would slow the fleet in another way than by what it asks.
    """
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(spinner.pid, set(cpus))
        os.setpriority(os.PRIO_PROCESS, spinner.pid, 19)
        yield
    finally:
        spinner.kill()
        spinner.wait()


def _dropped(measured: Any) -> int:
    """Calls that gRPC's core dropped, see ``max_waiting_calls``; nothing else here is CANCELLED."""
    return int(measured["statuses"].get("CANCELLED", 0))


def _failures(measured: Any) -> int:
    return int(measured["errors"]) - _dropped(measured)


def run(setup: Setup) -> Report:
    """Capacity, then the overload, then what is left of the capacity, in each round."""
    report = Report()
    usable = sorted(os.sched_getaffinity(0))
    # Refusing is quick, sending is not: a generator beside the fleet would slow it down.
    ours = usable[-1:] if len(usable) > 1 else usable
    servers = usable[:-1] or usable
    pin("self", servers)
    try:
        with running_fleet(setup) as fleet:
            pin("self", ours)
            for number in range(setup.rounds):
                full = closed_loop(fleet.address, setup.texts, setup.seconds)
                with kept_busy(ours):
                    beside = closed_loop(fleet.address, setup.texts, setup.seconds)
                over = open_loop(
                    fleet.address,
                    setup.texts,
                    setup.seconds,
                    _TIMES * full.qps,
                    timeout=_TIMEOUT,
                )
                after = closed_loop(fleet.address, setup.texts, setup.seconds / 2)
                say(
                    f"  capacity {full.qps:.0f}/s, {beside.qps:.0f}/s beside a busy CPU; offered "
                    f"{over.offered_qps:.0f}/s, answered {over.qps:.0f}/s, "
                    f"p99 {over.p99_ms:.0f} ms, {over.statuses}"
                )
                report.rounds.append(
                    {
                        "round": number,
                        "capacity": full.to_json(),
                        "beside": beside.to_json(),
                        "overload": over.to_json(),
                        "afterwards": after.to_json(),
                    }
                )
    finally:
        pin("self", usable)

    def of(part: str, figure: str) -> float:
        return median([one[part][figure] for one in report.rounds])

    def each(part: str, count: Callable[[Any], int]) -> float:
        return median([count(one[part]) / one[part]["seconds"] for one in report.rounds])

    shares = [one["overload"]["qps"] / one["capacity"]["qps"] for one in report.rounds]
    goodput = median(shares)
    of_beside = median([one["overload"]["qps"] / one["beside"]["qps"] for one in report.rounds])
    failed = median(
        [_failures(one["overload"]) / one["overload"]["queries"] for one in report.rounds]
    )
    offered = median(
        [one["overload"]["offered_qps"] / one["capacity"]["qps"] for one in report.rounds]
    )
    report.figures = {
        "goodput": goodput,
        "goodput_beside": of_beside,
        "offered": offered,
        "failed_per_answer": failed,
    }
    report.tables.append(
        Table(
            [
                "",
                "offered/s",
                "answered/s",
                "p50 ms",
                "p99 ms",
                "refused/s",
                "dropped unread/s",
                "other failures/s",
            ],
            [
                [
                    name,
                    f"{of(part, 'offered_qps'):,.0f}",
                    f"{of(part, 'qps'):,.0f}",
                    f"{of(part, 'p50_ms'):.1f}",
                    f"{of(part, 'p99_ms'):.1f}",
                    f"{of(part, 'shed') / of(part, 'seconds'):,.0f}",
                    f"{each(part, _dropped):,.0f}",
                    f"{each(part, _failures):,.1f}",
                ]
                for name, part in (
                    ("at capacity, 64 in flight", "capacity"),
                    ("the same, the generator's CPU kept busy", "beside"),
                    ("overload", "overload"),
                    ("afterwards, 64 in flight", "afterwards"),
                )
            ],
        )
    )
    report.goals += [
        Goal("answered under overload, times the capacity", goodput, 0.9, False),
        Goal("p99 of the accepted, ms (their deadline)", of("overload", "p99_ms"), 1000, True),
        Goal("calls neither answered, refused nor dropped at once, per answer", failed, 0.01, True),
    ]
    report.notes.append(
        f"Open loop at {offered:.1f} times the capacity, each request with {_TIMEOUT:.0f} s; "
        f"{min(shares):.2f} to {max(shares):.2f} of the capacity in {len(shares)} rounds. "
        + (
            f"The fleet has {len(servers)} CPU(s) and the load generator another, so that its own "
            "work is not taken for the fleet's. Of what the fleet answers "
            f"while the generator's CPU is kept busy, {of_beside:.2f} was answered under overload."
            if len(usable) > 1
            else "The load generator shares the fleet's only CPU."
        )
    )
    return report


if __name__ == "__main__":
    main("overload", TITLE, run)
