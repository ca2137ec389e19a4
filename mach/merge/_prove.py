"""Compiled exact search in two parts, for affine hashes: what score is reached, then the proof.

Each repetition's best buckets are tallied (``_tally``) for the first products only, and those that
stand out are scored: a sample, from which the k-th best score of all is estimated, with some to
spare; where the sample leaves that open, all products are tallied. With floors that this score
allows, the ring (``_ring``) finds whatever scores more, and looks at most members in words of 64.
Where fewer than k do, the k-th best found is a score that is reached, and the ring goes around
once more.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._lists import Schedule, collect, plan_lists, step_at
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._query import HEAP_SIZE, Query
from mach.merge._ring import ring_proof
from mach.merge._tally import CLASS_COST, Tally, first_costs, scout
from mach.merge._types import Bool, Float, Int

__all__ = ["prove_search"]

_RING_COST = 2.0  # nanoseconds a member
_LEAST_SHARE, _MOST_SHARE = 1 / 16, 0.5  # of the products, scouted; past that, all
_SAMPLED = 6.0  # of the products wanted that the sample should have
_SPREAD = 1.0  # standard deviations that it may have more
_SPARE_COST = 2.0  # of a walk that allows for these, at most
_SAMPLE_DEPTH = 1.25  # buckets tallied for each where all products are


@njit(nogil=True, cache=True)
def _kth_best(query: Query, k: Int) -> Float:
    """The k-th best score in the heap."""
    scores = np.sort(query.heap_scores[: query.state[HEAP_SIZE]])
    return scores[max(scores.shape[0] - k, 0)]


@njit(nogil=True, cache=True)
def _target(query: Query, schedule: Schedule, num_steps: Int, expected: Float) -> Float:
    """What score to allow for, when a sample with ``expected`` of the k best is in the heap.

    It may have more of them than expected. Where to allow for that costs far more than not to, the
    k-th best product is about the last that stands out, and a sample says too little: +inf.
    """
    target = _kth_best(query, np.int64(expected) + 1) - query.tolerances[0]
    most = _SPARE_COST * schedule.costs[step_at(schedule, num_steps, target, np.inf)]
    target = _kth_best(query, np.int64(expected + _SPREAD * np.sqrt(expected)) + 1)
    target -= query.tolerances[0]
    step = step_at(schedule, num_steps, target, np.inf)
    return target if schedule.bounds[step] < target and schedule.costs[step] <= most else np.inf


@njit(nogil=True, cache=True)
def prove_search(
    query: Query,
    plan: AffinePlan | StoredPlan,
    num_classes: Int,
    schedule: Schedule,
    sizes: NDArray[np.int64],
    tally: Tally,
    first_buckets: Float,
    listed_share: Float,
    most_work: Float,
) -> Bool:
    """Fill the heap with the k best, if that takes no more than ``most_work`` nanoseconds.

    Otherwise False, and the heap holds some good products. ``first_buckets`` of a repetition are
    tallied for one product wanted, more by its root; ``listed_share`` of the buckets are sorted,
    and may be walked.
    """
    n, buckets = query.scores.shape
    k = query.heap_scores.shape[0]
    mean_size = num_classes / buckets
    query.state[:] = 0
    cost, member_cost = first_costs(query, num_classes, tally, first_buckets)
    left = most_work - CLASS_COST * num_classes - member_cost * cost
    if left < 0.0:
        return False
    collect(query.scores, listed_share, query.keys, query.values, query.counts, query.cutoffs)
    num_steps = plan_lists(query, schedule, sizes, mean_size, np.float64(n * num_classes))
    share = max(_LEAST_SHARE, _SAMPLED / k)
    if share > _MOST_SHARE:
        share = 1.0
    while True:
        some = np.int64(share * num_classes)
        depth = cost if share == 1.0 else _SAMPLE_DEPTH * cost
        step = step_at(schedule, num_steps, -np.inf, depth)
        if step == 0 or not schedule.bounds[step] > -np.inf:
            return False
        target = np.inf
        if scout(query, plan, some, schedule, step, tally):
            target = query.heap_scores[0] - query.tolerances[0]
            if share < 1.0:
                target = _target(query, schedule, num_steps, k * share)
        while target < np.inf:
            step = step_at(schedule, num_steps, target, np.inf)
            if not schedule.bounds[step] < target or left < _RING_COST * schedule.costs[step]:
                break
            left -= _RING_COST * schedule.costs[step]
            ring_proof(query, plan, num_classes, schedule, step)
            target = query.heap_scores[0] - query.tolerances[0]
            if schedule.bounds[step] < target:
                return True
        if share == 1.0:
            return False
        share = 1.0
