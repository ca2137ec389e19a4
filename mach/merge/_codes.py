"""Scores in 8 bits, rounded so that their sums bound what a product can score.

A code says how far a bucket's score lies below its repetition's best, in steps, rounded down.
So no product scores above the sum of the best scores less a step for each code it adds up: what
that rules out needs no exact score, and integers are added many at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._types import Bool, Float, Int

__all__ = ["NO_SUM", "encode", "most_sum", "survey"]

NO_SUM = 65_535  # of no product that is allowed
_SAMPLE = 64
_INFINITY = 0x7F800000
_MINUS_INFINITY = -0x7F800001  # in the order of `survey`


@njit(nogil=True, cache=True)
def survey(scores: NDArray[np.float32], tops: NDArray[np.float32]) -> Bool:
    """Find each row's best score; False if a score is NaN or +inf.

    In integers, which compare many at a time: a float32's bits, the lower 31 flipped where the
    sign is set, order as the floats do, with NaN beyond the infinities.
    """
    bits = scores.view(np.int32)
    for q in range(scores.shape[0]):
        largest, smallest = np.int32(_MINUS_INFINITY), np.int32(_INFINITY)
        for v in range(scores.shape[1]):
            ordered = bits[q, v] ^ ((bits[q, v] >> np.int32(31)) & np.int32(0x7FFFFFFF))
            largest = max(largest, ordered)
            smallest = min(smallest, ordered)
        if largest >= _INFINITY or smallest < _MINUS_INFINITY:
            return False
        word = np.empty(1, np.int32)
        word[0] = largest ^ ((largest >> np.int32(31)) & np.int32(0x7FFFFFFF))
        tops[q] = word.view(np.float32)[0]
    return True


@njit(nogil=True, cache=True)
def encode(
    scores: NDArray[np.float32], tops: NDArray[np.float32], codes: NDArray[np.uint8]
) -> Float:
    """Fill ``codes``, shape (n, B or more), from ``scores`` and each row's best; return the step.

    The range is taken from a sample: what lies below it gets the last code, which is no more
    than it may get. Past B the row begins again.
    """
    rows, buckets = scores.shape
    last = np.float32(min(255, (NO_SUM - 1) // rows))
    span = np.float32(0.0)
    for q in range(rows):
        for i in range(min(_SAMPLE, buckets)):
            score = scores[q, i * buckets // min(_SAMPLE, buckets)]
            if score > -np.inf:
                span = max(span, tops[q] - score)
    step = np.float32(span / last)
    if not (step > np.float32(1e-30) and step < np.inf):
        step = np.float32(1.0)
    inverse = np.float32(1.0) / step
    for q in range(rows):
        top = tops[q]
        if top == -np.inf:
            codes[q] = 0
            continue
        for v in range(buckets):
            codes[q, v] = np.uint8(np.int32(min((top - scores[q, v]) * inverse, last)))
        codes[q, buckets:] = codes[q, : codes.shape[1] - buckets]
    return np.float64(step)


@njit(nogil=True, cache=True)
def most_sum(reached: Float, top_sum: Float, top_magnitude: Float, rows: Int, step: Float) -> Int:
    """The largest sum of codes that a product scoring ``reached`` can have.

    Rounding moves a code by less than 2**-14, so all of them by less than one, and the sums of
    scores by less than ``error``.
    """
    error = rows * 2.0**-48 * (top_magnitude + abs(top_sum - reached))
    most = (top_sum - reached + error) / step + 1.0
    return np.int64(most) if most < NO_SUM - 1 else np.int64(NO_SUM - 1)
