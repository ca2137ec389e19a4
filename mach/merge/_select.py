"""Compiled selection: the best k of a stream of scored products, ties by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._types import Bool, Float, Int

__all__ = ["heap_push", "kth_largest", "lower_bound", "seen_add", "seen_has", "sort_falling"]


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
def sort_falling(keys: NDArray[np.float32], values: NDArray[np.int32], count: Int) -> None:
    """Sort ``keys[:count]`` falling and ``values`` with them, in place, by heap."""
    size = count
    start = count // 2
    while size > 1:
        if start > 0:
            start -= 1  # the heap, least first, is still being built
        else:
            size -= 1
            keys[0], keys[size] = keys[size], keys[0]
            values[0], values[size] = values[size], values[0]
        key, value = keys[start], values[start]
        at = start
        while True:
            child = 2 * at + 1
            if child >= size:
                break
            if child + 1 < size and keys[child + 1] < keys[child]:
                child += 1
            if not keys[child] < key:
                break
            keys[at], values[at] = keys[child], values[child]
            at = child
        keys[at], values[at] = key, value


@njit(nogil=True, cache=True)
def kth_largest(values: NDArray[np.float32], length: Int, k: Int) -> Float:
    """The k-th largest of ``values[:length]``, none NaN, which is left in another order."""
    low, high = 0, length - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    return values[k - 1]


@njit(nogil=True, cache=True)
def lower_bound(rising: NDArray[np.uint32], low: Int, high: Int, least: Int) -> Int:
    """Where in ``rising[low:high]`` the numbers from ``least`` on begin."""
    while low < high:
        middle = (low + high) >> 1
        if np.int64(rising[middle]) < least:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def seen_add(seen: NDArray[np.int64], label: Int) -> Bool:
    """Add a class to an open-addressing set (-1 marks a free slot); whether it was new.

    ``seen`` has a power of two slots, of which the caller leaves some free.
    """
    mask = seen.shape[0] - 1
    at = ((label * 0x9E3779B1) >> 7) & mask
    while seen[at] >= 0:
        if seen[at] == label:
            return False
        at = (at + 1) & mask
    seen[at] = label
    return True


@njit(nogil=True, cache=True)
def seen_has(seen: NDArray[np.int64], label: Int) -> Bool:
    """Whether :func:`seen_add` has added a class."""
    mask = seen.shape[0] - 1
    at = ((label * 0x9E3779B1) >> 7) & mask
    while seen[at] >= 0:
        if seen[at] == label:
            return True
        at = (at + 1) & mask
    return False
