"""One query while it is searched: its arrays, and the heap of the best products so far."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._select import heap_push, seen_add
from mach.merge._types import Float, Int

__all__ = [
    "HEAP_SIZE",
    "MEMBERS",
    "NUM_STEPS",
    "POSITION",
    "REACHED",
    "SEEN_SIZE",
    "STATE_SIZE",
    "STEPS",
    "TEST",
    "Query",
    "offer",
]

# What ``Query.state`` holds: the step of the schedule reached in this walk; the step whose floors
# are tested with; the furthest step reached in any walk; the schedule's length; and counts.
POSITION, TEST, REACHED, NUM_STEPS, HEAP_SIZE, SEEN_SIZE, MEMBERS, STEPS, STATE_SIZE = range(9)


class Query(NamedTuple):
    """One query's arrays while it is searched; n repetitions, B buckets, room for k products."""

    scores: NDArray[np.float32]  # (n, B)
    tops: NDArray[np.float32]  # (n,): each row's best score
    keys: NDArray[np.float32]  # (n, B): the scores of each row's best buckets, falling
    values: NDArray[np.int32]  # (n, B): which buckets
    counts: NDArray[np.int64]  # (n,): how many of them are listed
    cutoffs: NDArray[np.float64]  # (n,): what the others score less than
    floors: NDArray[np.float64]  # (n,): what the tests compare with
    enough: NDArray[np.uint64]  # (n, words): buckets of row q + 1 that may pass, one bit each
    enough_counts: NDArray[np.int64]  # (n,): how many of row q + 1's list are set; -1: not filled
    found: NDArray[np.uint32]  # scratch: members being tested
    sums: NDArray[np.float32]  # scratch: theirs
    next_sums: NDArray[np.float32]  # scratch
    words: NDArray[np.uint64]  # scratch
    places: NDArray[np.uint32]  # scratch
    buckets: NDArray[np.uint32]  # scratch: of members being tested
    hits: NDArray[np.uint32]  # scratch: buckets that a bucket has members in
    bitmap: NDArray[np.uint8]  # products allowed, one bit each; empty for all
    heap_scores: NDArray[np.float64]  # (k,)
    heap_classes: NDArray[np.int64]  # (k,)
    seen: NDArray[np.int64]  # the classes that were put into the heap, open addressing
    state: NDArray[np.int64]  # (STATE_SIZE,)
    tolerances: NDArray[np.float64]  # (2,): more than rounding moves a float64, a float32 sum by


@njit(nogil=True, cache=True)
def offer(query: Query, score: Float, label: Int) -> None:
    """Put a product into the heap unless it is there or is not good enough."""
    heap_scores, heap_classes, state = query.heap_scores, query.heap_classes, query.state
    size = state[HEAP_SIZE]
    if size == heap_scores.shape[0] and (
        score < heap_scores[0] or (score == heap_scores[0] and label >= heap_classes[0])
    ):
        return
    if not seen_add(query.seen, label):
        return
    state[SEEN_SIZE] += 1
    state[HEAP_SIZE] = heap_push(heap_scores, heap_classes, size, score, label)
    if 2 * state[SEEN_SIZE] > query.seen.shape[0]:
        # What left the heap is worse than its root and never comes back: forget it.
        query.seen[:] = -1
        for i in range(state[HEAP_SIZE]):
            seen_add(query.seen, heap_classes[i])
        state[SEEN_SIZE] = state[HEAP_SIZE]
