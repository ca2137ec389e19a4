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

from mach.merge._bits import bits_from, trailing_zeros
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
def _sort_falling(
    row: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.int32],
    count: Int,
    coded: NDArray[np.uint64],
    spare: NDArray[np.uint64],
) -> None:
    """Sort ``values[:count]`` by their scores in ``row``, falling, and set ``keys`` to these.

    Radix on 16 bits that code a score, then insertion.
    """
    high, low = np.float32(-np.inf), np.float32(np.inf)
    for i in range(count):
        key = row[np.uint64(values[i])]
        keys[i] = key
        high = max(high, key)
        low = min(low, key if key > -np.inf else np.float32(np.inf))
    scale = 0.0
    if low < high:
        scale = 65_534.0 / (np.float64(high) - np.float64(low))
    places = np.zeros((2, 256), np.int64)
    for i in range(count):
        code = np.uint64(65_535)
        if keys[i] > -np.inf:
            code = np.uint64(np.int64((np.float64(high) - np.float64(keys[i])) * scale))
        places[0, code & np.uint64(255)] += 1
        places[1, code >> np.uint64(8)] += 1
        coded[i] = (code << np.uint64(32)) | np.uint64(values[i])
    for digit in range(2):
        total = 0
        for d in range(256):
            here = places[digit, d]
            places[digit, d] = total
            total += here
        shift = np.uint64(32 + 8 * digit)
        for i in range(count):
            one = coded[i]
            d = (one >> shift) & np.uint64(255)
            spare[places[digit, d]] = one
            places[digit, d] += 1
        coded, spare = spare, coded
    for i in range(count):
        values[i] = np.int32(coded[i] & np.uint64(0xFFFFFFFF))
        keys[i] = row[np.uint64(values[i])]
    # Equal codes may still be out of order, by little unless the scores span many orders of
    # magnitude.
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
    and every bucket not listed scores below ``cutoffs[q]`` (-inf where all are listed). What is
    listed so far stays, so that only more is sorted: begin with counts of 0 and cutoffs of +inf.
    """
    rows, buckets = scores.shape
    sample = np.empty(SAMPLE, np.float32)
    coded, spare = np.empty(buckets, np.uint64), np.empty(buckets, np.uint64)
    whole = buckets - buckets % 64
    for q in range(rows):
        row = scores[q]
        cutoff, past, listed = np.float32(-np.inf), np.float32(cutoffs[q]), counts[q]
        if share < 1.0 and buckets > SAMPLE:
            for i in range(SAMPLE):
                sample[i] = row[i * buckets // SAMPLE]
            cutoff = kth_largest(sample, sample.shape[0], max(1, np.int64(share * SAMPLE)))
            cutoff = min(cutoff, past)
        count = np.uint64(listed)
        for v in range(0, whole, 64):
            bits = bits_from(row, v, cutoff) & ~bits_from(row, v, past)
            while bits != 0:
                values[q, count] = v + trailing_zeros(bits)
                count += np.uint64(1)
                bits &= bits - np.uint64(1)
        for v in range(whole, buckets):
            if cutoff <= row[v] < past:
                values[q, count] = v
                count += np.uint64(1)
        counts[q] = count
        cutoffs[q] = -np.inf if count == buckets else cutoff
        _sort_falling(
            row, keys[q, listed:], values[q, listed:], np.int64(count) - listed, coded, spare
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
