"""Compiled search by scoring every product, or every product of a list, in cached chunks.

For more repetitions than codes can add up (see ``_coded``). Sums are float32 first; only what they
cannot rule out is summed again in float64, in the order of repetitions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._columns import fill_listed
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._runs import exact
from mach.merge._select import heap_push, kth_largest
from mach.merge._types import Float, Int

__all__ = ["CHUNK", "Scan", "scan_products"]

CHUNK = 4096


class Scan(NamedTuple):
    """One query's arrays while it is scanned; n repetitions, B buckets, room for k products."""

    scores: NDArray[np.float32]  # (n, B)
    bitmap: NDArray[np.uint8]  # products allowed, one bit each; or empty
    listed: NDArray[np.uint32]  # products allowed, increasing; or empty for all
    heap_scores: NDArray[np.float64]  # (k,)
    heap_classes: NDArray[np.int64]  # (k,)
    sums: NDArray[np.float32]  # (CHUNK,): scratch
    spare: NDArray[np.float32]  # (CHUNK,): scratch
    labels: NDArray[np.uint32]  # (CHUNK,): scratch


@njit(nogil=True, cache=True)
def _add(scan: Scan, plan: AffinePlan | StoredPlan, length: Int, buckets: NDArray[Any]) -> None:
    """Add up ``scan.labels[:length]``."""
    fill_listed(plan, scan.labels[:length], buckets)
    for q in range(scan.scores.shape[0]):
        row, column = scan.scores[q], buckets[q]
        for f in range(np.uint64(length)):
            scan.sums[f] += row[np.uint64(column[f])]


@njit(nogil=True, cache=True)
def _least(num_rows: Int, reached: Float, top_sum: Float, top_magnitude: Float) -> Float:
    """A float32 sum below which no product's exact score is ``reached``.

    A product that scores S has sum(M_q - s_q) = sum(M_q) - S over repetitions with best scores
    M_q, so its scores' magnitudes sum to at most sum(abs(M_q)) + sum(M_q) - S, and rounding
    moves its float32 sum by at most n * 2**-24 of that.
    """
    error = num_rows * 2.0**-22 * (top_magnitude + max(0.0, top_sum - reached))
    if not error < np.inf:
        return np.float32(-np.inf)
    return np.float32(reached - error)


@njit(nogil=True, cache=True)
def scan_products(  # noqa: PLR0912
    scan: Scan,
    plan: AffinePlan | StoredPlan,
    start: Int,
    end: Int,
    size: Int,
    reached: Float,
    top_sum: Float,
    top_magnitude: Float,
) -> tuple[Int, Int]:
    """Offer products ``start`` to ``end``, of the list or of all, to a heap of ``size``.

    ``reached`` is a score known to be reached by k products, or -inf; ``top_sum`` the sum of the
    rows' best scores and ``top_magnitude`` that of their absolute values. Returns where to go on,
    past all products if none further on can be better, and the heap's new size.
    """
    k = scan.heap_scores.shape[0]
    sums, labels, bitmap = scan.sums, scan.labels, scan.bitmap
    by_list = scan.listed.shape[0] > 0
    n = scan.scores.shape[0]
    buckets = np.empty((n, CHUNK), np.uint32)
    for chunk in range(start, end, CHUNK):
        if size == k and scan.heap_scores[0] >= top_sum:
            return 2**62, size  # a tie with the worst kept comes after it: classes rise
        length = min(CHUNK, end - chunk)
        for f in range(length):
            labels[f] = scan.listed[chunk + f] if by_list else np.uint32(chunk + f)
            sums[f] = 0.0
        _add(scan, plan, length, buckets)
        if bitmap.shape[0] > 0:
            for f in range(length):
                label = labels[f]
                if not (bitmap[label >> np.uint32(3)] >> np.uint8(label & np.uint32(7))) & 1:
                    sums[f] = -np.inf
        least = reached
        if size == k:
            least = max(least, scan.heap_scores[0])
        elif length >= k:
            for f in range(length):
                scan.spare[f] = sums[f] if sums[f] == sums[f] else np.float32(-np.inf)
            chunk_least = np.float64(kth_largest(scan.spare, length, k))
            least = max(least, np.float64(_least(n, chunk_least, top_sum, top_magnitude)))
        least32 = _least(n, least, top_sum, top_magnitude)
        for f in range(length):
            if sums[f] < least32:
                continue
            label = np.int64(labels[f])
            if bitmap.shape[0] > 0 and not (bitmap[label >> 3] >> (label & 7)) & 1:
                continue
            total = exact(scan.scores, plan, label)
            if size < k or total > scan.heap_scores[0]:
                size = heap_push(scan.heap_scores, scan.heap_classes, size, total, label)
                if size == k and scan.heap_scores[0] > least:
                    least = scan.heap_scores[0]
                    least32 = _least(n, least, top_sum, top_magnitude)
    return end, size
