"""Compiled selection: the best k of a stream of scored products, ties by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._types import Bool, Float, Int

__all__ = ["heap_push", "heap_sort"]


@njit(nogil=True, cache=True, inline="always")
def _worse(score_a: Float, class_a: Int, score_b: Float, class_b: Int) -> Bool:
    """Whether product a comes after product b: by score falling, then by class rising."""
    return score_a < score_b or (score_a == score_b and class_a > class_b)


@njit(nogil=True, cache=True)
def _sift_down(scores: NDArray[Any], classes: NDArray[Any], size: Int, at: Int) -> None:
    score, label = scores[at], classes[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _worse(
            scores[child + 1], classes[child + 1], scores[child], classes[child]
        ):
            child += 1
        if not _worse(scores[child], classes[child], score, label):
            break
        scores[at], classes[at] = scores[child], classes[child]
        at = child
    scores[at], classes[at] = score, label


@njit(nogil=True, cache=True)
def heap_push(
    scores: NDArray[np.float64], classes: NDArray[np.int64], size: Int, score: Float, label: Int
) -> Int:
    """Offer a product to a heap whose root is the worst kept; the new size is returned.

    ``scores`` and ``classes`` have room for k, of which ``size`` are taken. A full heap
    drops its root if the newcomer is better, else the newcomer.
    """
    if size < scores.shape[0]:
        at = size
        while at > 0:
            parent = (at - 1) // 2
            if not _worse(score, label, scores[parent], classes[parent]):
                break
            scores[at], classes[at] = scores[parent], classes[parent]
            at = parent
        scores[at], classes[at] = score, label
        return size + 1
    if _worse(scores[0], classes[0], score, label):
        scores[0], classes[0] = score, label
        _sift_down(scores, classes, size, 0)
    return size


@njit(nogil=True, cache=True)
def heap_sort(scores: NDArray[np.float64], classes: NDArray[np.int64], size: Int) -> None:
    """Put a heap's products in order, best first, in place."""
    for last in range(size - 1, 0, -1):
        scores[0], scores[last] = scores[last], scores[0]
        classes[0], classes[last] = classes[last], classes[0]
        _sift_down(scores, classes, last, 0)
