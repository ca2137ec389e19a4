"""From one bundle version to another under load: ``python -m benchmarks.fleet.switch``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.fleet.faults import capacity_of, under_load
from benchmarks.fleet.load import running_fleet
from benchmarks.fleet.options import Setup, median, say
from benchmarks.fleet.report import Goal, Report, Table, main
from mach.bundle import MANIFEST_FILE, Bundle, Manifest
from mach.errors import InvalidInput
from mach.fleet import LocalFleet
from mach.fleet.switching import FleetAdmin

TITLE = "A bundle switch at half the capacity"


def link_copy(bundle: Bundle, out: Path, **changes: Any) -> Path:
    """The same bundle elsewhere, without copying if it can; ``changes`` of the manifest."""
    out.mkdir()
    for name in bundle.manifest.files:
        try:
            os.link(bundle.path / name, out / name)
        except OSError:  # another file system
            shutil.copyfile(bundle.path / name, out / name)
    given = set(Manifest.model_fields) - {"format", "version"}
    fields = {name: getattr(bundle.manifest, name) for name in given} | changes
    (out / MANIFEST_FILE).write_text(Manifest.build(**fields).to_json(), encoding="utf-8")
    return out


def other_version(bundle: Bundle, out: Path, number: int) -> Path:
    """A bundle that merges a little differently, which makes it another version."""
    merge = bundle.manifest.merge
    if merge.get("rule") != "power-mean":
        raise InvalidInput("--bundle", f"has the merge rule {json.dumps(merge)}: no variant known")
    return link_copy(bundle, out, merge={**merge, "exponent": merge["exponent"] + 0.01 * number})


def run(setup: Setup) -> Report:
    """Load another version and switch to it, in each round."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="mach-switch-") as folder:
        # What the admin service loads must lie beside what the servers started with.
        first = link_copy(setup.bundle, Path(folder) / "first")
        root = ("--bundle-root", folder)
        with running_fleet(
            replace(setup, path=first),
            shard_arguments=root,
            aggregator_arguments=root,
            admin=True,
        ) as fleet:
            admin = FleetAdmin(fleet.admin_ports)
            rate = capacity_of(fleet, setup) / 2
            for number in range(setup.rounds):
                path = other_version(setup.bundle, Path(folder) / str(number), number + 1)
                one = _switch(fleet, setup, admin, rate, path, Bundle.open(path).version)
                say(
                    f"  loaded in {one['load_s']:.1f} s, switched in {one['switch_s'] * 1e3:.0f} "
                    f"ms; p99 {one['before']['p99_ms']:.1f} ms before, "
                    f"{one['loading']['p99_ms']:.1f} while loading, "
                    f"{one['switching']['p99_ms']:.1f} ms around the switch"
                )
                report.rounds.append({"round": number, **one})
    _conclude(report, rate)
    return report


def _switch(
    fleet: LocalFleet, setup: Setup, admin: FleetAdmin, rate: float, path: Path, version: str
) -> dict[str, Any]:
    marks: dict[str, float] = {}

    def script(start: float) -> None:
        time.sleep(max(0.0, start + setup.seconds - time.perf_counter()))
        marks["load"] = time.perf_counter()
        admin.load(str(path), version)
        marks["switch"] = time.perf_counter()
        admin.activate(version)
        marks["done"] = time.perf_counter()

    # The load goes on for as long as loading takes; the next round's begins with the next.
    seconds = 2 * setup.seconds + max(4.0, 0.8 * len(fleet.shards))
    timeline, found = under_load(fleet, setup, rate, script, seconds)
    around = 1.0
    return {
        "load": found,
        "load_s": marks["switch"] - marks["load"],
        "switch_s": marks["done"] - marks["switch"],
        "before": timeline.between(0.0, marks["load"]),
        "loading": timeline.between(marks["load"], marks["switch"]),
        "switching": timeline.between(marks["switch"] - around, marks["done"] + around),
        "during": timeline.between(marks["load"], marks["done"] + around),
        "after": timeline.between(marks["done"] + around, float("inf")),
    }


def _conclude(report: Report, rate: float) -> None:
    def of(part: str, figure: str) -> float:
        values = [one[part][figure] for one in report.rounds]
        return median([float("nan") if value is None else value for value in values])

    ratio = median([one["during"]["p99_ms"] / one["before"]["p99_ms"] for one in report.rounds])
    errors = sum(one["load"]["errors"] + one["load"]["shed"] for one in report.rounds)
    report.figures = {
        "rate": rate,
        "p99_ratio": ratio,
        "errors": errors,
        "load_s": median([one["load_s"] for one in report.rounds]),
        "switch_s": median([one["switch_s"] for one in report.rounds]),
    }
    report.tables.append(
        Table(
            ["", "p50 ms", "p99 ms", "max ms", "coverage"],
            [
                [
                    name,
                    f"{of(part, 'p50_ms'):.2f}",
                    f"{of(part, 'p99_ms'):.2f}",
                    f"{of(part, 'max_ms'):.1f}",
                    f"{of(part, 'coverage'):.4f}",
                ]
                for name, part in (
                    ("before", "before"),
                    ("while the next bundle loads", "loading"),
                    ("a second before to a second after the switch", "switching"),
                    ("afterwards", "after"),
                )
            ],
        )
    )
    report.goals += [
        Goal("errors", errors, 0, True),
        Goal("p99 from loading to a second after, times that before", ratio, 2.0, True),
    ]
    report.notes.append(
        f"Open loop of {rate:.0f} queries/s, half of what the fleet answered at saturation. "
        f"Loading, one process after another, took {report.figures['load_s']:.1f} s, on the CPUs "
        f"that serve; activating everywhere {report.figures['switch_s'] * 1e3:.0f} ms. Requests "
        "refused count as errors."
    )


if __name__ == "__main__":
    main("switch", TITLE, run)
