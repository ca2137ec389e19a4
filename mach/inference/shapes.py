"""Which shapes a GPU is asked for: few, so that each can be captured and kept.

A CUDA graph is one shape's. Rows of a batch are padded up to a power of two, their widths up to
one of a few; what is wider runs apart, uncaptured, so that one long row does not make all wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mach.errors import ConfigError
from mach.features import SparseBatch

__all__ = ["Part", "ShapePlan"]


@dataclass(frozen=True, eq=False)
class Part:
    """One run.

    Attributes:
        rows: which rows of the batch, in the order of the run, int64, at most ``num_rows``.
        num_rows: rows of the run, padding included.
        width: entries of a row, padding included.
        captured: whether the shape is one of :meth:`ShapePlan.shapes`.
    """

    rows: NDArray[np.int64]
    num_rows: int
    width: int
    captured: bool


@dataclass(frozen=True)
class ShapePlan:
    """The shapes that are kept ready.

    Attributes:
        max_rows: rows of the largest run, a power of two.
        widths: entries of a row, increasing.
        max_entries: the most entries in a run that is not captured; bounds its memory. A row
            longer than that runs alone.
    """

    max_rows: int
    widths: tuple[int, ...]
    max_entries: int

    @classmethod
    def create(cls, max_rows: int, widths: Sequence[int], max_entries: int) -> ShapePlan:
        """Check and complete: ``max_rows`` is rounded up to a power of two.

        Raises:
            ConfigError: if a number is below 1 or the widths do not increase.
        """
        if min([max_rows, max_entries, *widths], default=0) < 1 or not widths:
            raise ConfigError("cuda shapes: rows, entries and at least one width must be 1 or more")
        if any(a >= b for a, b in pairwise(widths)):
            raise ConfigError(f"cuda shapes: the widths {list(widths)} do not increase")
        return cls(_power_of_two(max_rows), tuple(widths), max_entries)

    def shapes(self) -> list[tuple[int, int]]:
        """Every captured ``(num_rows, width)``, the largest first."""
        rows = [1 << power for power in range(self.max_rows.bit_length())]
        return sorted(((n, w) for n in rows for w in self.widths), reverse=True)

    def parts(self, batch: SparseBatch) -> list[Part]:
        """Split a batch of at least one row into runs; every row is in exactly one."""
        lengths = batch.lengths
        long = lengths > self.widths[-1]
        if not long.any():
            return self._captured(np.arange(len(batch)), lengths)
        parts = self._captured(np.flatnonzero(~long), lengths) if not long.all() else []
        order = np.flatnonzero(long)
        order = order[np.argsort(lengths[order], kind="stable")]
        while len(order):
            # The longest of those that still fit together decides how many do.
            count = 1
            while count < min(len(order), self.max_rows) and self._fits(lengths, order, count + 1):
                count += 1
            rows, order = order[:count], order[count:]
            parts.append(Part(rows, count, int(lengths[rows[-1]]), False))
        return parts

    def _fits(self, lengths: NDArray[np.int32], order: NDArray[np.int64], count: int) -> bool:
        return count * int(lengths[order[count - 1]]) <= self.max_entries

    def _captured(self, rows: NDArray[np.int64], lengths: NDArray[np.int32]) -> list[Part]:
        parts = []
        for start in range(0, len(rows), self.max_rows):
            some = rows[start : start + self.max_rows]
            longest = int(lengths[some].max())
            width = next(width for width in self.widths if longest <= width)
            parts.append(Part(some, _power_of_two(len(some)), width, True))
        return parts


def _power_of_two(number: int) -> int:
    """The least power of two that is not below ``number``, at least 1."""
    return 1 << (number - 1).bit_length()
