"""A search that may end before it has looked at every product, and says what it left out."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from mach.merge._codes import survey
from mach.merge._scan import Allowed, Index
from mach.merge._search import CHUNK, Workspace, begin, scan_places
from mach.merge._select import heap_sort
from mach.merge.result import TopKResult, WorkBudget

__all__ = ["search_within"]


def search_within(
    budget: WorkBudget,
    scores: NDArray[np.float32],
    k: int,
    index: Index,
    allowed: Allowed,
    workspace: Workspace,
) -> TopKResult | None:
    """The k best products of one query within a budget; None at a bad score.

    Blocks that may have the best products come first: so what is left out is bounded, and what
    cannot matter is left out. A list, or an explicit assignment, is taken as it comes.
    """
    deadline = np.inf if budget.seconds is None else time.perf_counter() + budget.seconds
    if not survey(scores, workspace.tops):
        return None
    listed = len(allowed.listed)
    by_block = index.shift > 0 and not listed
    order = np.empty(0, np.int64)
    if by_block:
        order, bounds = _best_first(_block_bounds(scores, index), index.num_classes >> index.shift)
    heap = np.empty(k, np.float64), np.empty(k, np.int64)
    scan = begin(scores, index, allowed, order, workspace, *heap)
    places = listed or index.num_classes
    most = min(places, budget.max_candidates or places)
    size, place, bound, proven = 0, 0, -np.inf, k == 0
    while place < most and not proven:
        stop = min(most, place + CHUNK)
        size = scan_places(scan, workspace, place, stop, size)
        place = stop
        if place == places:
            bound, proven = -np.inf, True
        else:
            bound = float(bounds[place >> index.shift]) if by_block else scan.top_sum
            proven = size == k and bool(scan.heap_scores[0] > bound)
        if time.perf_counter() >= deadline:
            break
    heap_sort(scan.heap_scores, scan.heap_classes, size)
    return TopKResult(scan.heap_classes[:size], scan.heap_scores[:size], proven, bound, place)


def _best_first(
    bounds: NDArray[np.float64], whole: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Blocks by falling bound, and what none from there on exceeds.

    A short block, after the ``whole`` ones, comes last, so that every place has a product.
    """
    order = np.argsort(-bounds[:whole], kind="stable")
    rest = np.full(len(bounds) - whole, whole, np.int64)
    order = np.concatenate([order, rest])
    return order, np.maximum(bounds[order], bounds[rest].max(initial=-np.inf))


def _block_bounds(scores: NDArray[np.float32], index: Index) -> NDArray[np.float64]:
    """What no product of a block scores more than, float64, shape (blocks,).

    Sums of each row's best score in the block's buckets, in the order of the products' sums, so
    that rounding keeps them above.
    """
    width = 1 << index.shift
    tops = np.concatenate([scores, scores[:, : width - 1]], axis=1)
    for exponent in range(index.shift):  # windows of twice as many buckets
        step = 1 << exponent
        tops = np.maximum(tops[:, :-step], tops[:, step:])
    bounds = np.zeros(-(-index.num_classes // width), np.float64)
    for row, repetition in zip(tops, index.repetitions.tolist(), strict=True):
        bounds += row[index.starts[repetition, : len(bounds)]]
    return bounds
