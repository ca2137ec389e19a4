"""Arrays a search works in; made once, used by one search at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.merge._columns import Slices
from mach.merge._lists import Schedule
from mach.merge._quartet import QUARTET
from mach.merge._query import STATE_SIZE, Query
from mach.merge._scan import CHUNK
from mach.merge._tally import BATCH, Tally

__all__ = ["Workspace"]

_BATCH = 2048  # members tested together, or those of one bucket
_TALLIED = 1 << 18  # products tallied together
_FOUND = 16_384  # that stand out by their tallies, kept to be scored
_SUMMED = 65_536  # whose codes are summed up before they are scored
_STEPS = 128  # a row's most blocks: each is a quarter longer than all before it


class Workspace:
    """Room for a search over n repetitions with B buckets of at most m members.

    Grows with n * B and m, never with the number of products.
    """

    def __init__(self, rows: int, buckets: int, members: int) -> None:
        self.rows = rows
        words = -(-buckets // 512) * 8  # of 64 bits, in groups of eight
        self.tops = np.empty(rows, np.float32)
        self.keys = np.empty((rows, buckets), np.float32)
        self.values = np.empty((rows, buckets), np.int32)
        self.counts = np.empty(rows, np.int64)
        self.cutoffs = np.empty(rows, np.float64)
        self.floors = np.empty(rows, np.float64)
        self.enough = np.zeros((rows, words), np.uint64)
        self.enough_counts = np.empty(rows, np.int64)
        self.found = np.empty(members + _BATCH, np.uint32)
        self.sums = np.empty(members + _BATCH, np.float32)
        self.next_sums = np.empty(members + _BATCH, np.float32)
        self.words = np.empty(words, np.uint64)
        self.places = np.empty(max(words, members + _BATCH) + 1, np.uint32)
        self.buckets = np.empty(members + _BATCH, np.uint32)
        self.hits = np.empty(2 * members + 1, np.uint32)
        self.state = np.zeros(STATE_SIZE, np.int64)
        self.tolerances = np.zeros(2, np.float64)
        self.schedule = Schedule(
            rows=np.empty(rows * _STEPS, np.int32),
            ends=np.empty(rows * _STEPS, np.int32),
            floors=np.empty(rows * _STEPS, np.float64),
            bounds=np.empty(rows * _STEPS + 1, np.float64),
            costs=np.empty(rows * _STEPS + 1, np.float64),
        )
        self._tally: Tally | None = None
        self._slices: Slices | None = None
        self._code_sums: NDArray[np.uint16] | None = None
        self.chunk_sums = np.empty(CHUNK, np.float32)
        self.chunk_spare = np.empty(CHUNK, np.float32)
        self.chunk_labels = np.empty(CHUNK, np.uint32)

    @property
    def code_sums(self) -> NDArray[np.uint16]:
        """Room for sums of codes, a row for each of four queries."""
        if self._code_sums is None:
            self._code_sums = np.empty((QUARTET, _SUMMED), np.uint16)
        return self._code_sums

    def slices(self, dtype: np.dtype[Any]) -> Slices:
        """Room for slices of a table whose buckets are of ``dtype``."""
        if self._slices is None:
            self._slices = Slices(self.rows, dtype)
        return self._slices

    def tally(self, room: int) -> Tally:
        """The arrays for tallying, where ``room`` products are wanted."""
        most = max(_FOUND, 16 * room)
        if self._tally is None or len(self._tally.found_codes) < most:
            runs = self.keys.size
            self._tally = Tally(
                tallies=np.zeros(_TALLIED, np.uint8),
                starts=np.zeros(self.rows, np.int64),
                counts=np.zeros(self.rows, np.int64),
                cursors=np.empty(runs, np.uint32),
                ends=np.empty(runs, np.uint32),
                offsets=np.empty(runs, np.int32),
                codes=np.empty(runs, np.uint8),
                found_classes=np.empty(most, np.uint32),
                found_codes=np.empty(most, np.uint8),
                classes=np.empty(BATCH, np.uint32),
                buckets=np.empty((self.rows, BATCH), np.uint32),
                totals=np.empty(BATCH, np.float64),
            )
        return self._tally

    def query(
        self,
        scores: NDArray[np.float32],
        bitmap: NDArray[np.uint8],
        heap_scores: NDArray[np.float64],
        heap_classes: NDArray[np.int64],
    ) -> Query:
        """The arrays for one query's walk."""
        slots = 1 << max(10, (4 * len(heap_scores) - 1).bit_length())
        return Query(
            scores=scores,
            tops=self.tops,
            keys=self.keys,
            values=self.values,
            counts=self.counts,
            cutoffs=self.cutoffs,
            floors=self.floors,
            enough=self.enough,
            enough_counts=self.enough_counts,
            found=self.found,
            sums=self.sums,
            next_sums=self.next_sums,
            words=self.words,
            places=self.places,
            buckets=self.buckets,
            hits=self.hits,
            bitmap=bitmap,
            heap_scores=heap_scores,
            heap_classes=heap_classes,
            seen=np.empty(slots, np.int64),
            state=self.state,
            tolerances=self.tolerances,
        )
