"""Top-k by scoring every product in plain NumPy: the definition every engine must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["reference_scores", "reference_top_k"]


def reference_scores(
    scores: NDArray[np.float32],
    buckets: NDArray[np.integer[Any]],
    repetitions: Sequence[int] | NDArray[np.integer[Any]] | None = None,
) -> NDArray[np.float64]:
    """Sums of additive scores over repetitions, added in increasing order, float64, shape (K,).

    Args:
        scores: additive scores, shape (r, B).
        buckets: the bucket of every product in every repetition, shape (R, K).
        repetitions: which repetitions the rows of ``scores`` are, increasing; all by default.
    """
    rows = range(buckets.shape[0]) if repetitions is None else repetitions
    sums = np.zeros(buckets.shape[1], np.float64)
    for row, repetition in enumerate(rows):
        sums += scores[row].astype(np.float64)[buckets[repetition]]
    return sums


def reference_top_k(
    scores: NDArray[np.float32],
    buckets: NDArray[np.integer[Any]],
    k: int,
    repetitions: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Classes and sums of the k best products, by sum falling, then by class rising.

    Args:
        scores: as for :func:`reference_scores`, like ``buckets`` and ``repetitions``.
        buckets: see above.
        k: how many.
        repetitions: see above.
        allowed: which products to choose from, bool, shape (K,); all by default.
    """
    sums = reference_scores(scores, buckets, repetitions)
    classes = np.arange(buckets.shape[1])
    if allowed is not None:
        classes = classes[allowed]
    order = classes[np.lexsort((classes, -sums[classes]))][:k]
    return order, sums[order]
