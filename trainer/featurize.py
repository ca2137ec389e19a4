"""From grouped queries to the features of the model and to training examples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mach.features import Featurizer, SlotCounter
from trainer.examples import Examples, ExamplesWriter
from trainer.progress import Reporter
from trainer.settings import TrainSettings
from trainer.spill import Groups

__all__ = ["count_features", "write_examples"]

#: Queries featurized at once.
CHUNK_ROWS = 8192


def count_features(
    parts: Iterable[Groups], settings: TrainSettings, reporter: Reporter
) -> Featurizer:
    """Count n-grams over all queries and keep the frequent ones.

    Raises:
        InvalidInput: if none is frequent enough.
    """
    counter = SlotCounter(settings.features)
    with reporter.counting("counting features", "queries") as advance:
        for groups in parts:
            for start in range(0, len(groups), CHUNK_ROWS):
                texts = groups.queries.slice(start, CHUNK_ROWS).to_pylist()
                counter.add(texts)
                advance(len(texts))
            del groups  # before the next is read
    return counter.featurizer(
        min_count=settings.min_count,
        max_features=settings.max_features,
        min_subword_count=settings.min_subword_count,
        max_subwords=settings.max_subwords,
    )


def write_examples(
    directory: Path,
    parts: Iterable[Groups],
    featurizer: Featurizer,
    settings: TrainSettings,
    reporter: Reporter | None = None,
) -> int:
    """Featurize and write; returns how many queries had no known feature and were left out."""
    rng = np.random.default_rng(settings.seed)
    blank = 0
    reporter = reporter or Reporter.silent()
    with ExamplesWriter(directory) as writer, reporter.counting("featurizing", "q") as advance:
        for part in parts:
            groups = part.take(rng.permutation(len(part)))  # the log's order tells of its time
            del part  # one copy is enough
            for start in range(0, len(groups), CHUNK_ROWS):
                rows = np.arange(start, min(start + CHUNK_ROWS, len(groups)))
                examples, without = _examples(groups.take(rows), featurizer, settings)
                writer.append(examples)
                blank += without
                advance(len(rows))
            del groups
    return blank


def _examples(
    groups: Groups, featurizer: Featurizer, settings: TrainSettings
) -> tuple[Examples, int]:
    features = featurizer.batch(groups.queries.to_pylist())
    totals = np.add.reduceat(groups.weights, groups.splits[:-1]) if len(groups) else np.empty(0)
    shares = groups.weights / np.repeat(totals, np.diff(groups.splits))
    examples = Examples(
        features,
        groups.classes,
        shares.astype(np.float32),
        groups.splits,
        (totals**settings.weight_power).astype(np.float32),
    )
    kept = np.flatnonzero(np.diff(features.splits) > 0)
    if len(kept) == len(examples):
        return examples, 0
    return examples.take(kept), len(examples) - len(kept)
