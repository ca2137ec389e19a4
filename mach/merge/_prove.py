"""Compiled exact search in two parts: what score is reached, then the proof.

Each repetition's best buckets are tallied (``_tally``) for the last products only, and those that
stand out are scored: a sample, from which the k-th best score of all is estimated, with some to
spare. Where products are few, fewer buckets of all: the k-th best found is then a score that is
reached. Where a sample is too small, more of all. With floors that this score allows, the proof
finds whatever scores more: for affine hashes with many members in a bucket the ring (``_ring``),
which looks at most members in words of 64, else tallies of one window of the products after another
(``_sweep``). Where fewer than k do, the k-th best found is a score that is reached, and the proof
starts over.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._lists import Schedule, collect, plan_lists, step_at
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._query import Query
from mach.merge._ring import ring_proof
from mach.merge._sweep import cost_of, cost_to_sweep, estimate, scout, sweep, try_floors
from mach.merge._tally import BLOCK, Tally, is_full
from mach.merge._types import Bool, Float, Int

__all__ = ["prove_search"]

_CLASS_COST, _RUN_COST = 0.06, 6.0  # nanoseconds, of tallying
# Nanoseconds of the ring, of a bucket and its members: more where more of them pass its first test.
_RING_BUCKET, _RING_MEMBER, _RING_DEEPER = 250.0, 0.45, 31.0
# At least so many windows of a table, where each then has so many of a bucket's members.
_WINDOWS, _WINDOW_RUN = 4, 15.0
_SAMPLE, _MOST_SAMPLE = 1 / 16, 0.5  # of the products, scouted; past that, all
_SAMPLED = 6.0  # of the products wanted that the sample should have
_SAMPLE_DEPTH = 0.4  # buckets tallied for each where all products are
_FEW_WINDOWS, _ALL_DEPTH = 8, 0.27  # of which all are sampled; buckets tallied then
_SHALLOW = 5.0  # times as many that a proof seems to take, and the sample says too little
_DEEPER = 4.0  # times as many that are tallied then at most
# Buckets sorted for each tallied at first; for each tallied then, or where that is not known, for
# each sorted before.
_LISTED, _TO_LIST, _MORE_LISTED = 2.0, 1.5, 2.0


@njit(nogil=True, cache=True)
def _window(num_classes: Int, mean_size: Float, tally: Tally) -> Int:
    """How many products to tally together: whole blocks."""
    number = -(-num_classes // (tally.tallies.shape[0] // BLOCK * BLOCK))
    if mean_size >= _WINDOWS * _WINDOW_RUN:
        number = max(number, _WINDOWS)
    return -(-num_classes // (number * BLOCK)) * BLOCK


@njit(nogil=True, cache=True)
def _sampled_target(
    query: Query,
    plan: AffinePlan | StoredPlan,
    first: Int,
    num_classes: Int,
    schedule: Schedule,
    num_steps: Int,
    tally: Tally,
    window: Int,
    depth: Float,
) -> Float:
    """What the k-th best product is likely to score, by those from ``first`` on; +inf if unknown.

    ``depth`` members are tallied for each where all products are, and more where what is found
    says that good products have no better buckets.
    """
    share = np.float64(num_classes - first) / num_classes
    target = np.inf
    for _ in range(2):
        step = step_at(schedule, num_steps, -np.inf, depth)
        if step == 0 or not schedule.bounds[step] > -np.inf:
            break
        if not scout(query, plan, first, num_classes, schedule, step, tally, window):
            return np.inf
        target = estimate(query, schedule, num_steps, share)
        cost = cost_of(schedule, num_steps, target)
        if cost <= _SHALLOW * depth:
            break
        depth = min(cost, _DEEPER * depth)
    return target


@njit(nogil=True, cache=True)
def _list_more(
    query: Query, schedule: Schedule, sizes: NDArray[np.int64], num_classes: Int, share: Float
) -> Int:
    """List a larger share of the buckets, and plan anew; the number of steps."""
    n, buckets = query.scores.shape
    collect(query.scores, share, query.keys, query.values, query.counts, query.cutoffs)
    return plan_lists(query, schedule, sizes, num_classes / buckets, np.float64(n * num_classes))


@njit(nogil=True, cache=True)
def prove_search(  # noqa: PLR0911, PLR0912, PLR0915
    query: Query,
    plan: AffinePlan | StoredPlan,
    num_classes: Int,
    schedule: Schedule,
    sizes: NDArray[np.int64],
    tally: Tally,
    may_ring: Bool,
    member_cost: Float,
    first_buckets: Float,
    most_listed: Float,
    most_work: Float,
) -> Bool:
    """Fill the heap with the k best, if that takes no more than ``most_work`` nanoseconds.

    Otherwise False, and the heap holds some good products. To tally a member takes
    ``member_cost`` nanoseconds. ``first_buckets`` of a repetition are
    tallied for one product wanted, more by its root, where all products are; ``most_listed`` of a
    repetition's buckets are sorted at most.
    """
    n, buckets = query.scores.shape
    root, mean_size = np.sqrt(query.heap_scores.shape[0]), num_classes / buckets
    members = np.float64(n * num_classes)
    query.state[:] = 0
    window = _window(num_classes, mean_size, tally)
    number = -(-num_classes // window)
    price = member_cost + _RUN_COST * number / mean_size
    first = first_buckets * root * n * mean_size
    listed = _LISTED * first / members
    left = most_work - _CLASS_COST * num_classes
    if price * first > left or listed > most_listed:
        return False
    query.counts[:], query.cutoffs[:] = 0, np.inf
    num_steps = _list_more(query, schedule, sizes, num_classes, listed)
    target, tried, begin, sample_from = np.inf, False, np.int64(0), np.int64(num_classes)
    sampled, depth = np.ceil(max(_SAMPLE, _SAMPLED / root**2) * number), _SAMPLE_DEPTH * first
    all_sampled = number <= _FEW_WINDOWS
    if all_sampled:
        sampled, depth = np.float64(number), _ALL_DEPTH * first
    if all_sampled or sampled <= _MOST_SAMPLE * number:
        sample_from = np.int64((number - sampled) * window)
        target = _sampled_target(
            query, plan, sample_from, num_classes, schedule, num_steps, tally, window, depth
        )
    if all_sampled:  # what is reached is known, not estimated
        tried, sample_from = target < np.inf, np.int64(num_classes)
    while True:
        if target == np.inf:
            step = step_at(schedule, num_steps, -np.inf, first)
            if tried or step == 0 or not schedule.bounds[step] > -np.inf:
                return False
            tried, sample_from = True, np.int64(num_classes)
            left -= price * first
            if try_floors(query, plan, num_classes, schedule, step, tally, window):
                return True
            if not is_full(query):
                return False
            target = query.heap_scores[0] - query.tolerances[0]
        exact_cost = cost_of(schedule, num_steps, target)
        ring_aim = min(exact_cost, schedule.costs[num_steps])  # at least, where it is not planned
        sweep_aim = cost_to_sweep(ring_aim, members)
        ring_price = _RING_BUCKET / mean_size + _RING_MEMBER + _RING_DEEPER * ring_aim / members
        by_ring = may_ring and ring_price * ring_aim < price * sweep_aim
        cost = ring_price * ring_aim if by_ring else price * sweep_aim
        cost *= 1.0 - begin / num_classes
        if cost > left and tried:
            return False
        if cost > left:  # where hardly more products stand out than are wanted, a sample misleads
            target, begin = np.inf, np.int64(0)
            continue
        aim = ring_aim if by_ring else sweep_aim
        aim = aim if exact_cost < np.inf else np.inf
        step = step_at(schedule, num_steps, -np.inf, aim)
        if schedule.costs[step] < aim or not schedule.bounds[step] > -np.inf:
            if listed == most_listed:
                return False
            wanted = _TO_LIST * aim / members if aim < np.inf else 0.0
            listed = min(max(wanted, _MORE_LISTED * listed), most_listed)
            num_steps = _list_more(query, schedule, sizes, num_classes, listed)
            target -= query.tolerances[0]  # which may have grown
            continue
        left -= cost
        if by_ring:
            ring_proof(query, plan, num_classes, schedule, step)
            if schedule.bounds[step] < query.heap_scores[0] - query.tolerances[0]:
                return True
        else:
            begin = sweep(
                query, plan, num_classes, schedule, num_steps, tally, window, begin, sample_from,
                target,
            )  # fmt: skip
            if begin == num_classes:
                return True
        sample_from = np.int64(num_classes)
        target = query.heap_scores[0] - query.tolerances[0] if is_full(query) else np.inf
