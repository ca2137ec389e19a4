"""``python -m benchmarks.accuracy``: every system on every data set, one table each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.accuracy.datasets import TITLES, DatasetError, prepare
from benchmarks.accuracy.environments import EnvironmentFailed, Environments
from benchmarks.accuracy.report import update_page, write_report
from benchmarks.accuracy.run import Limits, load_result, published_result, run_system
from benchmarks.accuracy.systems import SETTINGS, load_systems
from benchmarks.common import usable_cpus

ROOT = Path(__file__).resolve().parents[2]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="Train and score this project's models and other systems on the same files.",
        epilog="Results of systems not run now, or finished before with --resume, are taken from "
        "earlier runs, or from the report, with the same settings, data and threads.",
    )
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help=", ".join(TITLES))
    parser.add_argument("--tib", type=Path, default=ROOT / "../shared/data/tib-titles",
                        help="folder with tib-titles' Parquet files")  # fmt: skip
    parser.add_argument("--only", help="run only these systems (comma separated)")
    parser.add_argument("--skip", help="do not run these systems (comma separated)")
    parser.add_argument("--resume", action="store_true", help="keep what is already measured")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="for training")
    parser.add_argument("--timeout-minutes", type=float, default=60.0,
                        help="for training, and again for predicting")  # fmt: skip
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument("--work", type=Path, default=ROOT / "out/benchmarks/accuracy",
                        help="models and logs")  # fmt: skip
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md",
                        help="documentation whose tables are brought up to date")  # fmt: skip
    parser.add_argument("--environments", type=Path, default=ROOT / ".venvs")
    return parser


def _names(text: str | None) -> set[str]:
    return {name.strip() for name in (text or "").split(",")} - {""}


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 if every system asked for has a result, 1 if one failed, 2 for a wrong argument."""
    parser = _parser()
    options = parser.parse_args(arguments)
    systems = load_systems(options.settings)
    only, skip = _names(options.only), _names(options.skip)
    if unknown := (only | skip) - set(systems):
        parser.error(
            f"no such system: {', '.join(sorted(unknown))} (there are {', '.join(systems)})"
        )
    if unknown := set(options.datasets) - set(TITLES):
        parser.error(
            f"no such data set: {', '.join(sorted(unknown))} (there are {', '.join(TITLES)})"
        )
    if options.threads < 1 or options.timeout_minutes <= 0:
        parser.error("--threads and --timeout-minutes must be positive")
    chosen = [key for key in systems if key not in skip and (not only or key in only)]
    environments = Environments(options.environments.resolve())
    limits = Limits(options.threads, options.timeout_minutes * 60)
    failed = 0
    for dataset in options.datasets or TITLES:
        _say(f"{dataset}: preparing")
        try:
            data = prepare(dataset, options.work.resolve(), environments, options.tib.resolve())
        except (DatasetError, EnvironmentFailed) as error:
            _say(f"{dataset}: {error}")
            failed += 1
            continue
        results = []
        for key, system in systems.items():
            if dataset not in system.datasets:
                continue
            result = load_result(system, data, limits)
            if result is None:
                result = published_result(system, data, limits, options.results)
            if key in chosen and not (options.resume and result and "failed" not in result):
                _say(f"{dataset}: {system.name}: training and predicting")
                result = run_system(system, data, environments, limits)
                failed += "failed" in result
                _say(f"{dataset}: {system.name}: {result.get('failed', 'done')}")
            if result is not None:
                results.append(result | {"name": system.name, "about": system.about})
        if results:
            text = write_report(data, results, options.results)
            update_page(options.page, dataset, text)
            print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
