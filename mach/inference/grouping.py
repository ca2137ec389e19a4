"""Which rows of a batch run together, so that one long row does not pad all the others.

A run over n rows padded to width w takes about ``fixed + row * n + entry * n * w`` seconds
(:class:`RunCost`, measured at warm-up). Rows sorted by length and cut at powers of two are
joined where that is cheaper than running them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mach.features import SparseBatch

__all__ = ["RunCost", "plan_groups"]

#: Of each class of rows.
_LONGEST = (1 << np.arange(31)).astype(np.int32)


@dataclass(frozen=True)
class RunCost:
    """Seconds that a run takes, by its shape.

    Attributes:
        fixed: of any run.
        row: for each row.
        entry: for each entry, padding included.
    """

    fixed: float
    row: float
    entry: float

    def seconds(self, rows: int, entries: int) -> float:
        """Of one run over ``rows`` rows with ``entries`` entries, padding included."""
        return self.fixed + self.row * rows + self.entry * entries


def plan_groups(
    batch: SparseBatch, cost: RunCost, max_entries: int
) -> list[NDArray[np.int64]] | None:
    """Split rows into runs.

    Args:
        batch: at least one row.
        cost: what a run costs.
        max_entries: the most entries in a run, padding included; bounds its memory. A row
            longer than that runs alone.

    Returns:
        The rows of each run, every row once; None where all run together as they stand.
    """
    n, widest = len(batch), max(1, batch.longest)
    padding = n * widest - len(batch.indices)
    if n == 1 or (n * widest <= max_entries and padding * cost.entry <= cost.fixed):
        return None
    lengths = batch.lengths
    order = np.argsort(lengths, kind="stable")
    ordered = np.maximum(lengths[order], 1)
    # Classes: lengths 1, 2, 3-4, 5-8, … ; a class ends where the next power of two begins.
    ends = sorted({n, *np.searchsorted(ordered, _LONGEST, side="right").tolist()} - {0})
    starts = _cheapest_cuts(ends, ordered, cost)
    groups: list[NDArray[np.int64]] = []
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        step = max(1, max_entries // int(ordered[stop - 1]))
        groups.extend(order[at : min(at + step, stop)] for at in range(start, stop, step))
    return groups


def _cheapest_cuts(ends: list[int], ordered: NDArray[np.int32], cost: RunCost) -> list[int]:
    """First rows of the runs that cost least in sum, among cuts between classes."""
    best = [0.0]
    came_from = [0]
    bounds = [0, *ends]
    for last in range(1, len(bounds)):
        width = int(ordered[bounds[last] - 1])
        totals = [
            best[first]
            + cost.seconds(bounds[last] - bounds[first], (bounds[last] - bounds[first]) * width)
            for first in range(last)
        ]
        least = min(totals)
        came_from.append(totals.index(least))
        best.append(least)
    starts: list[int] = []
    at = len(bounds) - 1
    while at:
        at = came_from[at]
        starts.append(bounds[at])
    return starts[::-1]
