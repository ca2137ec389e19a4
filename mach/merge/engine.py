"""The search for the k best products of one query."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput
from mach.merge._codes import encode, survey
from mach.merge._scan import Scan
from mach.merge._search import CHUNK, Workspace, scan_places, search_all
from mach.merge._select import heap_sort
from mach.merge.products import ProductSet
from mach.merge.result import TopKResult, WorkBudget
from mach.merge.table import BucketTable

__all__ = ["TopK"]

_LISTED_SHARE = 1 / 50  # of the products: up to here it is quicker to look up their codes
_NO_LIST = np.empty(0, np.uint32)
_NO_BITMAP = np.empty(0, np.uint8)


class TopK:
    """Exact top-k over one :class:`BucketTable`; safe to use from several threads.

    The score of product i is the float64 sum, in increasing order of repetition, of the float32
    ``scores[r, h_r(i)]``; products are ordered by score falling, then by class rising. Searches
    release the GIL and allocate nothing that grows with the number of products.

    Args:
        table: the products.
        warm: compile now, or load what was compiled before, instead of at the first search.
    """

    def __init__(self, table: BucketTable, *, warm: bool = True) -> None:
        self.table = table
        self._shift = table.width.bit_length() - 1
        self._workspaces: list[Workspace] = []
        if warm:
            self._warm()

    @property
    def index_bytes(self) -> int:
        """Bytes of the table, which is all that is prepared."""
        return self.table.nbytes

    def search(
        self,
        scores: NDArray[np.float32],
        k: int,
        *,
        repetitions: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        allowed: ProductSet | None = None,
        budget: WorkBudget | None = None,
    ) -> TopKResult:
        """The k best products of one query.

        Args:
            scores: additive scores, float32, shape (r, B). ``-inf`` is allowed, NaN is not.
            k: how many products, at least 1.
            repetitions: which repetitions the rows are, increasing, shape (r,); all by default.
            allowed: the products to choose from; all by default.
            budget: how much to do at most; no limit by default.

        Raises:
            InvalidInput: if an argument does not fit the table, or a score is NaN or ``+inf``.
        """
        return self.search_batch(
            scores[None], k, repetitions=repetitions, allowed=allowed, budget=budget
        )[0]

    def search_batch(
        self,
        scores: NDArray[np.float32],
        k: int,
        *,
        repetitions: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        allowed: ProductSet | None = None,
        budget: WorkBudget | None = None,
    ) -> list[TopKResult]:
        """:meth:`search` for several queries; ``scores`` has shape (n, r, B), n may be 0.

        A ``budget`` is each query's own.
        """
        rows = self.table.checked_repetitions(repetitions)
        self.table.check_query(scores.shape[1:], len(rows), k, allowed)
        # Compiled code tells arrays that may be written to from others.
        scores = np.require(scores, np.float32, ["C", "W"])
        if allowed is not None and allowed.size == self.table.num_classes:
            allowed = None  # to test every product found would be in vain
        k = min(k, self.table.num_classes if allowed is None else allowed.size)
        listed, bitmap, blocked = self._allowed(allowed)
        with self._workspace(len(rows)) as workspace:
            if budget is not None:
                return [
                    self._within(budget, one, k, rows, listed, bitmap, blocked, workspace)
                    for one in scores
                ]
            best_scores = np.empty((len(scores), k), np.float64)
            best_classes = np.empty((len(scores), k), np.int64)
            done = search_all(
                scores,
                self.table.starts,
                rows,
                self.table.num_classes,
                self._shift,
                listed,
                bitmap,
                blocked,
                workspace.tops,
                workspace.codes,
                workspace.blocks,
                workspace.sums,
                best_scores,
                best_classes,
            )
        if done < len(scores):
            raise InvalidInput("scores", "a score is NaN or +inf")
        looked_at = (len(listed) or self.table.num_classes) if k else 0
        return [
            TopKResult(classes, sums, True, -np.inf, looked_at)
            for classes, sums in zip(best_classes, best_scores, strict=True)
        ]

    def _allowed(
        self, allowed: ProductSet | None
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint32]]:
        """The products to look at, if few; which are allowed; which are not."""
        if allowed is None:
            return _NO_LIST, _NO_BITMAP, _NO_LIST
        listed = allowed.listed
        if listed is not None and (
            self._shift == 0 or len(listed) <= _LISTED_SHARE * self.table.num_classes
        ):
            return listed, _NO_BITMAP, _NO_LIST
        bitmap = allowed.bitmap if listed is None else allowed.as_bitmap()
        return _NO_LIST, _NO_BITMAP if bitmap is None else bitmap, allowed.blocked

    def _within(
        self,
        budget: WorkBudget,
        scores: NDArray[np.float32],
        k: int,
        rows: NDArray[np.int64],
        listed: NDArray[np.uint32],
        bitmap: NDArray[np.uint8],
        blocked: NDArray[np.uint32],
        workspace: Workspace,
    ) -> TopKResult:
        """One query within a budget: the blocks that may have the best products come first."""
        deadline = np.inf if budget.seconds is None else time.perf_counter() + budget.seconds
        if not survey(scores, workspace.tops):
            raise InvalidInput("scores", "a score is NaN or +inf")
        tops = workspace.tops.tolist()
        order = np.empty(0, np.int64)
        places = len(listed) or self.table.num_classes
        bounds = np.array([sum(tops), -np.inf])  # of what is left, by block; then of nothing
        if self._shift and not len(listed):
            bounds = self._block_bounds(scores, rows)
            order = np.argsort(-bounds, kind="stable")
            places = len(order) << self._shift
            bounds = np.append(bounds[order], -np.inf)
        scan = Scan(
            scores=scores,
            codes=workspace.codes,
            starts=self.table.starts,
            repetitions=rows,
            num_classes=self.table.num_classes,
            shift=self._shift,
            order=order,
            listed=listed,
            bitmap=bitmap,
            blocked=blocked,
            heap_scores=np.empty(k, np.float64),
            heap_classes=np.empty(k, np.int64),
            step=encode(scores, workspace.tops, workspace.codes),
            top_sum=sum(tops),
            top_magnitude=sum(map(abs, tops)),
        )
        most = min(places, budget.max_candidates or places) if k else 0
        size, place, proven = 0, 0, k == 0
        while place < most and not proven:
            stop = min(most, place + CHUNK)
            size = scan_places(scan, place, stop, size, workspace.blocks, workspace.sums)
            place = stop
            bound = float(bounds[place >> self._shift] if len(order) else bounds[place == places])
            proven = place == places or (size == k and scan.heap_scores[0] > bound)
            if time.perf_counter() >= deadline:
                break
        heap_sort(scan.heap_scores, scan.heap_classes, size)
        looked_at = min(place, self.table.num_classes)
        return TopKResult(
            scan.heap_classes[:size], scan.heap_scores[:size], proven, bound, looked_at
        )

    def _block_bounds(
        self, scores: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """What no product of a block scores more than, float64, shape (blocks,).

        Sums of each row's best score in the block's buckets, in the order of the products' sums,
        so that rounding keeps them above.
        """
        tops = np.concatenate([scores, scores[:, : self.table.width - 1]], axis=1)
        for exponent in range(self._shift):  # windows of twice as many buckets
            step = 1 << exponent
            tops = np.maximum(tops[:, :-step], tops[:, step:])
        bounds = np.zeros(self.table.num_blocks, np.float64)
        for row, repetition in zip(tops, rows.tolist(), strict=True):
            bounds += row[self.table.starts[repetition, : len(bounds)]]
        return bounds

    @contextmanager
    def _workspace(self, rows: int) -> Iterator[Workspace]:
        workspace = self._workspaces.pop() if self._workspaces else None
        if workspace is None or len(workspace.tops) != rows:
            workspace = Workspace(rows, self.table.num_buckets, self.table.width)
        try:
            yield workspace
        finally:
            self._workspaces.append(workspace)

    def _warm(self) -> None:
        """Run every compiled function once."""
        table = self.table
        scores = np.zeros((table.num_repetitions, table.num_buckets), np.float32)
        self.search(scores, 1)
        self.search(scores, 1, budget=WorkBudget(max_candidates=1))
