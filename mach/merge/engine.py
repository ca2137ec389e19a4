"""The search for the k best products of one query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput
from mach.merge._budget import search_within
from mach.merge._scan import Allowed, Index
from mach.merge._search import Workspace, make_workspace, search_all
from mach.merge.products import ProductSet
from mach.merge.result import TopKResult, WorkBudget
from mach.merge.table import BucketTable

__all__ = ["TopK"]

_LISTED_SHARE = 1 / 25  # of the products: up to here it is quicker to look up their codes
_NO_LIST = np.empty(0, np.uint32)
_NO_BITMAP = np.empty(0, np.uint8)


class TopK:
    """Exact top-k over one :class:`BucketTable`; safe to use from several threads.

    The score of product i is the float64 sum, in increasing order of repetition, of the float32
    ``scores[r, h_r(i)]``; products are ordered by score falling, then by class rising. Searches
    release the GIL and allocate nothing that grows with the number of products, but for a few words
    a block within a budget.

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
        among = self._allowed(allowed)
        index = Index(self.table.starts, rows, self.table.num_classes, self._shift)
        best_scores = np.empty((len(scores), k), np.float64)
        best_classes = np.empty((len(scores), k), np.int64)
        with self._workspace(len(rows)) as workspace:
            if budget is not None:
                found = [search_within(budget, one, k, index, among, workspace) for one in scores]
                results = [result for result in found if result is not None]
            else:
                done = search_all(scores, index, among, workspace, best_scores, best_classes)
                looked_at = (len(among.listed) or index.num_classes) if k else 0
                results = [
                    TopKResult(best_classes[i], best_scores[i], True, -np.inf, looked_at)
                    for i in range(done)
                ]
        if len(results) < len(scores):
            raise InvalidInput("scores", "a score is NaN or +inf")
        return results

    def _allowed(self, allowed: ProductSet | None) -> Allowed:
        if allowed is None:
            return Allowed(_NO_LIST, _NO_BITMAP, _NO_LIST)
        listed, bitmap = allowed.listed, allowed.bitmap
        if listed is not None:
            if self._shift == 0 or len(listed) <= _LISTED_SHARE * self.table.num_classes:
                return Allowed(listed, _NO_BITMAP, _NO_LIST)
            bitmap = allowed.as_bitmap()
        return Allowed(_NO_LIST, _NO_BITMAP if bitmap is None else bitmap, allowed.blocked)

    @contextmanager
    def _workspace(self, rows: int) -> Iterator[Workspace]:
        workspace = self._workspaces.pop() if self._workspaces else None
        if workspace is None or len(workspace.tops) != rows:
            workspace = make_workspace(rows, self.table.num_buckets, self.table.width)
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
