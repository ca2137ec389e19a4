"""The search for the k best products of one query."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput
from mach.merge._coded import as_words
from mach.merge._columns import SLICE
from mach.merge._lists import survey
from mach.merge._plan import AffinePlan, plan_affine, plan_stored
from mach.merge._quartet import QUARTET
from mach.merge._search import Index, Plan, Quartet, Search, may_walk
from mach.merge._workspace import Workspace
from mach.merge.products import ProductSet
from mach.merge.result import TopKResult, WorkBudget
from mach.merge.table import BucketTable

__all__ = ["TopK"]

_COLUMNS_BYTES = 128 << 20  # up to here the buckets of all products are kept, for scans
_PLANS_BYTES = 64 << 20  # of plans for some repetitions that are kept, or one


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
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()  # what was used last comes last
        self._plans_lock = Lock()
        self._all = table.checked_repetitions(None).tobytes()
        self._workspaces: list[Workspace] = []
        self._no_sizes = np.empty((0, 0), np.int64)
        columns = np.empty((0, 0), table.dtype)
        size = table.num_repetitions * table.num_classes * table.dtype.itemsize
        if size <= _COLUMNS_BYTES:
            columns = np.zeros((table.num_repetitions, -(-table.num_classes // 4) * 4), table.dtype)
            columns[:, : table.num_classes] = table.columns()
        self._index = Index(table.num_classes, columns, as_words(columns), table.hash is not None)
        if warm:
            self._warm()

    @property
    def index_bytes(self) -> int:
        """Bytes of the table and of what was prepared from it."""
        prepared = {
            id(array): array.nbytes
            for array in (
                self._index.columns,
                *(a for plan in self._plans.values() for a in plan.compiled),
            )
            if isinstance(array, np.ndarray) and array.base is None
        }
        for array in (self.table.assignment, self.table.starts, self.table.members):
            prepared.pop(id(array), None)
        return self.table.nbytes + sum(prepared.values())

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
        scores = np.ascontiguousarray(scores, np.float32)
        with self._workspace(plan) as workspace:
            return self._new_search(plan, scores, k, workspace, allowed, budget).run(workspace)

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

        Queries that come to scoring every product do so together, and read the table once for
        all of them. A ``budget`` is each query's own.
        """
        plan = self._plan(repetitions)
        self.table.check_query(scores.shape[1:], len(plan.rows), k, allowed)
        scores = np.ascontiguousarray(scores, np.float32)
        with self._workspace(plan) as workspace:
            if budget is not None:
                return [
                    self._new_search(plan, one, k, workspace, allowed, budget).run(workspace)
                    for one in scores
                ]
            searches = [self._new_search(plan, one, k, workspace, allowed, None) for one in scores]
            found = [search.begin(workspace) for search in searches]
            left = [n for n, result in enumerate(found) if result is None]
            fours = []
            if left and searches[left[0]].codes is not None:
                together = len(left) // QUARTET * QUARTET
                for at in range(0, together, QUARTET):
                    members = left[at : at + QUARTET]
                    fours.append((members, Quartet([searches[n] for n in members])))
                left = left[together:]
            stop, step = 0, self._index.slice(allowed is not None and allowed.listed is not None)
            while left or fours:
                stop += step
                for members, four in fours:
                    for n, result in zip(members, four.advance(stop, workspace), strict=True):
                        found[n] = result or found[n]
                for n in left:
                    found[n] = searches[n].advance(stop, workspace)
                left = [n for n in left if found[n] is None]
                fours = [(m, four) for m, four in fours if any(found[n] is None for n in m)]
        return [result for result in found if result is not None]

    def _plan(self, repetitions: Sequence[int] | NDArray[np.integer[Any]] | None) -> Plan:
        rows = self.table.checked_repetitions(repetitions)
        key = rows.tobytes()
        with self._plans_lock:
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
                return plan
        if self.table.hash is not None:
            plan = Plan(rows, plan_affine(self.table.hash, rows), self._no_sizes)
        else:
            assert self.table.starts is not None
            sizes = np.diff(self.table.starts[rows], axis=1)
            plan = Plan(rows, plan_stored(self.table, rows), sizes)
        with self._plans_lock:
            self._plans[key] = plan
            self._drop_plans(key)
        return plan

    def _drop_plans(self, newest: bytes) -> None:
        """Drop plans for some repetitions that were used longest ago; all are wanted again."""
        sizes = {key: plan.nbytes for key, plan in self._plans.items() if key != self._all}
        total = sum(sizes.values())
        for key, size in sizes.items():
            if total > _PLANS_BYTES and key != newest:
                del self._plans[key]
                total -= size

    @contextmanager
    def _workspace(self, plan: Plan) -> Iterator[Workspace]:
        workspace = self._workspaces.pop() if self._workspaces else None
        if workspace is None or workspace.rows != len(plan.rows):
            members = 0
            if isinstance(plan.compiled, AffinePlan):
                members = plan.compiled.steps.shape[1]
            workspace = Workspace(len(plan.rows), self.table.num_buckets, members)
        try:
            yield workspace
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
        if not survey(scores, workspace.tops):
            raise InvalidInput("scores", "a score is NaN or +inf")
        if allowed is not None and allowed.size == self.table.num_classes:
            allowed = None  # to test every product found would be in vain
        return Search(self._index, plan, scores, k, workspace.tops, allowed, budget)

    def _warm(self) -> None:
        """Run every compiled function once, whatever this table's size would choose."""
        plan = self._plan(None)
        classes = self.table.num_classes
        scores = np.zeros((len(plan.rows), self.table.num_buckets), np.float32)
        some = ProductSet.allow([0], classes)
        with self._workspace(plan) as workspace:
            for allowed in (None, some):
                search = self._new_search(plan, scores, 1, workspace, allowed, None)
                unit = self._index.scan_unit(len(scores), allowed is not None)
                if may_walk(classes, unit, *scores.shape):
                    search.tally(0.0, workspace)
                    search.walk(0.0, workspace)
                search.prepare_scan()
                search.advance(min(classes, SLICE), workspace)
            if self._index.may_code(len(scores)):
                searches = [
                    self._new_search(plan, scores, 1, workspace, None, None) for _ in range(QUARTET)
                ]
                for search in searches:
                    search.prepare_scan()
                Quartet(searches).advance(SLICE, workspace)
