"""What a script found, as Markdown and JSON, and its copy in the documentation."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import describe_machine, describe_run
from benchmarks.fleet.options import (
    Setup,
    add_options,
    load_average,
    run_as_servers_do,
    say,
    setup_from,
)
from mach.errors import MachError
from mach.files import write_atomically

__all__ = ["Benchmark", "Goal", "Report", "Table", "main", "measure", "update_page"]


@dataclass(frozen=True)
class Goal:
    """A figure that was promised.

    Attributes:
        what: the figure, in words.
        value: what it came to.
        limit: what it must reach, or not exceed.
        at_most: whether the limit is an upper one.
    """

    what: str
    value: float
    limit: float
    at_most: bool

    @property
    def met(self) -> bool:
        """Whether the promise is kept; a figure that is not a number keeps none."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        verdict = "met" if self.met else "**not met**"
        return f"{self.what}: {self.value:.3g} (goal {sign} {self.limit:g}): {verdict}"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass
class Report:
    """What a script found.

    Attributes:
        tables: for people.
        goals: figures that were promised.
        notes: sentences about how it was measured.
        rounds: every measurement, for machines.
        figures: what was made of them.
    """

    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


Benchmark = Callable[[Setup], Report]


def _bundle_line(setup: Setup) -> dict[str, Any]:
    manifest = setup.bundle.manifest
    return {
        "version": manifest.version,
        "products": manifest.num_classes,
        "buckets": manifest.num_buckets,
        "repetitions": manifest.num_repetitions,
        "features": manifest.num_features,
    }


def measure(name: str, title: str, benchmark: Benchmark, setup: Setup) -> Report:
    """Run a benchmark, write ``fleet-NAME.json`` and ``.md``, bring the documentation up to date.

    Raises:
        MachError: whatever stops it.
    """
    say(f"{name}: {title}")
    load = load_average()
    report = benchmark(setup)
    machine, run, bundle = describe_machine(), describe_run(), _bundle_line(setup)
    text = "\n".join(
        [
            *(f"{table}\n" for table in report.tables),
            *(f"- {goal}." for goal in report.goals),
            *(f"- {note}" for note in report.notes),
            "",
            f"Measured {run['date']} at {run['commit'] or 'no commit'} on {machine['cpu']}, "
            f"{machine['cpus']} CPUs, {machine['memory_gib']} GiB (load average {load:.1f} when it "
            f"began); {bundle['products']:,} products, {bundle['buckets']:,} buckets, "
            f"{bundle['repetitions']} repetitions; medians of {setup.rounds} alternating rounds.",
            "",
        ]
    )
    content = {
        "benchmark": name,
        "title": title,
        **run,
        "machine": {**machine, "load_average": load},
        "bundle": bundle,
        "settings": {"rounds": setup.rounds, "seconds": setup.seconds},
        "figures": report.figures,
        "goals": [{**asdict(goal), "met": goal.met} for goal in report.goals],
        "notes": report.notes,
        "rounds": report.rounds,
    }
    setup.results.mkdir(parents=True, exist_ok=True)
    base = setup.results / f"fleet-{name}"
    write_atomically(base.with_suffix(".md"), text)
    write_atomically(base.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    update_page(setup.page, name, text)
    print(f"## {title}\n\n{text}", flush=True)
    return report


def update_page(page: Path, name: str, text: str) -> bool:
    """Put ``text`` between a page's markers ``<!-- fleet:NAME -->`` and ``<!-- /fleet:NAME -->``.

    Returns:
        Whether the page has them.
    """
    if not page.is_file():
        return False
    start, end = f"<!-- fleet:{name} -->", f"<!-- /fleet:{name} -->"
    before, found, rest = page.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        return False
    write_atomically(page, f"{before}{start}\n\n{text}\n{end}{after}")
    return True


def main(name: str, title: str, benchmark: Benchmark) -> None:
    """What each script does; exits with 0 if all goals are met, 1 if not, 2 for a mistake."""
    run_as_servers_do()
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.fleet.{name}", description=title)
    add_options(parser)
    try:
        report = measure(name, title, benchmark, setup_from(parser.parse_args()))
    except MachError as error:
        say(f"{name}: {error}")
        sys.exit(2)
    sys.exit(0 if all(goal.met for goal in report.goals) else 1)
