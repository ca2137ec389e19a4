"""One query on its way through the engine: walk, and where that does not soon end, scan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mach.merge._coded import MOST_ROWS, PAST_ALL, CodedScan, as_words, encode, scan_codes
from mach.merge._columns import SLICE
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._prove import prove_search
from mach.merge._quartet import QUARTET, pack_codes, scan_four
from mach.merge._query import HEAP_SIZE, MEMBERS, REACHED
from mach.merge._ring import LIMIT, PROVEN, ring_search
from mach.merge._scan import CHUNK, Scan, scan_products
from mach.merge._tally import MOST_TALLIED_ROWS
from mach.merge._workspace import Workspace
from mach.merge.products import ProductSet
from mach.merge.result import TopKResult, WorkBudget

__all__ = ["SCAN_SLICE", "Index", "Plan", "Quartet", "Search", "may_walk"]

# Costs in nanoseconds on one core of a Zen 3 server, to choose between walking and scanning.
_SCAN_CODES, _SCAN_FLOATS = 0.4, 4.0  # a repetition's
_FILL_AFFINE, _FILL_STORED = 0.3, 0.3  # to find a product's bucket, where buckets are not kept
_FILL_LIST = 1.0  # to find a listed product's
_TALLY_AFFINE, _TALLY_STORED = 1.2, 3.0  # a member
_WALK_BUCKET, _WALK_FIXED = 3.0, 100_000.0  # to prepare a repetition's bucket; a search

_LISTED_SHARE = 1 / 8  # of a repetition's buckets that are sorted, and may be walked
_FIRST_BUCKETS = 30.0  # of a repetition, tallied at first for one product wanted; more by its root
_SORTED_SHARE = 1 / 3  # of a repetition's buckets that are sorted, and may be tallied
_WALK_SHARE = 0.7  # of the cost of a scan that a walk may take before it is given up
_WALK_MOST = 1 / 16  # of the products, looked for: past this, a scan
_SLICE_MEMBERS, SCAN_SLICE = 200_000, 16 * CHUNK  # between two looks at the clock, or queries

_NO_BITMAP = np.empty(0, np.uint8)
_NO_LIST = np.empty(0, np.uint32)


class Index(NamedTuple):
    """What is searched."""

    num_classes: int
    columns: NDArray[Any]  # (R, K or more): buckets, where they are kept; or empty
    words: NDArray[np.uint64]  # see `_coded.as_words`
    has_hash: bool  # or an explicit assignment

    def scan_unit(self, rows: int, listed: bool) -> float:
        """Nanoseconds that a scan takes for a product and repetition."""
        if not self.may_code(rows):
            return _SCAN_FLOATS
        if listed:
            return _SCAN_CODES + _FILL_LIST
        if self.has_columns:
            return _SCAN_CODES
        return _SCAN_CODES + (_FILL_AFFINE if self.has_hash else _FILL_STORED)

    @property
    def has_columns(self) -> bool:
        """Whether all buckets are kept side by side."""
        return len(self.columns) > 0

    def slice(self, listed: bool) -> int:
        """Products that the queries of a batch scan in turn."""
        return SCAN_SLICE if self.has_columns and not listed else SLICE

    def may_code(self, rows: int) -> bool:
        """Whether products can be scored from 8-bit codes first."""
        return rows <= MOST_ROWS


class Plan(NamedTuple):
    """Which repetitions are searched."""

    rows: NDArray[np.int64]
    compiled: AffinePlan | StoredPlan
    sizes: NDArray[np.int64]  # (n, B): how many products a stored bucket has; or empty

    @property
    def nbytes(self) -> int:
        """Bytes of what was prepared; what the table holds itself is not counted."""
        prepared = self.compiled if isinstance(self.compiled, AffinePlan) else ()
        arrays = (a for a in (*prepared, self.sizes) if isinstance(a, np.ndarray))
        return sum(a.nbytes for a in arrays)


def may_walk(products: int, unit: float, rows: int, buckets: int) -> bool:
    """Whether walking can be quicker than scanning so many products."""
    walk_cost = _WALK_FIXED + _WALK_BUCKET * rows * buckets
    return _WALK_SHARE * unit * rows * products > walk_cost


class Search:
    """One query on its way.

    :meth:`begin` walks; where that does not end it, :meth:`advance` scans, part by part, so that
    several queries can share what they read. The workspace is in use during a call only.
    """

    def __init__(
        self,
        index: Index,
        plan: Plan,
        scores: NDArray[np.float32],
        k: int,
        tops: NDArray[np.float32],
        allowed: ProductSet | None,
        budget: WorkBudget | None,
    ) -> None:
        self.index = index
        self.plan = plan
        self.scores = scores
        self.tops = tops.copy()
        self.allowed = allowed
        self.limited = budget is not None
        self.most = 2**62
        self.deadline = np.inf
        if budget is not None:
            self.most = budget.max_candidates or self.most
            if budget.seconds is not None:
                self.deadline = time.perf_counter() + budget.seconds
        self.k = min(k, index.num_classes if allowed is None else allowed.size)
        # Blocked products are searched for and then dropped: they are few.
        self.room = self.k
        if self.k and allowed is not None:
            self.room += len(allowed.blocked)
        self.listed = allowed.listed if allowed is not None else None
        self.to_scan = index.num_classes if self.listed is None else len(self.listed)
        self.heap_scores = np.empty(self.room, np.float64)
        self.heap_classes = np.empty(self.room, np.int64)
        self.size = 0
        self.candidates = 0
        # No product scores more than the rows' best scores, summed like a product's.
        self.top_sum = 0.0
        for top in self.tops.tolist():
            self.top_sum += top
        self.top_magnitude = float(np.abs(self.tops).sum(dtype=np.float64))
        self.bound = np.inf  # of what the walk did not look at
        self.tolerance = 0.0  # more than rounding moves the bound by
        self.walked: tuple[int, NDArray[np.float64], NDArray[np.int64]] | None = None
        self.reached = -np.inf
        self.position = 0
        self.codes: NDArray[np.uint8] | None = None
        self.step = 1.0

    def run(self, workspace: Workspace) -> TopKResult:
        """Search in the way that promises to be the quickest."""
        found = self.begin(workspace)
        while found is None:
            stop = self.to_scan
            if self.fills or self.deadline < np.inf:
                stop = self.position + self.index.slice(self.listed is not None)
            found = self.advance(stop, workspace)
        return found

    def begin(self, workspace: Workspace) -> TopKResult | None:
        """Walk, where that may be quicker than a scan; the result, if there is one by then."""
        if not self.k:
            return self.result(-np.inf, True)
        n = len(self.scores)
        unit = self.index.scan_unit(n, self.listed is not None)
        if (
            # Of the best buckets' members few are in a list.
            (self.listed is None or self.limited)
            and may_walk(self.to_scan, unit, *self.scores.shape)
            and self.room < _WALK_MOST * self.to_scan
        ):
            most_work = _WALK_SHARE * unit * n * self.to_scan
            # What is proven part by part only says little of what a budget left out.
            if not self.limited and n <= MOST_TALLIED_ROWS:
                if self.tally(most_work, workspace):
                    return self.result(self.bound, True)
            else:
                proven = self.walk(most_work, workspace)
                if proven or self.spent():
                    return self.result(self.bound, proven)
        self.prepare_scan()
        return None

    def prepare_scan(self) -> None:
        """Start over, knowing what score is reached, with the arrays that scoring needs."""
        self.walked = self.size, self.heap_scores, self.heap_classes
        self.reached = self.heap_scores[0] if self.size == self.room else -np.inf
        self.heap_scores, self.heap_classes = self.heap_scores.copy(), self.heap_classes.copy()
        self.size = 0
        if self.index.may_code(len(self.scores)):
            self.codes = np.empty(self.scores.shape, np.uint8)
            self.step = encode(self.scores, self.tops, self.codes)

    @property
    def fills(self) -> bool:
        """Whether buckets are found slice by slice."""
        if self.codes is None:
            return False
        return self.listed is not None or not self.index.has_columns

    def spent(self) -> bool:
        """Whether the budget is."""
        return self.candidates >= self.most or time.perf_counter() >= self.deadline

    def tally(self, most_work: float, workspace: Workspace) -> bool:
        """Tally the best buckets' members; whether the heap has the k best."""
        query = workspace.query(
            self.scores, self._bitmap_to_walk(), self.heap_scores, self.heap_classes
        )
        compiled = self.plan.compiled
        done = prove_search(
            query,
            compiled,
            self.index.num_classes,
            workspace.schedule,
            self.plan.sizes,
            workspace.tally(self.room),
            isinstance(compiled, AffinePlan) and compiled.residue_members.size > 0,
            _TALLY_AFFINE if self.index.has_hash else _TALLY_STORED,
            _FIRST_BUCKETS,
            _SORTED_SHARE,
            most_work,
        )
        self.candidates = int(query.state[MEMBERS])
        self.size = int(query.state[HEAP_SIZE])
        self.bound = float(workspace.schedule.bounds[query.state[REACHED]])
        return bool(done)

    def _bitmap_to_walk(self) -> NDArray[np.uint8]:
        allowed = self.allowed
        if allowed is not None and (allowed.listed is not None or allowed.bitmap is not None):
            return allowed.as_bitmap()
        return _NO_BITMAP

    def walk(self, most_work: float, workspace: Workspace) -> bool:
        """Walk down the best buckets; whether that proved the heap to be the k best."""
        query = workspace.query(
            self.scores, self._bitmap_to_walk(), self.heap_scores, self.heap_classes
        )
        new = True
        while True:
            limit = self.most
            if self.deadline < np.inf:
                limit = min(limit, self.candidates + _SLICE_MEMBERS)
            status = ring_search(
                query,
                self.plan.compiled,
                self.index.num_classes,
                workspace.schedule,
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
                self.bound = float(workspace.schedule.bounds[query.state[REACHED]])
                self.tolerance = float(query.tolerances[0])
                return bool(status == PROVEN)

    def advance(self, stop: int, workspace: Workspace) -> TopKResult | None:
        """Score products up to the ``stop``-th to be scored; the result, if that was the last."""
        begun = self.position
        stop = min(stop, self.to_scan, begun + self.most - self.candidates)
        if self.codes is not None:
            coded = self._coded(stop, workspace)
            self.position, self.size = scan_codes(
                coded, begun, stop, self.size, workspace.code_sums[0]
            )
        else:
            scan = Scan(
                scores=self.scores,
                bitmap=self._bitmap_to_scan(),
                listed=_NO_LIST if self.listed is None else self.listed,
                heap_scores=self.heap_scores,
                heap_classes=self.heap_classes,
                sums=workspace.chunk_sums,
                spare=workspace.chunk_spare,
                labels=workspace.chunk_labels,
            )
            self.position, self.size = scan_products(
                scan,
                self.plan.compiled,
                begun,
                stop,
                self.size,
                self.reached,
                self.top_sum,
                self.top_magnitude,
            )
        return self._advanced(begun)

    def _advanced(self, begun: int) -> TopKResult | None:
        self.candidates += min(self.position, self.to_scan) - begun
        if self.position >= self.to_scan:
            return self.result(-np.inf, True)
        return self._unfinished() if self.spent() else None

    def _bitmap_to_scan(self) -> NDArray[np.uint8]:
        if self.allowed is None or self.listed is not None or self.allowed.bitmap is None:
            return _NO_BITMAP
        return self.allowed.bitmap

    def _coded(self, stop: int, workspace: Workspace) -> CodedScan:
        """What scoring products up to ``stop`` from codes takes."""
        assert self.codes is not None
        columns, words, rows, base = self.index.columns, self.index.words, self.plan.rows, 0
        if self.fills:
            slices = workspace.slices(columns.dtype)
            if self.listed is None:
                columns = slices.at(self.plan.compiled, self.position, stop)
            else:
                columns = slices.listed(self.plan.compiled, self.listed, self.position, stop)
            words, rows, base = as_words(columns), slices.rows, self.position
        return CodedScan(
            scores=self.scores,
            codes=self.codes,
            columns=columns,
            words=words,
            repetitions=rows,
            base=base,
            listed=_NO_LIST if self.listed is None else self.listed,
            bitmap=self._bitmap_to_scan(),
            heap_scores=self.heap_scores,
            heap_classes=self.heap_classes,
            step=self.step,
            reached=float(self.reached),
            top_sum=self.top_sum,
            top_magnitude=self.top_magnitude,
        )

    def _unfinished(self) -> TopKResult:
        """The best of what the walk and the part of a scan have found."""
        assert self.walked is not None
        size, heap_scores, heap_classes = self.walked
        self.heap_scores = np.concatenate([self.heap_scores[: self.size], heap_scores[:size]])
        self.heap_classes, first = np.unique(
            np.concatenate([self.heap_classes[: self.size], heap_classes[:size]]),
            return_index=True,
        )
        self.heap_scores = self.heap_scores[first]
        self.size = len(self.heap_classes)
        return self.result(min(self.bound, self.top_sum), False)

    def result(self, bound: float, proven: bool) -> TopKResult:
        """Order what was found."""
        scores, classes = self.heap_scores[: self.size], self.heap_classes[: self.size]
        order = np.lexsort((classes, -scores))
        if self.allowed is not None and len(self.allowed.blocked):
            order = order[~np.isin(classes[order], self.allowed.blocked)]
        order = order[: self.k]
        scores, classes = scores[order], classes[order]
        if not proven and len(scores) == self.k:
            proven = bool(bound < scores[-1] - self.tolerance)
        return TopKResult(classes, scores, proven, bound, self.candidates)


class Quartet:
    """Four queries that score products together, see ``_quartet``.

    All are of the same products and repetitions, without a budget, and have codes.
    """

    def __init__(self, searches: Sequence[Search]) -> None:
        self.searches = searches
        self.position = 0
        codes = [search.codes for search in searches if search.codes is not None]
        self.packed = pack_codes(codes[0], codes[1], codes[2], codes[3])
        self._positions = np.zeros(QUARTET, np.int64)
        self._sizes = np.zeros(QUARTET, np.int64)

    def advance(self, stop: int, workspace: Workspace) -> list[TopKResult | None]:
        """As :meth:`Search.advance`; what had a result before has none again."""
        begun = self.position
        stop = min(stop, self.searches[0].to_scan)
        left = np.flatnonzero(self._positions != PAST_ALL).tolist()
        for search in self.searches:
            search.position = begun
        first, second, third, fourth = (s._coded(stop, workspace) for s in self.searches)
        scan_four(
            (first, second, third, fourth),
            self.packed,
            begun,
            stop,
            self._positions,
            self._sizes,
            workspace.code_sums,
        )
        self.position = stop
        found: list[TopKResult | None] = [None] * QUARTET
        for i in left:
            search = self.searches[i]
            search.position, search.size = int(self._positions[i]), int(self._sizes[i])
            found[i] = search._advanced(begun)
        return found
