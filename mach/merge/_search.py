"""One query on its way through the engine: walk, and where that does not soon end, scan."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._query import HEAP_SIZE, MEMBERS, REACHED
from mach.merge._ring import LIMIT, PROVEN, ring_search
from mach.merge._scan import CHUNK, Scan, scan_products
from mach.merge._workspace import Workspace
from mach.merge.products import ProductSet
from mach.merge.result import TopKResult, WorkBudget

__all__ = ["SCAN_AFFINE", "SCAN_COLUMNS", "SCAN_STORED", "Plan", "Search", "may_walk"]

# Costs in nanoseconds on one core of a Zen 3 server, to choose between walking and scanning.
SCAN_COLUMNS, SCAN_STORED, _SCAN_LIST, SCAN_AFFINE = 0.25, 0.6, 0.9, 0.9  # a repetition's
_WALK_BUCKET, _WALK_FIXED = 3.0, 100_000.0  # to prepare a repetition's bucket; a search

_LISTED_SHARE = 1 / 8  # of a repetition's buckets that are sorted, and may be walked
_WALK_SHARE = 0.5  # of the cost of a scan that a walk may take before it is given up
_WALK_MOST = 1 / 16  # of the products, looked for: past this, a scan
_SLICE_MEMBERS, _SLICE_PRODUCTS = 200_000, 16 * CHUNK  # between two looks at the clock

_NO_BITMAP = np.empty(0, np.uint8)
_NO_LIST = np.empty(0, np.uint32)


class Plan(NamedTuple):
    rows: NDArray[np.int64]
    compiled: AffinePlan | StoredPlan
    sizes: NDArray[np.int64]  # (n, B): how many products a stored bucket has; or empty


def may_walk(products: int, unit: float, rows: int, buckets: int) -> bool:
    """Whether walking can be quicker than scanning so many products."""
    walk_cost = _WALK_FIXED + _WALK_BUCKET * rows * buckets
    return _WALK_SHARE * unit * rows * products > walk_cost


class Search:
    """One query on its way: walk, and where that does not soon end, scan."""

    def __init__(
        self,
        num_classes: int,
        columns: NDArray[Any],
        scan_unit: float,
        plan: Plan,
        scores: NDArray[np.float32],
        k: int,
        workspace: Workspace,
        allowed: ProductSet | None,
        budget: WorkBudget | None,
    ) -> None:
        self.num_classes = num_classes
        self.columns = columns
        self.scan_unit = scan_unit
        self.plan = plan
        self.scores = scores
        self.workspace = workspace
        self.allowed = allowed
        self.most = 2**62
        self.deadline = np.inf
        if budget is not None:
            self.most = budget.max_candidates or self.most
            if budget.seconds is not None:
                self.deadline = time.perf_counter() + budget.seconds
        self.k = min(k, self.num_classes if allowed is None else allowed.size)
        # Blocked products are searched for and then dropped: they are few.
        self.room = self.k
        if self.k and allowed is not None:
            self.room += len(allowed.blocked)
        self.heap_scores = np.empty(self.room, np.float64)
        self.heap_classes = np.empty(self.room, np.int64)
        self.size = 0
        self.candidates = 0

    def run(self) -> TopKResult:
        """Search in the way that promises to be the quickest."""
        if not self.k:
            return self.result(-np.inf, True)
        n = len(self.scores)
        listed = self.allowed.listed if self.allowed is not None else None
        to_scan = self.num_classes if listed is None else len(listed)
        unit = self.scan_unit if listed is None else max(self.scan_unit, _SCAN_LIST)
        bound = np.inf
        if may_walk(to_scan, unit, *self.scores.shape) and self.room < _WALK_MOST * to_scan:
            proven = self.walk(_WALK_SHARE * unit * n * to_scan)
            bound = float(self.workspace.schedule.bounds[self.workspace.state[REACHED]])
            if proven or self.spent():
                return self.result(bound, proven)
        walked = self.size, self.heap_scores, self.heap_classes
        self.heap_scores, self.heap_classes = self.heap_scores.copy(), self.heap_classes.copy()
        if self.scan():
            return self.result(-np.inf, True)
        size, heap_scores, heap_classes = walked
        self.heap_scores = np.concatenate([self.heap_scores[: self.size], heap_scores[:size]])
        self.heap_classes, first = np.unique(
            np.concatenate([self.heap_classes[: self.size], heap_classes[:size]]),
            return_index=True,
        )
        self.heap_scores = self.heap_scores[first]
        self.size = len(self.heap_classes)
        return self.result(min(bound, self.top_sum), False)

    def spent(self) -> bool:
        """Whether the budget is."""
        return self.candidates >= self.most or time.perf_counter() >= self.deadline

    def walk(self, most_work: float) -> bool:
        """Walk down the best buckets; whether that proved the heap to be the k best."""
        allowed = self.allowed
        bitmap = _NO_BITMAP
        if allowed is not None and (allowed.listed is not None or allowed.bitmap is not None):
            bitmap = allowed.as_bitmap()
        query = self.workspace.query(self.scores, bitmap, self.heap_scores, self.heap_classes)
        new = True
        while True:
            limit = self.most
            if self.deadline < np.inf:
                limit = min(limit, self.candidates + _SLICE_MEMBERS)
            status = ring_search(
                query,
                self.plan.compiled,
                self.num_classes,
                self.workspace.schedule,
                self.plan.sizes,
                new,
                _LISTED_SHARE,
                most_work,
                limit,
            )
            new = False
            self.candidates = int(query.state[MEMBERS])
            self.size = int(query.state[HEAP_SIZE])
            if status != LIMIT or self.spent():
                return bool(status == PROVEN)

    def scan(self) -> bool:
        """Score every product from the first on; whether the budget allowed all of them."""
        allowed = self.allowed
        listed = bitmap = None
        if allowed is not None:
            listed = allowed.listed
            bitmap = allowed.bitmap if listed is None else None
        reached = self.heap_scores[0] if self.size == self.room else -np.inf
        scan = Scan(
            scores=self.scores,
            columns=self.columns,
            bitmap=_NO_BITMAP if bitmap is None else bitmap,
            listed=_NO_LIST if listed is None else listed,
            heap_scores=self.heap_scores,
            heap_classes=self.heap_classes,
            sums=self.workspace.chunk_sums,
            spare=self.workspace.chunk_spare,
            labels=self.workspace.chunk_labels,
        )
        end = self.num_classes if listed is None else len(listed)
        start, self.size = 0, 0
        while start < end:
            stop = min(end, start + self.most - self.candidates)
            if self.deadline < np.inf:
                stop = min(stop, start + _SLICE_PRODUCTS)
            begun = start
            start, self.size = scan_products(
                scan,
                self.plan.compiled,
                begun,
                stop,
                self.size,
                reached,
                self.top_sum,
                float(np.abs(self.workspace.tops).sum(dtype=np.float64)),
            )
            self.candidates += min(start, end) - begun
            if start < end and self.spent():
                return False
        return True

    @property
    def top_sum(self) -> float:
        """No product scores more: the rows' best scores, summed like a product's."""
        total = 0.0
        for top in self.workspace.tops.tolist():
            total += top
        return total

    def result(self, bound: float, proven: bool) -> TopKResult:
        """Order what was found."""
        scores, classes = self.heap_scores[: self.size], self.heap_classes[: self.size]
        order = np.lexsort((classes, -scores))
        if self.allowed is not None and len(self.allowed.blocked):
            order = order[~np.isin(classes[order], self.allowed.blocked)]
        order = order[: self.k]
        scores, classes = scores[order], classes[order]
        if not proven and len(scores) == self.k:
            proven = bool(bound < scores[-1] - self.workspace.tolerances[0])
        return TopKResult(classes, scores, proven, bound, self.candidates)
