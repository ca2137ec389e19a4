"""From sums of codes to the best products: what a sum does not rule out is scored exactly."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._codes import NO_SUM, most_sum
from mach.merge._scan import Scan, class_at
from mach.merge._select import heap_push
from mach.merge._types import Bool, Int

__all__ = ["offer"]

_LOOKED_THROUGH = 128  # sums whose least is found first
_TOGETHER = 128  # products scored together, or a few more
_GROUPS = 8  # of products, for each product wanted


@njit(nogil=True, cache=True)
def _score(scan: Scan, found: NDArray[np.int64], count: Int, size: Int) -> Int:
    """Score what is at some places exactly, in order of repetition; the heap's new size."""
    for i in range(count):
        found[i] = class_at(scan, found[i])
    totals = np.zeros(found.shape[0], np.float64)
    buckets = np.uint64(scan.scores.shape[1])
    shift, lanes = np.uint64(scan.searched.shift), np.uint64((1 << scan.searched.shift) - 1)
    for q in range(scan.scores.shape[0]):  # many reads of a repetition are under way at a time
        row, starts = scan.scores[q], scan.searched.starts[scan.searched.repetitions[q]]
        for i in range(np.uint64(count)):
            label = np.uint64(found[i])
            bucket = np.uint64(starts[label >> shift]) + (label & lanes)
            if bucket >= buckets:
                bucket -= buckets
            totals[i] += np.float64(row[bucket])
    for i in range(count):
        size = heap_push(scan.heap_scores, scan.heap_classes, size, totals[i], found[i])
    return size


@njit(nogil=True, cache=True)
def _first_most(sums: NDArray[np.uint16], length: Int, rows: Int, wanted: Int) -> Int:
    """A sum of codes that ``wanted`` products, or all there are, do not exceed.

    The least sums of groups are as many products': few more have sums as low, and they are found
    in vector instructions.
    """
    largest = min(255 * rows, NO_SUM - 1)
    counts = np.zeros(largest + 1, np.int32)
    groups = min(length, _GROUPS * wanted)
    least = sums[:groups].copy()
    for group in range(groups, length - groups + 1, groups):
        for f in range(np.uint64(groups)):
            least[f] = min(least[f], sums[np.uint64(group) + f])
    for f in range(groups):
        if least[f] <= largest:
            counts[least[f]] += 1
    found = np.int64(0)
    for most in range(largest + 1):
        found += counts[most]
        if found >= wanted:
            return np.int64(most)
    return np.int64(largest)


@njit(nogil=True, cache=True)
def _has_some(sums: NDArray[np.uint16], start: Int, end: Int, most: Int) -> Bool:
    """Whether one of some sums is ``most`` or less; in vector instructions."""
    smallest = np.uint16(NO_SUM)
    for f in range(np.uint64(start), np.uint64(end)):
        smallest = min(smallest, sums[f])
    return np.int64(smallest) <= most


@njit(nogil=True, cache=True)
def _most_left(scan: Scan, size: Int) -> Int:
    """The largest sum that a product has which belongs into the heap."""
    least = scan.heap_scores[0] if size == scan.heap_scores.shape[0] else -np.inf
    return most_sum(least, scan.top_sum, scan.top_magnitude, scan.codes.shape[0], scan.step)


@njit(nogil=True, cache=True)
def _offer_between(
    scan: Scan, sums: NDArray[np.uint16], first: Int, length: Int, over: Int, most: Int, size: Int
) -> Int:
    """Offer the products with sums over ``over`` and up to ``most``; the heap's new size."""
    found = np.empty(_TOGETHER + _LOOKED_THROUGH, np.int64)
    count = 0
    for start in range(0, length, _LOOKED_THROUGH):
        past = min(start + _LOOKED_THROUGH, length)
        if _has_some(sums, start, past, most):
            for f in range(start, past):
                if over < np.int64(sums[f]) <= most:
                    found[count] = first + f
                    count += 1
        if count >= _TOGETHER or (count > 0 and past == length):
            size = _score(scan, found, count, size)
            count = 0
            if size == scan.heap_scores.shape[0]:
                most = min(most, _most_left(scan, size))
    return size


@njit(nogil=True, cache=True)
def offer(scan: Scan, sums: NDArray[np.uint16], first: Int, length: Int, size: Int) -> Int:
    """Offer the products at places ``first`` on, which have these sums; the heap's new size."""
    wanted = scan.heap_scores.shape[0] - size
    done = np.int64(-1)  # sums up to this one are
    if wanted > 0:
        done = _first_most(sums, length, scan.codes.shape[0], wanted)
        size = _offer_between(scan, sums, first, length, -1, done, size)
    return _offer_between(scan, sums, first, length, done, _most_left(scan, size), size)
