"""Compiled inner loop of :class:`mach.features.Featurizer`: slots to weighted rows."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["weigh"]


@njit(nogil=True, cache=True)
def _scale(values: NDArray[np.float32], first: int, last: int, squares: float) -> None:
    if last > first:
        factor = np.float32(1.0 / np.sqrt(squares))
        for entry in range(first, last):
            values[entry] *= factor


@njit(nogil=True, cache=True)
def weigh(
    found: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    slots: NDArray[np.uint32],
    weights: NDArray[np.float32],
    first_subword: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """TF-IDF rows whose words, and whose parts of words, have length 1 each.

    Args:
        found: slots of all texts one after another; each text's part is sorted in place.
        lengths: how many belong to each text, shape (n,).
        slots: kept slots, increasing, shape (F,).
        weights: their weights, shape (F,).
        first_subword: the first slot of parts of words.
    """
    indices = np.empty(len(found), np.int32)
    values = np.empty(len(found), np.float32)
    splits = np.zeros(len(lengths) + 1, np.int32)
    out = 0
    start = 0
    for row in range(len(lengths)):
        part = found[start : start + lengths[row]]
        part.sort()
        first = out
        low = 0
        group = 0  # of words; then 1, of parts of words, whose slots are higher
        squares = 0.0
        at = 0
        while at < len(part):
            slot = part[at]
            count = 1
            while at + count < len(part) and part[at + count] == slot:
                count += 1
            at += count
            if group == 0 and slot >= first_subword:
                _scale(values, first, out, squares)
                group, first, squares = 1, out, 0.0
            low += np.searchsorted(slots[low:], slot)
            if low == len(slots):
                break
            if slots[low] == slot:
                value = weights[low] * np.float32(1.0 + np.log(count))
                indices[out] = low
                values[out] = value
                squares += np.float64(value) * np.float64(value)
                out += 1
        _scale(values, first, out, squares)
        splits[row + 1] = out
        start += lengths[row]
    return indices[:out].copy(), values[:out].copy(), splits
