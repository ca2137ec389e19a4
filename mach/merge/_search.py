"""Compiled searches: queries from their scores to their best products."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._codes import encode, survey
from mach.merge._exclude import exclude
from mach.merge._offer import offer
from mach.merge._scan import Allowed, Index, Scan
from mach.merge._select import heap_sort
from mach.merge._sums import add_up
from mach.merge._types import Int

__all__ = ["CHUNK", "Workspace", "begin", "make_workspace", "scan_places", "search_all"]

CHUNK = 32_768  # products whose codes are added up before they are offered; whole blocks


class Workspace(NamedTuple):
    """Arrays that one search at a time works in; their size does not grow with K."""

    tops: NDArray[np.float32]  # (n,): each row's best score
    codes: NDArray[np.uint8]  # (n, B + width - 1)
    blocks: NDArray[np.int64]  # (CHUNK / width,)
    sums: NDArray[np.uint16]  # (CHUNK,)


def make_workspace(rows: int, buckets: int, width: int) -> Workspace:
    """Room for searches over n repetitions."""
    return Workspace(
        tops=np.empty(rows, np.float32),
        codes=np.empty((rows, buckets + width - 1), np.uint8),
        blocks=np.empty(CHUNK // width, np.int64),
        sums=np.empty(CHUNK, np.uint16),
    )


@njit(nogil=True, cache=True)
def begin(
    scores: NDArray[np.float32],
    index: Index,
    allowed: Allowed,
    order: NDArray[np.int64],
    workspace: Workspace,
    heap_scores: NDArray[np.float64],
    heap_classes: NDArray[np.int64],
) -> Scan:
    """A scan of a query, whose rows' best scores the workspace has from :func:`survey`."""
    tops = workspace.tops
    step = encode(scores, tops, workspace.codes)
    top_sum, top_magnitude = 0.0, 0.0  # added up as products' scores are
    for q in range(tops.shape[0]):
        top_sum += np.float64(tops[q])
        top_magnitude += abs(np.float64(tops[q]))
    return Scan(
        scores,
        workspace.codes,
        index,
        allowed,
        order,
        heap_scores,
        heap_classes,
        step,
        top_sum,
        top_magnitude,
    )


@njit(nogil=True, cache=True)
def scan_places(scan: Scan, workspace: Workspace, start: Int, end: Int, size: Int) -> Int:
    """Offer the products at places ``start`` to ``end`` to a heap of ``size``; its new size.

    ``start`` begins a block.
    """
    room = scan.heap_scores.shape[0]
    for first in range(start, end, CHUNK):
        # What scores as much comes in the order of its classes: a tie is worse than what is kept.
        if size == room and scan.heap_scores[0] >= scan.top_sum:
            break
        length = min(CHUNK, end - first)
        add_up(scan, first, length, workspace.blocks, workspace.sums)
        exclude(scan, first, length, workspace.sums)
        size = offer(scan, workspace.sums, first, length, size)
    return size


@njit(nogil=True, cache=True)
def search_all(
    scores: NDArray[np.float32],
    index: Index,
    allowed: Allowed,
    workspace: Workspace,
    best_scores: NDArray[np.float64],
    best_classes: NDArray[np.int64],
) -> Int:
    """Search for several queries; the number of queries done, less than all at a bad score.

    Args:
        scores: shape (m, n, B).
        index: what is searched.
        allowed: what may be returned, at least k products.
        workspace: for n rows.
        best_scores: filled, best first, shape (m, k).
        best_classes: filled with them.
    """
    places, no_order = index.num_classes, np.empty(0, np.int64)
    if allowed.listed.shape[0] > 0:
        places = allowed.listed.shape[0]
    if best_scores.shape[1] == 0:
        places = 0  # a heap without room has no worst to compare with
    for i in range(scores.shape[0]):
        if not survey(scores[i], workspace.tops):
            return i
        scan = begin(
            scores[i], index, allowed, no_order, workspace, best_scores[i], best_classes[i]
        )
        size = scan_places(scan, workspace, 0, places, 0)
        heap_sort(scan.heap_scores, scan.heap_classes, size)
    return scores.shape[0]
