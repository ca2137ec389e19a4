"""Compiled walk over the members of a block of one repetition's best buckets, stored ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._plan import StoredPlan
from mach.merge._query import MEMBERS, STEPS, Query, offer
from mach.merge._select import seen_has
from mach.merge._types import Float, Int

__all__ = ["exact_stored", "walk_stored"]


@njit(nogil=True, cache=True)
def _step_stored(
    row: NDArray[np.float32],
    floor: Float,
    column: NDArray[Any],
    tolerance: Float,
    found: NDArray[np.uint32],
    sums: NDArray[np.float32],
    count: Int,
) -> Int:
    """:func:`_step` for an explicit assignment; ``column`` is one repetition's buckets."""
    floor32 = np.float32(floor)
    least = np.float32(-tolerance)
    kept = np.uint64(0)
    for f in range(np.uint64(count)):
        label = found[f]
        total = sums[f] + (row[np.uint64(column[np.uint64(label)])] - floor32)
        found[kept] = label
        sums[kept] = total
        kept += np.uint64(not total < least)
    return np.int64(kept)


@njit(nogil=True, cache=True)
def exact_stored(scores: NDArray[np.float32], plan: StoredPlan, label: Int) -> Float:
    """A product's score: the float64 sum in increasing order of repetition."""
    total = 0.0
    for q in range(scores.shape[0]):
        total += np.float64(scores[q, plan.assignment[label, plan.repetitions[q]]])
    return total


@njit(nogil=True, cache=True)
def walk_stored(query: Query, plan: StoredPlan, q: Int, start: Int, end: Int) -> None:
    """:func:`walk_affine` for an explicit assignment, by its inverted lists."""
    scores, floors, bitmap = query.scores, query.floors, query.bitmap
    found, sums, repetitions = query.found, query.sums, plan.repetitions
    members, starts = plan.members[repetitions[q]], plan.starts[repetitions[q]]
    n = scores.shape[0]
    floor = floors[q]
    for i in range(start, end):
        slack = np.float64(query.keys[q, i]) - floor
        if slack < -query.tolerances[1]:
            break  # the floors have risen meanwhile
        bucket = query.values[q, i]
        first, last = starts[bucket], starts[bucket + 1]
        query.state[MEMBERS] += last - first
        for batch in range(first, last, found.shape[0]):
            count = 0
            for m in range(batch, min(last, batch + found.shape[0])):
                label = members[m]
                allowed = np.uint8(1)
                if bitmap.shape[0] > 0:
                    allowed = (bitmap[label >> np.uint32(3)] >> np.uint8(label & np.uint32(7))) & 1
                found[count] = label
                sums[count] = slack
                count += int(allowed)
            for step in range(1, n):
                if count == 0:
                    break
                at = q + step if q + step < n else q + step - n
                query.state[STEPS] += count
                count = _step_stored(
                    scores[at],
                    floors[at],
                    plan.assignment[:, repetitions[at]],
                    query.tolerances[1],
                    found,
                    sums,
                    count,
                )
            for f in range(count):
                label = np.int64(found[f])
                if seen_has(query.seen, label):
                    continue
                offer(query, exact_stored(scores, plan, label), label)
