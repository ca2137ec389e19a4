"""Compiled exact search by tallying the members of each repetition's best buckets.

Let floor_q be a score for each repetition q, with sum F. No product scores more than F plus, for
each repetition whose bucket scores above its floor, the excess. Those excesses are added up in
8 bits, rounded up, a cached part of the products at a time; only where the sum allows for the
score to be reached is a product scored (Moffat and Zobel's accumulators, "Self-indexing inverted
files for fast text retrieval", ACM TOIS 1996, with bounds in place of a quota).

First a few buckets of each repetition are tallied, to score the products that stand out: the k-th
best of these is a score to be reached. Then the floors are lowered until F falls short of it, and
further, so that one bucket alone seldom makes up for the difference.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._bits import is_allowed
from mach.merge._lists import Schedule, collect, plan_lists, step_at
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._query import HEAP_SIZE, MEMBERS, REACHED, Query
from mach.merge._runs import exact, open_runs, run_row
from mach.merge._select import heap_push
from mach.merge._types import Bool, Float, Int

__all__ = ["CLASS_COST", "MOST_TALLIED_ROWS", "Tally", "first_costs", "scout", "tally_search"]

_FAILED, _GOOD, _PROVEN = 0, 1, 2

MOST_TALLIED_ROWS = 128  # codes round up by one each, and have to sum to at most 255
_BLOCK = 256  # tallies looked through together
_MEAN_OF = 16  # scores, of which one is looked at
_STANDING_OUT = 10  # products scored then for each wanted, to see what score is reached
# Members tallied to prove it, over what floors just low enough take; more for a share of all.
_PROVING, _PROVING_MORE, _PROVING_MOST = 1.4, 10.0, 3.0
_TOO_DEEP, _DEEPER = 6.0, 3.0  # more members than that is not believed, but this many tried first
_LISTED = 2.0  # buckets sorted for each tallied at first
_MEMBER_COST, CLASS_COST, _RUN_COST = 1.0, 0.06, 5.0  # nanoseconds


class Tally(NamedTuple):
    """Arrays for tallying; n repetitions, B buckets."""

    tallies: NDArray[np.uint8]  # (products tallied together,), all 0 between searches
    starts: NDArray[np.int64]  # (n + 1,): where a repetition's runs start in the following
    cursors: NDArray[np.uint32]  # (n * B,): a bucket's next member
    ends: NDArray[np.uint32]  # (n * B,): and its last but one
    offsets: NDArray[np.int32]  # (n * B,): from the members as listed to classes
    codes: NDArray[np.uint8]  # (n * B,): the excess in steps, rounded up
    found_classes: NDArray[np.uint32]  # scratch: products that stand out
    found_codes: NDArray[np.uint8]  # scratch: their tallies


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
def _set_floors(
    query: Query,
    plan: AffinePlan | StoredPlan,
    schedule: Schedule,
    step: Int,
    tally: Tally,
    from_means: Bool,
) -> Float:
    """Open the runs of the buckets above the floors after ``step`` steps; the width of a code.

    Codes say by how much scores exceed the floors, or their row's mean. The width is 0 where
    scores differ by too little to be told apart.
    """
    n = query.scores.shape[0]
    query.state[REACHED] = step
    taken = np.zeros(n, np.int64)
    for q in range(n):
        query.floors[q] = query.keys[q, 0]
    for s in range(step):
        query.floors[schedule.rows[s]] = schedule.floors[s]
        taken[schedule.rows[s]] = schedule.ends[s]
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
    tally.starts[0] = 0
    for q in range(n):
        start = tally.starts[q]
        tally.starts[q + 1] = start + taken[q]
        floor = query.floors[q]
        for i in range(taken[q]):
            excess = np.float64(query.keys[q, i]) - floor
            tally.codes[start + i] = np.uint8(np.int64(excess * inverse) + 1)
        open_runs(plan, q, query.values, taken[q], start, tally)
    return width


@njit(nogil=True, cache=True)
def _add_runs(plan: AffinePlan | StoredPlan, tally: Tally, first: Int, length: Int) -> Int:
    """Tally the members among the classes from ``first`` on; how many they are."""
    tallies, cursors, ends = tally.tallies, tally.cursors, tally.ends
    members = np.int64(0)
    for q in range(tally.starts.shape[0] - 1):
        row = run_row(plan, q)
        for i in range(np.uint64(tally.starts[q]), np.uint64(tally.starts[q + 1])):
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
    return members


@njit(nogil=True, cache=True)
def _least_of(tally: Tally, count: Int, wanted: Int) -> Int:
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
def _offer_found(
    query: Query, plan: AffinePlan | StoredPlan, tally: Tally, count: Int, low: Int, high: Int
) -> None:
    """Score the products found with tallies from ``low`` to below ``high``."""
    size = query.state[HEAP_SIZE]
    for f in range(count):
        if low <= np.int64(tally.found_codes[f]) < high:
            label = np.int64(tally.found_classes[f])
            score = exact(query.scores, plan, label)
            size = heap_push(query.heap_scores, query.heap_classes, size, score, label)
    query.state[HEAP_SIZE] = size


@njit(nogil=True, cache=True)
def _find(
    query: Query, plan: AffinePlan | StoredPlan, num_classes: Int, tally: Tally, least: Int
) -> tuple[Int, Int]:
    """Find the products tallied at ``least`` or more; what there is no room for is offered.

    Where ``least`` is 0, find those with the largest tallies, as many as there is room for.
    Returns how many were found, and the least tally with which all are.
    """
    tallies, codes, classes = tally.tallies, tally.found_codes, tally.found_classes
    room = codes.shape[0]
    some, least, found = least == 0, max(least, np.int64(1)), np.int64(0)
    for first in range(0, num_classes, tallies.shape[0]):
        length = min(tallies.shape[0], num_classes - first)
        query.state[MEMBERS] += _add_runs(plan, tally, first, length)
        for block in range(0, length, _BLOCK):
            past = min(length, block + _BLOCK)
            largest = np.uint8(0)
            for f in range(np.uint64(block), np.uint64(past)):
                largest = max(largest, tallies[f])
            if np.int64(largest) < least:
                continue
            for f in range(block, past):
                if np.int64(tallies[f]) < least or not is_allowed(query.bitmap, first + f):
                    continue
                if found == room and not some:
                    _offer_found(query, plan, tally, found, 0, 256)
                    found = np.int64(0)
                elif found == room:
                    # What has the least tally goes; where all have the same, what comes later.
                    least = _least_of(tally, found, room // 2)
                    kept = np.int64(0)
                    for i in range(found):
                        codes[kept], classes[kept] = codes[i], classes[i]
                        kept += np.int64(codes[i]) >= least
                    found = kept
                    if found == room:
                        least = np.int64(256)
                    if np.int64(tallies[f]) < least:
                        continue
                classes[found], codes[found] = first + f, tallies[f]
                found += 1
        tallies[:length] = 0
    return found, least


@njit(nogil=True, cache=True)
def _proving_step(schedule: Schedule, num_steps: Int, threshold: Float, most: Float) -> Int:
    """The step likely to prove a k-th best score of ``threshold``; -1 if it is not planned.

    ``most`` is how many members there are in all. The more of them it takes, the more products
    sum up many small excesses, and the further below the threshold the floors have to be.
    """
    step = step_at(schedule, num_steps, threshold, np.inf)
    cost = schedule.costs[step]
    aim = cost * min(_PROVING + _PROVING_MORE * cost / most, _PROVING_MOST)
    if not schedule.bounds[step] < threshold:
        return -1
    while step < num_steps and schedule.costs[step] < aim:
        step += 1
    if schedule.costs[step] < aim or not schedule.bounds[step] > -np.inf:
        return -1
    return step


@njit(nogil=True, cache=True)
def _score_outstanding(
    query: Query, plan: AffinePlan | StoredPlan, num_classes: Int, tally: Tally
) -> tuple[Bool, Int, Int, Int]:
    """Tally, and fill the heap with the best of those that stand out.

    Returns whether it is full, how many products were found, the least tally with which all are,
    and the least tally of those that were scored.
    """
    found, least = _find(query, plan, num_classes, tally, 0)
    query.state[HEAP_SIZE] = 0
    high = _least_of(tally, found, _STANDING_OUT * query.heap_scores.shape[0])
    _offer_found(query, plan, tally, found, high, 256)
    full = query.state[HEAP_SIZE] == query.heap_scores.shape[0]
    return full and query.heap_scores[0] > -np.inf, found, least, high


@njit(nogil=True, cache=True)
def first_costs(
    query: Query, num_classes: Int, tally: Tally, first_buckets: Float
) -> tuple[Float, Float]:
    """How many members to tally at first, and what one costs in nanoseconds."""
    n, buckets = query.scores.shape
    mean_size = num_classes / buckets
    member_cost = _MEMBER_COST + _RUN_COST * (1.0 / mean_size + 1.0 / tally.tallies.shape[0])
    return first_buckets * np.sqrt(query.heap_scores.shape[0]) * n * mean_size, member_cost


@njit(nogil=True, cache=True)
def scout(
    query: Query,
    plan: AffinePlan | StoredPlan,
    num_classes: Int,
    schedule: Schedule,
    step: Int,
    tally: Tally,
) -> Bool:
    """Score products that probably are the best; whether the heap is full of them.

    They are those whose scores in the buckets above the floors after ``step`` steps, and their
    rows' means elsewhere, have the largest sums.
    """
    if _set_floors(query, plan, schedule, step, tally, True) == 0.0:
        return False
    return _score_outstanding(query, plan, num_classes, tally)[0]


@njit(nogil=True, cache=True)
def _try_step(
    query: Query,
    plan: AffinePlan | StoredPlan,
    num_classes: Int,
    schedule: Schedule,
    step: Int,
    tally: Tally,
) -> Int:
    """Tally down to the floors after ``step`` steps and score the products that stand out.

    What is in the heap then is _GOOD, or even _PROVEN to be the best; _FAILED where it is not full.
    """
    width = _set_floors(query, plan, schedule, step, tally, False)
    if width == 0.0:
        return _FAILED
    full, found, least, high = _score_outstanding(query, plan, num_classes, tally)
    if not full:
        return _FAILED
    # Products tallied at less than this score less than what is reached.
    over = (query.heap_scores[0] - query.tolerances[0] - schedule.bounds[step]) / width
    if over >= 0.0 and over + 1.0 >= least:
        _offer_found(query, plan, tally, found, np.int64(min(over, 255.0)) + 1, high)
        return _PROVEN
    return _GOOD


@njit(nogil=True, cache=True)
def tally_search(  # noqa: PLR0912
    query: Query,
    plan: AffinePlan | StoredPlan,
    num_classes: Int,
    schedule: Schedule,
    sizes: NDArray[np.int64],
    tally: Tally,
    first_buckets: Float,
    most_share: Float,
    most_work: Float,
) -> Bool:
    """Fill the heap with the k best, if that takes no more than ``most_work`` nanoseconds.

    Otherwise False, and the heap holds some good products. ``first_buckets`` of a repetition are
    tallied at first for one product wanted, more by its root; and at most ``most_share`` of its
    buckets are sorted.
    """
    n, buckets = query.scores.shape
    mean_size = num_classes / buckets
    query.state[:] = 0
    # Of the tallies to be made next.
    cost, member_cost = first_costs(query, num_classes, tally, first_buckets)
    most_members = (most_work - CLASS_COST * num_classes) / member_cost
    share = _LISTED * cost / (n * num_classes)
    reached = -np.inf
    if share > most_share or cost > most_members:
        return False
    num_steps, step = np.int64(0), np.int64(-1)
    while True:
        if step < 0:
            collect(query.scores, share, query.keys, query.values, query.counts, query.cutoffs)
            num_steps = plan_lists(query, schedule, sizes, mean_size, most_members)
        if reached == -np.inf:
            step = step_at(schedule, num_steps, -np.inf, cost)
        else:
            threshold = reached - query.tolerances[0]
            step = _proving_step(schedule, num_steps, threshold, np.float64(n * num_classes))
            if step < 0 and share < most_share:
                share = most_share
                continue
        if step <= 0 or not schedule.bounds[step] > -np.inf:
            return False
        # Floors that would have to be so much lower may only seem to: the best are not yet known.
        tries = reached == -np.inf
        if not tries and schedule.costs[step] > _TOO_DEEP * cost:
            tries = True
            while schedule.costs[step] > _DEEPER * cost:
                step -= 1
            if schedule.costs[step] <= cost:
                step += 1  # one step alone is more than that
        cost = schedule.costs[step]
        most_members -= cost
        if tries:
            status = _try_step(query, plan, num_classes, schedule, step, tally)
            if status != _GOOD:
                return status == _PROVEN
            reached = max(reached, query.heap_scores[0])
            continue
        width = _set_floors(query, plan, schedule, step, tally, False)
        if width == 0.0:
            return False
        least = np.int64((reached - query.tolerances[0] - schedule.bounds[step]) / width) + 1
        query.state[HEAP_SIZE] = 0
        found, least = _find(query, plan, num_classes, tally, least)
        _offer_found(query, plan, tally, found, 0, 256)
        return True
