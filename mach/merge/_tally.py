"""Compiled tallying of the members of each repetition's best buckets.

Let floor_q be a score for each repetition q, with sum F. No product scores more than F plus, for
each repetition whose bucket scores above its floor, the excess. Those excesses are added up in
8 bits, rounded up, a cached window of the products at a time; only where the sum allows for the
score to be reached is a product scored (Moffat and Zobel's accumulators, "Self-indexing inverted
files for fast text retrieval", ACM TOIS 1996, with bounds in place of a quota).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._bits import is_allowed
from mach.merge._columns import fill_listed, fill_row
from mach.merge._lists import Schedule
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._query import HEAP_SIZE, MEMBERS, REACHED, Query
from mach.merge._runs import AHEAD, expect_run, open_runs, run_row
from mach.merge._select import heap_push
from mach.merge._types import Bool, Float, Int

__all__ = [
    "BATCH",
    "BLOCK",
    "MOST_TALLIED_ROWS",
    "Tally",
    "add_runs",
    "find",
    "is_full",
    "least_of",
    "offer_found",
    "offer_from",
    "set_floors",
]

MOST_TALLIED_ROWS = 128  # codes round up by one each, and have to sum to at most 255
BATCH = 1024  # products scored together
_SCREENED = 16  # fewer are scored at once
BLOCK, _PART = 256, 64  # tallies looked through together; and where there is something in them
_MEAN_OF = 16  # scores, of which one is looked at
_APART, _SAMPLED = 16.0, 32.0  # tallies looked at to guess how many are as large; of the largest
_RARE = 8.0  # blocks for each product wanted: their largest tallies are looked at instead


class Tally(NamedTuple):
    """Arrays for tallying; n repetitions, B buckets."""

    tallies: NDArray[np.uint8]  # (products tallied together,), all 0 between searches
    starts: NDArray[np.int64]  # (n,): where a repetition's runs start in the following
    counts: NDArray[np.int64]  # (n,): how many of them there are
    cursors: NDArray[np.uint32]  # (n * B,): a bucket's next member
    ends: NDArray[np.uint32]  # (n * B,): and its last but one
    offsets: NDArray[np.int32]  # (n * B,): from the members as listed to classes
    codes: NDArray[np.uint8]  # (n * B,): the excess in steps, rounded up
    found_classes: NDArray[np.uint32]  # scratch: products that stand out
    found_codes: NDArray[np.uint8]  # scratch: their tallies
    classes: NDArray[np.uint32]  # (BATCH,), scratch: products scored together
    buckets: NDArray[np.uint32]  # (n, BATCH), scratch: theirs
    totals: NDArray[np.float64]  # (BATCH,), scratch


@njit(nogil=True, cache=True)
def _mean_of_some(row: NDArray[np.float32], most: Float) -> Float:
    """The mean of some of a row's scores, those that are -inf left out; no more than ``most``."""
    total, count = 0.0, 0
    for v in range(0, row.shape[0], _MEAN_OF):
        if row[v] > -np.inf:
            total += np.float64(row[v])
            count += 1
    return min(total / count, most) if count > 0 else most


@njit(nogil=True, cache=True)
def set_floors(
    query: Query,
    plan: AffinePlan | StoredPlan,
    schedule: Schedule,
    step: Int,
    tally: Tally,
    from_means: Bool,
    first: Int,
) -> Float:
    """Code the buckets above the floors after ``step`` steps; the width of a code.

    Their runs are opened at class ``first``, or left as they are where that is below 0: then the
    floors must not be lower than before. Codes say by how much scores exceed the floors, or their
    row's mean. The width is 0 where scores differ by too little to be told apart.
    """
    n = query.scores.shape[0]
    starts, counts = tally.starts, tally.counts
    query.state[REACHED] = step
    for q in range(n):
        query.floors[q] = query.keys[q, 0]
        counts[q] = 0
    for s in range(step):
        query.floors[schedule.rows[s]] = schedule.floors[s]
        counts[schedule.rows[s]] = schedule.ends[s]
    if from_means:
        for q in range(n):
            query.floors[q] = _mean_of_some(query.scores[q], query.floors[q])
    span = 0.0
    for q in range(n):
        span += np.float64(query.keys[q, 0]) - query.floors[q]
    width = span / (254.0 - n)
    if not 1e-30 < width < np.inf:
        return 0.0
    inverse = 1.0 / width
    start = np.int64(0)
    for q in range(n):
        if first >= 0:
            starts[q] = start
            start += counts[q]
            open_runs(plan, q, query.values, counts[q], starts[q], tally, first)
        floor = query.floors[q]
        for i in range(counts[q]):
            excess = np.float64(query.keys[q, i]) - floor
            tally.codes[starts[q] + i] = np.uint8(np.int64(excess * inverse) + 1)
    return width


@njit(nogil=True, cache=True)
def add_runs(
    query: Query, plan: AffinePlan | StoredPlan, tally: Tally, first: Int, length: Int
) -> None:
    """Tally the members among the ``length`` classes from ``first`` on, where all runs are."""
    tallies, cursors, ends = tally.tallies, tally.cursors, tally.ends
    members = np.int64(0)
    for q in range(tally.starts.shape[0]):
        row, start = run_row(plan, q), tally.starts[q]
        last = np.uint64(start + tally.counts[q] - 1)
        for i in range(np.uint64(start), last + np.uint64(1)):
            expect_run(plan, row, np.int64(cursors[min(i + np.uint64(AHEAD), last)]))
            begun = np.int64(cursors[i])
            j, end = begun, np.int64(ends[i])
            shift = np.int64(tally.offsets[i]) - first
            code = tally.codes[i]
            while j < end:
                at = np.int64(row[np.uint64(j)]) + shift
                if at >= length:
                    break
                tallies[np.uint64(at)] += code
                j += 1
            cursors[i] = j
            members += j - begun
    query.state[MEMBERS] += members


@njit(nogil=True, cache=True, inline="always")
def _any_of(tallies: NDArray[np.uint8], start: Int, count: Int, code: Int) -> Bool:
    """Whether one of ``count`` tallies is ``code``, a uint8, or more; in vector instructions."""
    found = np.uint8(0)
    for f in range(count):
        found |= np.uint8(tallies[np.uint64(start) + np.uint64(f)] >= code)
    return found != 0


@njit(nogil=True, cache=True)
def _next_part(tallies: NDArray[np.uint8], start: Int, length: Int, least: Int) -> Int:
    """Where, from ``start`` on, the next part begins that has a tally of ``least`` or more.

    ``length`` or more where none has. Parts begin at multiples of their size.
    """
    if least > 255:
        return length
    code = np.uint8(max(least, 0))
    while start < length:
        if start % BLOCK == 0 and not _any_of(tallies, start, BLOCK, code):
            start += BLOCK
        elif _any_of(tallies, start, _PART, code):
            break
        else:
            start += _PART
    return start


@njit(nogil=True, cache=True)
def least_of(tally: Tally, count: Int, wanted: Int) -> Int:
    """The least tally that no more than ``wanted`` of ``count`` products found have; or 255."""
    histogram = np.zeros(256, np.int64)
    for f in range(count):
        histogram[tally.found_codes[f]] += 1
    least, kept = 256, np.int64(0)
    while least > 1 and kept + histogram[least - 1] <= wanted:
        least -= 1
        kept += histogram[least]
    return np.int64(min(least, 255))


@njit(nogil=True, cache=True)
def _likely_least(query: Query, tally: Tally, first: Int, length: Int, wanted: Float) -> Int:
    """The least tally of about ``wanted`` of the products tallied, by some of them."""
    tallies, histogram = tally.tallies, np.zeros(256, np.int64)
    apart = np.int64(1)
    if query.bitmap.shape[0] == 0 and _RARE * wanted <= length // BLOCK:
        for block in range(0, length, BLOCK):  # few blocks have two of those wanted
            largest = np.uint8(0)
            for f in range(BLOCK):
                largest = max(largest, tallies[np.uint64(block) + np.uint64(f)])
            histogram[largest] += 1
    else:
        apart = np.int64(min(max(wanted / _SAMPLED, 1.0), _APART))
        for f in range(0, length, apart):
            if is_allowed(query.bitmap, first + f):
                histogram[tallies[f]] += 1
    least, found = np.int64(255), np.float64(histogram[255])
    while least > 1 and apart * (found + histogram[least - 1]) <= wanted:
        least -= 1
        found += histogram[least]
    return least


@njit(nogil=True, cache=True)
def find(
    query: Query,
    plan: AffinePlan | StoredPlan,
    first: Int,
    num_classes: Int,
    tally: Tally,
    window: Int,
    wanted: Int,
) -> tuple[Int, Int]:
    """Tally the classes from ``first`` on, and find about ``wanted`` with the largest tallies.

    More where there is room. Returns how many, and the least tally with which all are found.
    """
    tallies, codes, classes = tally.tallies, tally.found_codes, tally.found_classes
    room, least, found = codes.shape[0], np.int64(0), np.int64(0)
    for start in range(first, num_classes, window):
        length = min(window, num_classes - start)
        add_runs(query, plan, tally, start, length)
        if start == first:
            here = wanted * (np.float64(length) / (num_classes - first))
            least = _likely_least(query, tally, start, length, here)
        part = _next_part(tallies, 0, length, least)
        while part < length:
            for f in range(part, part + _PART):
                if np.int64(tallies[f]) < least or not is_allowed(query.bitmap, start + f):
                    continue
                if found == room:
                    # What has the least tally goes; where all have the same, what comes later.
                    least = least_of(tally, found, room // 2)
                    kept = np.int64(0)
                    for i in range(found):
                        codes[kept], classes[kept] = codes[i], classes[i]
                        kept += np.int64(codes[i]) >= least
                    found = kept
                    if found == room:
                        least = np.int64(256)
                    if np.int64(tallies[f]) < least:
                        continue
                classes[found], codes[found] = start + f, tallies[f]
                found += 1
            part = _next_part(tallies, part + _PART, length, least)
        tallies[:length] = 0
    return found, least


@njit(nogil=True, cache=True)
def is_full(query: Query) -> Bool:
    """Whether as many products were found as are wanted."""
    return query.state[HEAP_SIZE] == query.heap_scores.shape[0] and query.heap_scores[0] > -np.inf


@njit(nogil=True, cache=True)
def _offer(query: Query, plan: AffinePlan | StoredPlan, tally: Tally, count: Int) -> None:
    """Score ``tally.classes[:count]``, each the float64 sum in increasing order of repetition."""
    classes, totals = tally.classes, tally.totals
    fill_listed(plan, classes[:count], tally.buckets)
    totals[:count] = 0.0
    for q in range(query.scores.shape[0]):
        row, buckets = query.scores[q], tally.buckets[q]
        for f in range(np.uint64(count)):
            totals[f] += np.float64(row[np.uint64(buckets[f])])
    size = query.state[HEAP_SIZE]
    for f in range(count):
        size = heap_push(
            query.heap_scores, query.heap_classes, size, totals[f], np.int64(classes[f])
        )
    query.state[HEAP_SIZE] = size


@njit(nogil=True, cache=True)
def offer_found(
    query: Query, plan: AffinePlan | StoredPlan, tally: Tally, count: Int, low: Int, high: Int
) -> None:
    """Score the products found with tallies from ``low`` to below ``high``."""
    chosen = np.int64(0)
    for f in range(count):
        if low <= np.int64(tally.found_codes[f]) < high:
            tally.classes[chosen] = tally.found_classes[f]
            chosen += 1
            if chosen == BATCH:
                _offer(query, plan, tally, chosen)
                chosen = np.int64(0)
    _offer(query, plan, tally, chosen)


@njit(nogil=True, cache=True)
def _screen(query: Query, plan: AffinePlan | StoredPlan, tally: Tally, count: Int) -> Int:
    """Drop those of ``tally.classes[:count]`` that do not score enough; how many are left.

    ``tally.totals`` has what their bounds exceed the target by: floors where they are in no bucket
    tallied. A few repetitions' true scores rule most of them out, for far less than all.
    """
    classes, totals = tally.classes, tally.totals
    for q in range(query.scores.shape[0] // 2):
        if count < _SCREENED:
            break
        row, floor, buckets = query.scores[q], query.floors[q], tally.buckets[q]
        fill_row(plan, q, classes[:count], buckets)
        kept = np.uint64(0)
        for f in range(np.uint64(count)):
            left = totals[f] - max(floor - np.float64(row[np.uint64(buckets[f])]), 0.0)
            classes[kept], totals[kept] = classes[f], left
            kept += np.uint64(left >= 0.0)
        count = np.int64(kept)
    return count


@njit(nogil=True, cache=True)
def offer_from(
    query: Query,
    plan: AffinePlan | StoredPlan,
    first: Int,
    length: Int,
    tally: Tally,
    target: Float,
    bound: Float,
    width: Float,
) -> None:
    """Score the products tallied that may score above ``target``, or above the k-th best found.

    ``bound`` is the sum of the floors. The tallies are 0 on return.
    """
    tallies, classes, totals = tally.tallies, tally.classes, tally.totals
    chosen, least = np.int64(0), np.int64(min((target - bound) / width, 255.0)) + 1
    part = _next_part(tallies, 0, length, least)
    while part < length or chosen > 0:
        if part < length:
            for f in range(part, part + _PART):
                if np.int64(tallies[f]) >= least and is_allowed(query.bitmap, first + f):
                    classes[chosen] = first + f
                    totals[chosen] = bound + width * tallies[f] - target
                    chosen += 1
            part = _next_part(tallies, part + _PART, length, least)
        if chosen > BATCH - _PART or part >= length:
            _offer(query, plan, tally, _screen(query, plan, tally, chosen))
            chosen = np.int64(0)
            if is_full(query):
                target = max(target, query.heap_scores[0] - query.tolerances[0])
                least = np.int64(min((target - bound) / width, 255.0)) + 1
    tallies[:length] = 0
