"""From finished repetitions to a sealed bundle: choose the merge rule, write the manifest."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mach.bundle import BUCKETS_FILE, CATALOG_FILE, FEATURES_FILE, Manifest, repetition_file, seal
from mach.errors import BundleError
from mach.evaluation.metrics import RankingMetrics
from mach.merge import BucketTable, MergeRule, TopK
from trainer.parity import open_session
from trainer.plan import Plan
from trainer.prepare import PreparedData
from trainer.progress import Reporter
from trainer.workspace import Workspace, clear_message

__all__ = ["choose_merge_rule", "collect"]

_CHUNK = 64
_MERGE_QUERIES = 2000
#: The merge rule is the one with the best mean of these, each relative to its best value.
_CRITERIA = ("P@1", "P@5", "R@20")
_LIBRARIES = ("mach-fleet", "torch", "onnx", "onnxruntime", "numpy", "pyarrow")


def collect(plan: Plan, out: Path, reporter: Reporter) -> Manifest:
    """Seal ``plan.settings.repetitions`` finished repetitions as the bundle ``out``.

    Raises:
        BundleError: if a repetition is not finished or ``out`` exists.
        DataError: if the prepared data are damaged.
        ConfigError: if the disk is full, or another process seals it.
    """
    settings = plan.settings
    records = []
    for repetition in range(settings.repetitions):
        record = Workspace.finished(plan.models, repetition)
        if record is None:
            raise BundleError(f"repetition {repetition} is not finished in {plan.models}")
        records.append(record)
    data = PreparedData.open(plan.data)
    data.check()
    hashes = plan.hash(data.num_classes, settings.repetitions)
    table = BucketTable.from_hash(hashes, data.num_classes)
    models = [plan.models / repetition_file(r) for r in range(settings.repetitions)]
    rule, figures = choose_merge_rule(
        models, table, data, settings.merge_exponents, plan.settings.threads
    )
    chosen = figures.get(rule.exponent, {})
    reporter.say(
        f"merge rule: exponent {rule.exponent:g}"
        + (" (held out: " if chosen else " (nothing held out to choose by)")
        + ", ".join(f"{name} {value:.3f}" for name, value in chosen.items())
        + (")" if chosen else "")
    )
    training = {
        "settings": settings.model_dump(
            mode="json", exclude={"workers", "executor", "group", "checkpoint_seconds"}
        ),
        "data": data.report,
        "held_out": chosen,
        "merge_choice": {f"{t:g}": values for t, values in figures.items()},
        "repetitions": records,
        "seconds": round(sum(record["seconds"] for record in records), 1),
    }
    with clear_message(out), Workspace(out).staging() as staging:
        for model in models:
            _link(model, staging / model.name)
        for name in (CATALOG_FILE, FEATURES_FILE):
            _link(plan.data / name, staging / name)
        table.save(staging / BUCKETS_FILE)
        return seal(
            staging,
            out,
            num_classes=data.num_classes,
            num_buckets=plan.num_buckets,
            num_repetitions=settings.repetitions,
            num_features=data.num_features,
            assignment="hash",
            hash=hashes.to_manifest(),
            features=settings.features,
            merge=rule.to_manifest(),
            training=training,
            libraries=_libraries(),
        )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links here
        shutil.copyfile(source, target)


def _libraries() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # onnxruntime-gpu goes by another name
            continue
    return versions


def choose_merge_rule(
    models: Sequence[Path],
    table: BucketTable,
    data: PreparedData,
    exponents: Sequence[float],
    threads: int = 1,
) -> tuple[MergeRule, dict[float, dict[str, float]]]:
    """The exponent that serves the held-out queries best, and the figures of each.

    Best is the largest mean of P@1, P@5 and R@20, each divided by its best value among the
    exponents, so that none of the three counts more for being larger. Equal ones: the smaller.

    Returns:
        The rule and, for each exponent, its figures; without held-out queries the first
        exponent and nothing.
    """
    held_out = data.held_out
    if not len(held_out):
        return MergeRule(exponents[0]), {}
    rules = {t: MergeRule(t) for t in sorted(set(exponents))}
    scorers = {t: RankingMetrics(precision_at=(1, 5), recall_at=(20,), ndcg_at=()) for t in rules}
    sessions = [open_session(str(path), threads) for path in models]
    search = TopK(table)
    for start in range(0, min(len(held_out), _MERGE_QUERIES), _CHUNK):
        examples = held_out.read(start, min(start + _CHUNK, len(held_out), _MERGE_QUERIES))
        indices, values = examples.features.padded()
        inputs = {"indices": indices, "values": values}
        rows: NDArray[np.float32] = np.stack(
            [session.run(["log_probabilities"], inputs)[0] for session in sessions], axis=1
        )
        for t, rule in rules.items():
            found = search.search_batch(rule.transform(rows.copy()), 20)
            for number, result in enumerate(found):
                first, last = examples.class_splits[number : number + 2]
                true = examples.classes[first:last].astype(np.int64)
                scorers[t].add(result.classes, true, len(true))
    figures = {t: scorer.results() for t, scorer in scorers.items()}
    best = {name: max(values[name] for values in figures.values()) for name in _CRITERIA}

    def quality(t: float) -> float:
        return sum(figures[t][name] / best[name] for name in _CRITERIA if best[name] > 0)

    return rules[max(rules, key=lambda t: (quality(t), -t))], figures
