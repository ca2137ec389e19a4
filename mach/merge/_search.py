"""Compiled searches: queries from their scores to their best products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._codes import encode, survey
from mach.merge._offer import offer
from mach.merge._scan import Scan
from mach.merge._select import heap_sort
from mach.merge._sums import add_up
from mach.merge._types import Int

__all__ = ["CHUNK", "Workspace", "scan_places", "search_all"]

CHUNK = 32_768  # products whose codes are added up before they are offered; whole blocks


class Workspace:
    """Arrays a search over n repetitions works in, one search at a time.

    Grows with n * B, never with the number of products.
    """

    def __init__(self, rows: int, buckets: int, width: int) -> None:
        self.tops = np.empty(rows, np.float32)
        self.codes = np.empty((rows, buckets + width - 1), np.uint8)
        self.blocks = np.empty(CHUNK // width, np.int64)
        self.sums = np.empty(CHUNK, np.uint16)


@njit(nogil=True, cache=True)
def scan_places(
    scan: Scan,
    start: Int,
    end: Int,
    size: Int,
    blocks: NDArray[np.int64],
    sums: NDArray[np.uint16],
) -> Int:
    """Offer the products at places ``start`` to ``end`` to a heap of ``size``; its new size.

    ``start`` begins a block.
    """
    room = scan.heap_scores.shape[0]
    for first in range(start, end, CHUNK):
        # Where classes rise, a tie with the worst kept comes after it.
        if scan.order.shape[0] == 0 and size == room and scan.heap_scores[0] >= scan.top_sum:
            break
        length = min(CHUNK, end - first)
        add_up(scan, first, length, blocks, sums)
        size = offer(scan, sums, first, length, size)
    return size


@njit(nogil=True, cache=True)
def search_all(
    scores: NDArray[np.float32],
    starts: NDArray[Any],
    repetitions: NDArray[np.int64],
    num_classes: Int,
    shift: Int,
    listed: NDArray[np.uint32],
    bitmap: NDArray[np.uint8],
    blocked: NDArray[np.uint32],
    tops: NDArray[np.float32],
    codes: NDArray[np.uint8],
    blocks: NDArray[np.int64],
    sums: NDArray[np.uint16],
    best_scores: NDArray[np.float64],
    best_classes: NDArray[np.int64],
) -> Int:
    """Search for several queries; the number of queries done, less than all at a bad score.

    Args:
        scores: shape (m, n, B).
        starts: as :class:`Scan` has them, and so on to ``blocked``.
        repetitions: see there.
        num_classes: see there.
        shift: see there.
        listed: see there.
        bitmap: see there.
        blocked: see there.
        tops: of a workspace, and so on to ``sums``.
        codes: see there.
        blocks: see there.
        sums: see there.
        best_scores: filled, best first, shape (m, k); there are at least k products.
        best_classes: filled with them.
    """
    places = listed.shape[0] if listed.shape[0] > 0 else num_classes
    for i in range(scores.shape[0]):
        if not survey(scores[i], tops):
            return i
        step = encode(scores[i], tops, codes)
        top_sum = 0.0
        top_magnitude = 0.0
        for q in range(tops.shape[0]):
            top_sum += np.float64(tops[q])
            top_magnitude += abs(np.float64(tops[q]))
        scan = Scan(
            scores[i],
            codes,
            starts,
            repetitions,
            num_classes,
            shift,
            np.empty(0, np.int64),
            listed,
            bitmap,
            blocked,
            best_scores[i],
            best_classes[i],
            step,
            top_sum,
            top_magnitude,
        )
        size = scan_places(scan, 0, places, 0, blocks, sums)
        heap_sort(scan.heap_scores, scan.heap_classes, size)
    return scores.shape[0]
