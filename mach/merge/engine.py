"""The search for the k best products of one query."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput
from mach.merge._lists import survey
from mach.merge._plan import AffinePlan, plan_affine, plan_stored
from mach.merge._search import (
    SCAN_AFFINE,
    SCAN_COLUMNS,
    SCAN_STORED,
    Plan,
    Search,
    may_walk,
)
from mach.merge._workspace import Workspace
from mach.merge.products import ProductSet
from mach.merge.result import TopKResult, WorkBudget
from mach.merge.table import BucketTable

__all__ = ["TopK"]

_COLUMNS_CLASSES = 250_000  # up to here an affine hash's buckets are kept, for scans
_PLANS_KEPT = 64


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
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._workspaces: list[Workspace] = []
        self._no_sizes = np.empty((0, 0), np.int64)
        self._columns = np.empty((0, 0), table.dtype)
        self._scan_unit = SCAN_AFFINE
        if table.assignment is not None:
            self._scan_unit = SCAN_STORED
        elif table.num_classes <= _COLUMNS_CLASSES:
            self._columns = table.columns()
            self._scan_unit = SCAN_COLUMNS
        if warm:
            self._warm()

    @property
    def index_bytes(self) -> int:
        """Bytes of the table and of what was prepared from it."""
        prepared = [self._columns, *(a for plan in self._plans.values() for a in plan.compiled)]
        return self.table.nbytes + sum(
            array.nbytes
            for array in prepared
            if isinstance(array, np.ndarray) and array.base is None
        )

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
        plan = self._plan(repetitions)
        self.table.check_query(scores.shape, len(plan.rows), k, allowed)
        return self._search(np.ascontiguousarray(scores, np.float32), k, plan, allowed, budget)

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
        plan = self._plan(repetitions)
        self.table.check_query(scores.shape[1:], len(plan.rows), k, allowed)
        scores = np.ascontiguousarray(scores, np.float32)
        return [self._search(one, k, plan, allowed, budget) for one in scores]

    def _plan(self, repetitions: Sequence[int] | NDArray[np.integer[Any]] | None) -> Plan:
        rows = self.table.checked_repetitions(repetitions)
        key = rows.tobytes()
        plan = self._plans.get(key)
        if plan is None:
            if self.table.hash is not None:
                plan = Plan(rows, plan_affine(self.table.hash, rows), self._no_sizes)
            else:
                assert self.table.starts is not None
                sizes = np.diff(self.table.starts[rows], axis=1)
                plan = Plan(rows, plan_stored(self.table, rows), sizes)
            self._plans[key] = plan
            while len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        return plan

    def _search(
        self,
        scores: NDArray[np.float32],
        k: int,
        plan: Plan,
        allowed: ProductSet | None,
        budget: WorkBudget | None,
    ) -> TopKResult:
        workspace = self._workspaces.pop() if self._workspaces else None
        if workspace is None or workspace.rows != len(plan.rows):
            workspace = self._workspace(plan)
        try:
            if not survey(scores, workspace.tops):
                raise InvalidInput("scores", "a score is NaN or +inf")
            return self._new_search(plan, scores, k, workspace, allowed, budget).run()
        finally:
            self._workspaces.append(workspace)

    def _new_search(
        self,
        plan: Plan,
        scores: NDArray[np.float32],
        k: int,
        workspace: Workspace,
        allowed: ProductSet | None,
        budget: WorkBudget | None,
    ) -> Search:
        return Search(
            self.table.num_classes,
            self._columns,
            self._scan_unit,
            plan,
            scores,
            k,
            workspace,
            allowed,
            budget,
        )

    def _workspace(self, plan: Plan) -> Workspace:
        members = 0
        if isinstance(plan.compiled, AffinePlan):
            members = plan.compiled.steps.shape[1]
        return Workspace(len(plan.rows), self.table.num_buckets, members)

    def _warm(self) -> None:
        """Run every compiled function once, whatever this table's size would choose."""
        plan = self._plan(None)
        scores = np.zeros((len(plan.rows), self.table.num_buckets), np.float32)
        for allowed in (None, ProductSet.allow([0], self.table.num_classes)):
            workspace = self._workspace(plan)
            survey(scores, workspace.tops)
            search = self._new_search(plan, scores, 1, workspace, allowed, None)
            if may_walk(self.table.num_classes, self._scan_unit, *scores.shape):
                search.walk(0.0)
            search.scan()
            search.result(-np.inf, True)
