"""One system on one data set: train, predict, score, and keep what came of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.datasets import Prepared
from benchmarks.accuracy.environments import EnvironmentFailed, Environments
from benchmarks.accuracy.scoring import BadRanking, score_file
from benchmarks.accuracy.systems import OURS, System
from benchmarks.common import describe_machine, describe_run
from benchmarks.measure import CommandFailed, Cost, run_measured
from mach.files import write_atomically

__all__ = ["DEPTH", "Limits", "load_result", "published_result", "run_system"]

#: Classes asked of every system for a query.
DEPTH = 100
_THREAD_LIMITS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Bounds on what a system may take."""

    threads: int
    """In training; predicting takes one core."""
    timeout_s: float
    """Of training, and again of predicting."""


def _fingerprint(system: System, data: Prepared, limits: Limits) -> str:
    """Changes with whatever makes an earlier result a different measurement."""
    parts: list[Any] = [data.facts.sha256, system.settings(data.facts.name), limits.threads, DEPTH]
    sources = [
        system.worker,
        system.worker.with_name("worker.py"),
        system.worker.with_name("text.py"),
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for source in sources:
        if source.is_file():
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _folder(system: System, data: Prepared) -> Path:
    return data.folder.parent / system.key


def load_result(system: System, data: Prepared, limits: Limits) -> dict[str, Any] | None:
    """The result of an earlier run with the same settings, files and threads."""
    path = _folder(system, data) / "result.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result if result["fingerprint"] == _fingerprint(system, data, limits) else None


def published_result(
    system: System, data: Prepared, limits: Limits, folder: Path
) -> dict[str, Any] | None:
    """The row of the report in ``folder``, if it is of the same settings, files and threads."""
    path = folder / f"accuracy-{data.facts.name}.json"
    if not path.is_file():
        return None
    report: dict[str, Any] = json.loads(path.read_text())
    if report["dataset"]["sha256"] != data.facts.sha256:
        return None
    wanted = {
        "system": system.key,
        "settings": system.settings(data.facts.name),
        "threads": limits.threads,
    }
    for row in report["results"]:
        if {name: row.get(name) for name in wanted} == wanted:
            return dict(row)
    return None


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _one_thread_environment(threads: int) -> Mapping[str, str]:
    return dict.fromkeys(_THREAD_LIMITS, str(threads))


def run_system(
    system: System, data: Prepared, environments: Environments, limits: Limits
) -> dict[str, Any]:
    """Train and score; a system that fails has a result that says why.

    Raises:
        KeyError: if ``system`` has no settings for the data set.
    """
    folder = _folder(system, data)
    shutil.rmtree(folder, ignore_errors=True)
    model = folder / "model"
    model.mkdir(parents=True)
    result: dict[str, Any] = {
        "system": system.key,
        "name": system.name,
        "about": system.about,
        "settings": system.settings(data.facts.name),
        "fingerprint": _fingerprint(system, data, limits),
        "threads": limits.threads,
        "machine": describe_machine(),
        **describe_run(),
    }
    try:
        result |= _measure(system, data, environments, limits, folder)
    except (CommandFailed, EnvironmentFailed, BadRanking) as error:
        result["failed"] = str(error)
    write_atomically(folder / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def _measure(
    system: System, data: Prepared, environments: Environments, limits: Limits, folder: Path
) -> dict[str, Any]:
    python = system.python(environments)
    model, ranked = folder / "model", folder / "ranked.npz"
    trained = run_measured(
        system.train_command(python, data, model, limits.threads),
        log=folder / "train.log",
        timeout=limits.timeout_s,
        # Ours starts a process a repetition, each with its own number of threads.
        env=_one_thread_environment(1 if system.key == OURS else limits.threads),
    )
    predicted = run_measured(
        system.predict_command(python, data, model, DEPTH, ranked),
        log=folder / "predict.log",
        timeout=limits.timeout_s,
        env=_one_thread_environment(1),
    )
    size = _size_mb(model)
    scored = score_file(ranked, data)
    return {"train": _json(trained), "predict": _json(predicted), "model_mb": size, **scored}


def _json(cost: Cost) -> dict[str, float]:
    return {name: round(value, 3) for name, value in asdict(cost).items()}
