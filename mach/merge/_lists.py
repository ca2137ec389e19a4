"""Compiled preparation of one query: each repetition's best buckets, sorted, and how deep to go.

The search (``_ring``) walks every repetition's buckets from the best down. How far down, and in
which repetition first, is the schedule: blocks of buckets in the order of how much the bound
falls for the products that have to be looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._query import Query
from mach.merge._select import kth_largest, sort_falling
from mach.merge._types import Bool, Float, Int

__all__ = ["Schedule", "collect", "plan_lists", "step_at", "survey"]

SAMPLE = 256
_FIRST_BLOCK = 256  # members of a row's first block, or one bucket's
_INFINITY, _MINUS_INFINITY = 0x7F800000, -0x7F800001  # as ordered integers, see `survey`


class Schedule(NamedTuple):
    """The order in which the lists are walked, see :func:`plan_lists`."""

    rows: NDArray[np.int32]
    ends: NDArray[np.int32]
    floors: NDArray[np.float64]
    bounds: NDArray[np.float64]
    costs: NDArray[np.float64]


@njit(nogil=True, cache=True)
def survey(scores: NDArray[np.float32], tops: NDArray[np.float32]) -> Bool:
    """Find each row's best score; False if a score is NaN or +inf.

    In integers, which compare many at a time: a float32's bits, the lower 31 flipped where the
    sign is set, order as the floats do, with NaN beyond the infinities.
    """
    bits = scores.view(np.int32)
    for q in range(scores.shape[0]):
        largest, smallest = np.int32(_MINUS_INFINITY), np.int32(_INFINITY)
        for v in range(scores.shape[1]):
            ordered = bits[q, v] ^ ((bits[q, v] >> np.int32(31)) & np.int32(0x7FFFFFFF))
            largest = max(largest, ordered)
            smallest = min(smallest, ordered)
        if largest >= _INFINITY or smallest < _MINUS_INFINITY:
            return False
        word = np.empty(1, np.int32)
        word[0] = largest ^ ((largest >> np.int32(31)) & np.int32(0x7FFFFFFF))
        tops[q] = word.view(np.float32)[0]
    return True


@njit(nogil=True, cache=True)
def _sort_falling(  # noqa: PLR0912
    keys: NDArray[np.float32],
    values: NDArray[np.int32],
    count: Int,
    codes: NDArray[np.uint16],
    spare_keys: NDArray[np.float32],
    spare_values: NDArray[np.int32],
    spare_codes: NDArray[np.uint16],
) -> None:
    """Sort ``keys[:count]`` falling and ``values`` with them: radix on 16 bits, then insertion."""
    high = keys[0]
    low = np.float32(np.inf)
    for i in range(count):
        high = max(high, keys[i])
        if keys[i] > -np.inf:
            low = min(low, keys[i])
    scale = 0.0
    if low < high:
        scale = 65_534.0 / (np.float64(high) - np.float64(low))
    for i in range(count):
        if keys[i] > -np.inf:
            codes[i] = np.uint16((np.float64(high) - np.float64(keys[i])) * scale)
        else:
            codes[i] = np.uint16(65_535)
    position = np.empty(256, np.int64)
    for shift in (0, 8):
        position[:] = 0
        for i in range(count):
            position[(codes[i] >> shift) & 255] += 1
        total = 0
        for digit in range(256):
            here = position[digit]
            position[digit] = total
            total += here
        for i in range(count):
            digit = (codes[i] >> shift) & 255
            to = position[digit]
            position[digit] = to + 1
            spare_keys[to] = keys[i]
            spare_values[to] = values[i]
            spare_codes[to] = codes[i]
        keys, spare_keys = spare_keys, keys
        values, spare_values = spare_values, values
        codes, spare_codes = spare_codes, codes
    # Two passes: the sorted data is back where it came from. Equal codes may still be out of
    # order, by little unless the scores span many orders of magnitude.
    moves = 0
    for i in range(1, count):
        key, value = keys[i], values[i]
        j = i
        while j > 0 and keys[j - 1] < key:
            keys[j], values[j] = keys[j - 1], values[j - 1]
            j -= 1
        keys[j], values[j] = key, value
        moves += i - j
        if moves > 16 * count:
            sort_falling(keys, values, count)
            return


@njit(nogil=True, cache=True)
def collect(
    scores: NDArray[np.float32],
    share: Float,
    keys: NDArray[np.float32],
    values: NDArray[np.int32],
    counts: NDArray[np.int64],
    cutoffs: NDArray[np.float64],
) -> None:
    """List each row's best buckets, about ``share`` of all, best first.

    On return row q has the scores ``keys[q, :counts[q]]`` of buckets ``values[q, :counts[q]]``,
    and every bucket not listed scores below ``cutoffs[q]`` (-inf where all are listed).
    """
    rows, buckets = scores.shape
    sample = np.empty(SAMPLE, np.float32)
    codes = np.empty(buckets, np.uint16)
    spare_codes = np.empty(buckets, np.uint16)
    spare_keys = np.empty(buckets, np.float32)
    spare_values = np.empty(buckets, np.int32)
    for q in range(rows):
        row = scores[q]
        cutoff = np.float32(-np.inf)
        if share < 1.0 and buckets > SAMPLE:
            for i in range(SAMPLE):
                sample[i] = row[i * buckets // SAMPLE]
            cutoff = kth_largest(sample, sample.shape[0], max(1, np.int64(share * SAMPLE)))
        count = np.uint64(0)
        for v in range(buckets):
            values[q, count] = v
            count += np.uint64(row[v] >= cutoff)
        for i in range(count):
            keys[q, i] = row[np.uint64(values[q, i])]
        counts[q] = count
        cutoffs[q] = -np.inf if count == buckets else cutoff
        _sort_falling(
            keys[q], values[q], np.int64(count), codes, spare_keys, spare_values, spare_codes
        )


@njit(nogil=True, cache=True)
def _plan_steps(  # noqa: PLR0912, PLR0915
    keys: NDArray[np.float32],
    values: NDArray[np.int32],
    counts: NDArray[np.int64],
    cutoffs: NDArray[np.float64],
    sizes: NDArray[np.int64],
    mean_size: Float,
    limit: Float,
    least: Int,
    step_rows: NDArray[np.int32],
    step_ends: NDArray[np.int32],
    step_floors: NDArray[np.float64],
    bounds: NDArray[np.float64],
    costs: NDArray[np.float64],
) -> Int:
    """The order in which to walk the lists; the number of steps.

    Step s takes row ``step_rows[s]``'s list down to ``step_ends[s]``; then no bucket left in that
    row scores above ``step_floors[s]``. After s steps no product outside of all buckets taken
    scores above ``bounds[s]``, and ``costs[s]`` products have been listed. Steps are chosen by how
    much the bound falls per product, and stop at ``limit`` products.

    ``sizes[q, v]`` is how many products a bucket has, or is empty where all have ``mean_size``.
    """
    rows = keys.shape[0]
    ends = np.zeros(rows, np.int64)  # where the row's next block ends
    taken = np.zeros(rows, np.int64)
    floors = np.empty(rows, np.float64)
    next_floors = np.empty(rows, np.float64)
    prices = np.empty(rows, np.float64)
    gains = np.empty(rows, np.float64)
    bound = 0.0
    for q in range(rows):
        floors[q] = keys[q, 0]
        bound += floors[q]
    bounds[0] = bound
    costs[0] = 0.0
    for q in range(rows):
        gains[q] = -1.0
    steps = 0
    pending = -1  # the row whose next block must be worked out; -1: all rows
    while steps < step_rows.shape[0]:
        for q in range(rows):
            if pending >= 0 and q != pending:
                continue
            start, count = taken[q], counts[q]
            if start == count:
                gains[q] = -1.0
                continue
            end = start + max(least, start // 4)
            while end < count and keys[q, end] == keys[q, end - 1]:
                end += 1  # a block ends where the score falls
            end = min(end, count)
            ends[q] = end
            next_floors[q] = keys[q, end] if end < count else cutoffs[q]
            if sizes.shape[0] == 0:
                prices[q] = (end - start) * mean_size
            else:
                price = 0
                for i in range(start, end):
                    price += sizes[q, values[q, i]]
                prices[q] = price + 1.0
            gain = (floors[q] - next_floors[q]) / prices[q]
            gains[q] = gain if gain >= 0 else 0.0  # -inf - -inf
        best = 0
        for q in range(1, rows):
            if gains[q] > gains[best]:
                best = q
        if gains[best] < 0 or costs[steps] + prices[best] > limit:
            break
        step_rows[steps] = best
        step_ends[steps] = ends[best]
        step_floors[steps] = next_floors[best]
        taken[best] = ends[best]
        floors[best] = next_floors[best]
        bound = 0.0
        for q in range(rows):
            bound += floors[q]
        steps += 1
        bounds[steps] = bound
        costs[steps] = costs[steps - 1] + prices[best]
        pending = best
    return steps


@njit(nogil=True, cache=True)
def plan_lists(
    query: Query,
    schedule: Schedule,
    sizes: NDArray[np.int64],
    mean_size: Float,
    most_members: Float,
) -> Int:
    """Fill the schedule for the query's lists, and its tolerances; the number of steps."""
    n = query.scores.shape[0]
    num_steps = _plan_steps(
        query.keys,
        query.values,
        query.counts,
        query.cutoffs,
        sizes,
        mean_size,
        most_members,
        max(1, np.int64(_FIRST_BLOCK / mean_size)),
        schedule.rows,
        schedule.ends,
        schedule.floors,
        schedule.bounds,
        schedule.costs,
    )
    # A product scoring S has magnitudes of at most sum(|M_q|) + sum(M_q) - S to sum, see `_scan`;
    # the walk asks about products scoring above the last bound, and subtracts the floors too.
    magnitude = 0.0
    lowest = schedule.bounds[0]
    for q in range(n):
        magnitude += abs(np.float64(query.tops[q]))
    for s in range(num_steps + 1):
        if schedule.bounds[s] > -np.inf:
            lowest = schedule.bounds[s]
    span = 4.0 * n * (magnitude + schedule.bounds[0] - lowest)
    for precision, exponent in enumerate((-52.0, -23.0)):
        query.tolerances[precision] = span * 2.0**exponent if span < np.inf else 0.0
    return num_steps


@njit(nogil=True, cache=True)
def step_at(schedule: Schedule, num_steps: Int, below: Float, cost: Float) -> Int:
    """The first step with a bound below ``below`` or that costs ``cost``, or the last."""
    step = np.int64(0)
    while step < num_steps and schedule.costs[step] < cost and not schedule.bounds[step] < below:
        step += 1
    return step
