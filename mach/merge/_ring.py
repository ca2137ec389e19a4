"""Compiled exact search that looks at few products.

Three facts make it exact. Let floor_q be a score for each repetition q, with sum F.

1. A product scoring above F scores above floor_q in some repetition q, so it is a member of one
   of the buckets that do (Fagin, Lotem and Naor, "Optimal aggregation algorithms for
   middleware", PODS 2001).
2. More: going around the repetitions as a ring, some q is such that the product's scores in q,
   q+1, ..., q+l sum to at least the floors' for every length l (the cycle lemma; Qin and Xiao,
   "Pigeonring: a principle for faster thresholded similarity search", VLDB 2018). So a member of
   a bucket of q can be dropped at the first l where its sum falls short, mostly at once.
3. Which members of bucket v of q pass the test for l = 1 is the intersection of two sets of
   buckets of repetition q+1: those that score enough, and those that v has a member in. For an
   affine hash the second is one bit vector for all v, shifted (see ``_plan``): 64 buckets an AND.

The walk takes the buckets of all repetitions from the best down, in the order of ``schedule``.
Meanwhile the floors are those of a later step of the schedule: the one at which the k-th best
score found so far lets the walk end, or while fewer than k are found a guess; when a part of the
way to the guess has been walked in vain, the walk starts again with lower floors.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._lists import Schedule, collect, plan_lists
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._query import (
    HEAP_SIZE,
    MEMBERS,
    NUM_STEPS,
    POSITION,
    REACHED,
    SEEN_SIZE,
    STEPS,
    TEST,
    Query,
)
from mach.merge._select import seen_add
from mach.merge._types import Bool, Float, Int
from mach.merge._walk import walk

__all__ = ["EXHAUSTED", "LIMIT", "PROVEN", "ring_proof", "ring_search"]

PROVEN, EXHAUSTED, LIMIT = 0, 1, 2
MEMBER_COST, STEP_COST = 0.8, 3.0  # about nanoseconds
GUESS_DEPTH = 3.0  # buckets of a repetition the walk may have to take for each product wanted


@njit(nogil=True, cache=True)
def _floors_at(query: Query, schedule: Schedule, step: Int) -> None:
    """Set the floors to those after ``step`` steps, and the walk to its beginning."""
    for q in range(query.floors.shape[0]):
        query.floors[q] = query.keys[q, 0]
        query.enough_counts[q] = -1
    for s in range(step):
        query.floors[schedule.rows[s]] = schedule.floors[s]
    query.state[TEST] = step
    query.state[POSITION] = 0


@njit(nogil=True, cache=True)
def _raise_floors(query: Query, schedule: Schedule) -> None:
    """Take back steps that the k-th best score found makes needless."""
    state = query.state
    target = _target(query)
    while state[TEST] > 0 and schedule.bounds[state[TEST] - 1] < target:
        state[TEST] -= 1
        q = schedule.rows[state[TEST]]
        floor = np.float64(query.keys[q, 0])
        for s in range(state[TEST] - 1, -1, -1):
            if schedule.rows[s] == q:
                floor = schedule.floors[s]
                break
        query.floors[q] = floor


@njit(nogil=True, cache=True)
def _target(query: Query) -> Float:
    """What a bound must be below for the walk to end: the k-th best score found, or -inf."""
    if query.state[HEAP_SIZE] < query.heap_scores.shape[0]:
        return -np.inf
    return query.heap_scores[0] - query.tolerances[0]


@njit(nogil=True, cache=True)
def _guess(query: Query, schedule: Schedule, cost: Float) -> Int:
    """The step that costs about ``cost``, or an earlier one that is known to suffice."""
    target = _target(query)
    num_steps = query.state[NUM_STEPS]
    step = min(1, num_steps)
    while step < num_steps and schedule.costs[step] < cost and not schedule.bounds[step] < target:
        step += 1
    return step


@njit(nogil=True, cache=True)
def _mostly_worse(query: Query, bound: Float) -> Bool:
    """Whether fewer than half of the products wanted were found to score above ``bound``."""
    better = 0
    for i in range(query.state[HEAP_SIZE]):
        better += query.heap_scores[i] > bound
    return 2 * better < query.heap_scores.shape[0]


@njit(nogil=True, cache=True)
def _walk_step(
    query: Query,
    plan: AffinePlan | StoredPlan,
    num_classes: Int,
    schedule: Schedule,
    step: Int,
) -> None:
    q = np.int64(schedule.rows[step])
    start = np.int64(0)
    for s in range(step - 1, -1, -1):
        if schedule.rows[s] == q:
            start = np.int64(schedule.ends[s])
            break
    end = np.int64(schedule.ends[step])
    walk(query, plan, num_classes, q, start, end)


@njit(nogil=True, cache=True)
def ring_search(
    query: Query,
    plan: AffinePlan | StoredPlan,
    num_classes: Int,
    schedule: Schedule,
    sizes: NDArray[np.int64],
    new: Bool,
    listed_share: Float,
    most_work: Float,
    most_members: Int,
) -> Int:
    """Walk until the k best are proven (PROVEN) or ``most_members`` were looked at (LIMIT).

    EXHAUSTED where the schedule ends first, or the walk has cost ``most_work``, in the unit of
    ``MEMBER_COST``. A search that is not ``new`` picks up where ``query.state`` stands.
    ``sizes[q, v]`` is how many products a bucket has, empty where all have about as many.
    """
    state = query.state
    n = query.scores.shape[0]
    if new:
        mean_size = num_classes / query.scores.shape[1]
        query.counts[:], query.cutoffs[:] = 0, np.inf
        collect(query.scores, listed_share, query.keys, query.values, query.counts, query.cutoffs)
        num_steps = plan_lists(query, schedule, sizes, mean_size, most_work / MEMBER_COST)
        state[:] = 0
        state[NUM_STEPS] = num_steps
        state[TEST] = -1
        query.seen[:] = -1
        depth = GUESS_DEPTH * (10 + query.heap_scores.shape[0])
        _floors_at(query, schedule, _guess(query, schedule, depth * n * mean_size))
    while True:
        _raise_floors(query, schedule)
        position, test = state[POSITION], state[TEST]
        if schedule.bounds[position] < _target(query):
            return PROVEN
        last = test == state[NUM_STEPS]
        cost = schedule.costs[test]
        lost = not last and 4.0 * schedule.costs[position] >= cost
        if position >= test or (lost and _mostly_worse(query, schedule.bounds[test])):
            if last:
                return EXHAUSTED
            _floors_at(
                query, schedule, _guess(query, schedule, (2.0 if position >= test else 4.0) * cost)
            )
            continue
        if state[MEMBERS] >= most_members:
            return LIMIT
        if MEMBER_COST * state[MEMBERS] + STEP_COST * state[STEPS] >= most_work:
            return EXHAUSTED
        _walk_step(query, plan, num_classes, schedule, position)
        state[POSITION] += 1
        state[REACHED] = max(state[REACHED], state[POSITION])


@njit(nogil=True, cache=True)
def ring_proof(
    query: Query, plan: AffinePlan | StoredPlan, num_classes: Int, schedule: Schedule, step: Int
) -> None:
    """Find all products that score above the bound after ``step`` steps of the schedule.

    Or above the k-th best found meanwhile: floors may rise from row to row, since a product that
    passes by the higher floors passes by the lower ones.
    """
    query.seen[:] = -1
    for i in range(query.state[HEAP_SIZE]):
        seen_add(query.seen, query.heap_classes[i])
    query.state[SEEN_SIZE] = query.state[HEAP_SIZE]
    _floors_at(query, schedule, step)
    query.state[REACHED] = step
    for q in range(query.scores.shape[0]):
        _raise_floors(query, schedule)
        walk(query, plan, num_classes, np.int64(q), np.int64(0), query.counts[q])
