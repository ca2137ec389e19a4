"""``python -m benchmarks.fleet``: every serving benchmark but the soak, one after another."""

from __future__ import annotations

import argparse
import sys

from benchmarks.fleet import cpu, faults, overload, peers, plain, switch
from benchmarks.fleet.options import add_options, run_as_servers_do, say, setup_from
from benchmarks.fleet.report import measure
from mach.errors import MachError

BENCHMARKS = {
    "plain": plain,
    "cpu": cpu,
    "peers": peers,
    "faults": faults,
    "switch": switch,
    "overload": overload,
}


def _names(text: str | None) -> set[str]:
    return {name.strip() for name in (text or "").split(",")} - {""}


def main() -> int:
    """0 if every goal is met, 1 if one is not or a benchmark failed, 2 for a wrong argument."""
    run_as_servers_do()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet", description="Measure serving; about a quarter hour."
    )
    add_options(parser)
    parser.add_argument("--only", help="run only these (comma separated)")
    parser.add_argument("--skip", help="do not run these (comma separated)")
    options = parser.parse_args()
    only, skip = _names(options.only), _names(options.skip)
    if unknown := (only | skip) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))} "
                     f"(there are {', '.join(BENCHMARKS)})")  # fmt: skip
    try:
        setup = setup_from(options)
        say(f"{len(setup.texts):,} queries, bundle {setup.bundle.version[:12]}")
    except MachError as error:
        parser.error(str(error))
    missed = 0
    for name, module in BENCHMARKS.items():
        if name in skip or (only and name not in only):
            continue
        try:
            report = measure(name, module.TITLE, module.run, setup)
        except MachError as error:
            say(f"{name}: {error}")
            missed += 1
        else:
            missed += sum(not goal.met for goal in report.goals)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
