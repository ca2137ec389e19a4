"""What else one could do, to compare with: both in NumPy, both over the same products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.merge.table import BucketTable

__all__ = ["GatherTopK", "VotedTopK"]


class GatherTopK:
    """Score every product by gathers, then select with ``argpartition``.

    Attributes:
        columns: the bucket of every product in every repetition, shape (R, K).
        index_bytes: its size.

    Args:
        table: the products; their buckets are kept repetition by repetition.
    """

    def __init__(self, table: BucketTable) -> None:
        self.columns: NDArray[Any] = table.columns()
        self.index_bytes = self.columns.nbytes

    def search(self, scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The k best classes, best first, by float32 sums; ``scores`` has shape (R, B)."""
        sums = scores[0][self.columns[0]]
        for row, column in zip(scores[1:], self.columns[1:], strict=True):
            sums += row[column]
        return _best(np.arange(len(sums)), sums, k)


class VotedTopK:
    """The decode of the official MACH code, from its description: an approximation.

    A product is a candidate if ``votes`` repetitions have it among the products of their
    ``depth`` best buckets; candidates are scored over all repetitions.

    Args:
        table: the products.
        depth: buckets taken from each repetition.
        votes: repetitions that must agree.
    """

    def __init__(self, table: BucketTable, depth: int = 50, votes: int = 2) -> None:
        self._table = table
        self._depth = min(depth, table.num_buckets)
        self._votes = votes
        starts = table.starts[:, : table.num_blocks]
        self._blocks = np.argsort(starts, axis=1, kind="stable").astype(np.uint32)
        self._starts = np.take_along_axis(starts, self._blocks.astype(np.int64), axis=1)
        self.index_bytes = table.nbytes + self._blocks.nbytes + self._starts.nbytes

    def members_of(self, repetition: int, buckets: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Products of some buckets of one repetition, int64, in no order."""
        table, starts = self._table, self._starts[repetition]
        # A bucket has one product of each block that starts within a width before it; buckets
        # near 0 also have some of those that start near B.
        wanted = np.asarray(buckets, np.int64)
        wanted = np.concatenate([wanted, wanted[wanted < table.width - 1] + table.num_buckets])
        first = np.searchsorted(starts, np.maximum(0, wanted - table.width + 1), "left")
        past = np.searchsorted(starts, wanted, "right")
        counts = np.maximum(0, past - first)
        places = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        lanes = np.repeat(wanted, counts) - starts[places]
        classes: NDArray[np.int64] = (
            self._blocks[repetition, places].astype(np.int64) * table.width + lanes
        )
        return classes[classes < table.num_classes]

    def search(self, scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The best classes found, at most k, best first; ``scores`` has shape (R, B)."""
        members = [
            self.members_of(repetition, np.argpartition(-row, self._depth - 1)[: self._depth])
            for repetition, row in enumerate(scores)
        ]
        named = np.sort(np.concatenate(members))
        if len(named) < self._votes:
            return np.empty(0, np.int64)
        # In sorted order a product named often enough equals the one that many places before.
        candidates = np.unique(named[self._votes - 1 :][_repeated(named, self._votes)])
        rows = self._table.rows(candidates)
        sums = np.zeros(len(candidates), np.float32)
        for repetition, row in enumerate(scores):
            sums += row[rows[:, repetition]]
        return _best(candidates, sums, k)


def _repeated(ordered: NDArray[np.int64], times: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = ordered[times - 1 :] == ordered[: len(ordered) - times + 1]
    return found


def _best(classes: NDArray[np.int64], sums: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    chosen = np.arange(len(sums)) if k >= len(sums) else np.argpartition(-sums, k - 1)[:k]
    order = np.lexsort((classes[chosen], -sums[chosen]))
    best: NDArray[np.int64] = classes[chosen[order]]
    return best
