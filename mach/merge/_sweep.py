"""Compiled search and proof by tallies, one window of the products after another."""

from __future__ import annotations

import numpy as np
from numba import njit

from mach.merge._lists import Schedule, step_at
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._query import HEAP_SIZE, Query
from mach.merge._select import heap_push
from mach.merge._tally import (
    Tally,
    add_runs,
    find,
    is_full,
    least_of,
    offer_found,
    offer_from,
    set_floors,
)
from mach.merge._types import Bool, Float, Int

__all__ = ["cost_of", "cost_to_sweep", "estimate", "scout", "sweep", "try_floors"]

_SCOUTED, _STANDING_OUT = 3, 10  # products scored for each wanted, to see what score is reached
# Standard deviations of the products wanted that a sample may have more, where it costs no more.
_SPREAD, _SAFE_COST = 2.0, 2.0
# Members tallied for a proof, over what floors just low enough take; more for a share of all.
_PROVING, _PROVING_MORE, _PROVING_MOST = 1.2, 10.0, 3.0


@njit(nogil=True, cache=True)
def cost_of(schedule: Schedule, num_steps: Int, target: Float) -> Float:
    """How many members are above floors just low enough for ``target``; +inf if not planned."""
    step = step_at(schedule, num_steps, target, np.inf)
    return schedule.costs[step] if schedule.bounds[step] < target else np.inf


@njit(nogil=True, cache=True)
def cost_to_sweep(cost: Float, most: Float) -> Float:
    """How many members to tally where ``cost`` are above floors just low enough, see ``cost_of``.

    ``most`` is how many members there are in all. The more of them it takes, the more products
    sum up many small excesses, and the further below the target the floors have to be.
    """
    return cost * min(_PROVING + _PROVING_MORE * cost / most, _PROVING_MOST)


@njit(nogil=True, cache=True)
def estimate(query: Query, schedule: Schedule, num_steps: Int, share: Float) -> Float:
    """The k-th best score of all where the heap has the best of a ``share`` of the products.

    They may have more of the k best than their share, by some standard deviations, which is allowed
    for as far as that does not cost far more than not to.
    """
    scores = np.sort(query.heap_scores[: query.state[HEAP_SIZE]])
    last = scores.shape[0] - 1
    expected = query.heap_scores.shape[0] * share
    likely = max(last - np.int64(expected), 0)
    least = max(last - np.int64(expected + _SPREAD * np.sqrt(expected * (1.0 - share))), 0)
    most = _SAFE_COST * cost_of(schedule, num_steps, scores[likely])
    if most < np.inf:
        while least < likely and cost_of(schedule, num_steps, scores[least]) > most:
            least += 1
    return scores[least] - query.tolerances[0]


@njit(nogil=True, cache=True)
def scout(
    query: Query,
    plan: AffinePlan | StoredPlan,
    first: Int,
    num_classes: Int,
    schedule: Schedule,
    step: Int,
    tally: Tally,
    window: Int,
) -> Bool:
    """Score products from ``first`` on that probably are the best; whether the heap is full.

    They are those whose scores in the buckets above the floors after ``step`` steps, and their
    rows' means elsewhere, have the largest sums.
    """
    query.state[HEAP_SIZE] = 0
    if set_floors(query, plan, schedule, step, tally, True, first) == 0.0:
        return False
    wanted = _SCOUTED * query.heap_scores.shape[0]
    found, _ = find(query, plan, first, num_classes, tally, window, wanted)
    offer_found(query, plan, tally, found, 0, 256)
    return is_full(query)


@njit(nogil=True, cache=True)
def try_floors(
    query: Query,
    plan: AffinePlan | StoredPlan,
    num_classes: Int,
    schedule: Schedule,
    step: Int,
    tally: Tally,
    window: Int,
) -> Bool:
    """The same with the floors themselves for means; True if these are proven to be the best."""
    query.state[HEAP_SIZE] = 0
    width = set_floors(query, plan, schedule, step, tally, False, 0)
    if width == 0.0:
        return False
    wanted = tally.found_codes.shape[0] // 4
    found, least = find(query, plan, 0, num_classes, tally, window, wanted)
    high = least_of(tally, found, _STANDING_OUT * query.heap_scores.shape[0])
    offer_found(query, plan, tally, found, high, 256)
    if not is_full(query):
        return False
    # Products tallied at less than this score less than what is reached.
    over = (query.heap_scores[0] - query.tolerances[0] - schedule.bounds[step]) / width
    if over < 0.0 or over + 1.0 < least:
        return False
    offer_found(query, plan, tally, found, np.int64(min(over, 255.0)) + 1, high)
    return True


@njit(nogil=True, cache=True)
def _forget(query: Query, first: Int, past: Int) -> None:
    """Drop the classes from ``first`` to below ``past`` from the heap."""
    scores, classes = query.heap_scores, query.heap_classes
    old_scores, old_classes = scores.copy(), classes.copy()
    size = np.int64(0)
    for i in range(query.state[HEAP_SIZE]):
        if not first <= old_classes[i] < past:
            size = heap_push(scores, classes, size, old_scores[i], old_classes[i])
    query.state[HEAP_SIZE] = size


@njit(nogil=True, cache=True)
def sweep(
    query: Query,
    plan: AffinePlan | StoredPlan,
    num_classes: Int,
    schedule: Schedule,
    num_steps: Int,
    tally: Tally,
    window: Int,
    begin: Int,
    sample_from: Int,
    target: Float,
) -> Int:
    """Find all products from ``begin`` on that score above ``target``, which rises meanwhile.

    Both ``begin`` and ``sample_from`` are a window's first class, or ``num_classes``. The heap has
    all such products before ``begin``, and perhaps others; of a sample, the classes from
    ``sample_from`` on, at first good ones only. Returns from where on targets proved too high,
    which are estimates while there is a sample: ``num_classes`` if the heap has the k best.
    """
    most = np.float64(query.scores.shape[0] * num_classes)
    targets = np.empty(-(-num_classes // window), np.float64)
    step, width = num_steps + 1, 0.0
    for first in range(begin, num_classes, window):
        if begin < first < sample_from < num_classes:
            share = np.float64(first + num_classes - sample_from) / num_classes
            target = max(target, estimate(query, schedule, num_steps, share))
        if is_full(query):
            target = max(target, query.heap_scores[0] - query.tolerances[0])
        targets[first // window] = target
        aim = cost_to_sweep(cost_of(schedule, num_steps, target), most)
        enough = step_at(schedule, num_steps, -np.inf, aim)
        if enough < step:
            step = enough
            opened = first if first == begin else np.int64(-1)
            width = set_floors(query, plan, schedule, step, tally, False, opened)
            if width == 0.0:
                return 0
        length = min(window, num_classes - first)
        _forget(query, first, first + length)  # good ones are found again
        add_runs(query, plan, tally, first, length)
        offer_from(query, plan, first, length, tally, target, schedule.bounds[step], width)
    if not is_full(query):
        return 0
    for first in range(begin, num_classes, window):
        if targets[first // window] > query.heap_scores[0] - query.tolerances[0]:
            return first
    return num_classes
