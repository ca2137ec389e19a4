"""One scoring for every system, from the ranked classes it wrote to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.datasets import Prepared
from mach.evaluation import RankingMetrics, propensities

__all__ = ["BadRanking", "score_file"]


class BadRanking(RuntimeError):
    """A system's ranked classes are not what they should be; the message says what."""


def check_ranking(ranked: NDArray[np.int64], num_classes: int) -> None:
    """Refuse what would be counted wrongly.

    Raises:
        BadRanking: if a class is listed twice, or is not of the data set.
    """
    if len(np.unique(ranked)) != len(ranked):
        raise BadRanking("a class is listed twice for one query")
    if len(ranked) and not (ranked.min() >= 0 and ranked.max() < num_classes):
        raise BadRanking(f"a class is not from 0 to {num_classes - 1}")


def score_file(path: Path, data: Prepared) -> dict[str, Any]:
    """Metrics and serving times of a file that a worker's ``predict`` wrote.

    Propensities are those of train (Jain et al., KDD 2016), over all classes of the data set.
    """
    counts = data.train_counts()
    weights = 1.0 / propensities(counts, data.facts.train_queries)
    scorer = RankingMetrics(weights=weights)
    truth = data.truth()
    with np.load(path) as file:
        classes = file["classes"].astype(np.int64)
        single = file["single_ms"]
        batch_qps = float(file["batch_qps"])
    if len(classes) != len(truth):
        raise BadRanking(f"{len(classes)} rankings for {len(truth)} queries")
    for row, true in zip(classes, truth, strict=True):
        ranked = row[row >= 0]
        check_ranking(ranked, data.facts.classes)
        scorer.add(ranked, true, len(true))
    return {
        "metrics": scorer.results(),
        "queries": scorer.queries,
        "single_p50_ms": float(np.percentile(single, 50)),
        "single_p99_ms": float(np.percentile(single, 99)),
        "batch_qps": batch_qps,
    }
