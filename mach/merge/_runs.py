"""A bucket's members in increasing order of class, for either kind of table; compiled.

A run is what is left of a bucket's members while classes are gone through from the first on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.extending import overload
from numpy.typing import NDArray

from mach.merge._affine import exact_affine
from mach.merge._arithmetic import multiply_mod
from mach.merge._bits import prefetch
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._select import lower_bound
from mach.merge._stored import exact_stored
from mach.merge._types import Float, Int

__all__ = ["AHEAD", "exact", "expect_run", "open_runs", "run_row"]

_LINE = 16  # members in a line of the cache
AHEAD = 8  # runs whose members are brought into the cache meanwhile


@njit(nogil=True, cache=True)
def _open_affine(
    plan: AffinePlan,
    q: Int,
    values: NDArray[np.int32],
    count: Int,
    start: Int,
    cursors: NDArray[np.uint32],
    ends: NDArray[np.uint32],
    offsets: NDArray[np.int32],
    class_from: Int,
) -> None:
    """See ``AffinePlan.run_classes``: classes wrap around p once, at the run's first member."""
    p, b = plan.prime, plan.num_buckets
    row = plan.run_classes[q]
    m = row.shape[0] // 4
    first_short = p - (m - 1) * b  # from this bucket on the last member would be beyond p
    for i in range(count):
        bucket = np.int64(values[q, i])
        inner = bucket - plan.offsets[q]
        if inner < 0:
            inner += p
        first = multiply_mod(inner, plan.inverses[q], plan.inverse_magics[q], p)
        short = np.int64(bucket >= first_short)
        length = m - short
        j, least = short * (2 * m + 1), p - first + class_from
        end = j + 2 * length
        height = least
        if height >= p:
            height -= p
            j += length
        j += np.int64(plan.run_index[q, short, height >> plan.run_shift])
        while j < end and np.int64(row[j]) < least:
            j += 1
        cursors[start + i] = j
        ends[start + i] = end
        offsets[start + i] = first - p


@njit(nogil=True, cache=True)
def _first_from(
    members: NDArray[np.uint32], low: Int, end: Int, guess: Int, class_from: Int
) -> Int:
    """Where in ``members[low:end]``, which rise, ``class_from`` or more begins; near the guess."""
    reach, high = 1, guess
    if guess < end and np.int64(members[guess]) < class_from:
        low = guess + 1
        while low + reach < end and np.int64(members[low + reach]) < class_from:
            low += reach + 1
            reach *= 2
        high = min(low + reach, end)
    else:
        while high - reach >= low and np.int64(members[high - reach]) >= class_from:
            high -= reach
            reach *= 2
        low = max(high - reach, low)
    return lower_bound(members, low, high, class_from)


@njit(nogil=True, cache=True)
def _open_stored(
    plan: StoredPlan,
    q: Int,
    values: NDArray[np.int32],
    count: Int,
    start: Int,
    cursors: NDArray[np.uint32],
    ends: NDArray[np.uint32],
    offsets: NDArray[np.int32],
    class_from: Int,
) -> None:
    starts, members = plan.starts[plan.repetitions[q]], plan.members[plan.repetitions[q]]
    # Classes are mostly spread evenly: what is looked at first is brought into the cache before.
    below = np.float64(class_from) / members.shape[0]
    for i in range(-AHEAD, count):
        if class_from > 0 and i + AHEAD < count:
            bucket = np.int64(values[q, i + AHEAD])
            low, end = np.int64(starts[bucket]), np.int64(starts[bucket + 1])
            guess = low + np.int64((end - low) * below)
            cursors[start + i + AHEAD] = guess
            prefetch(members, guess)
        if i < 0:
            continue
        bucket = np.int64(values[q, i])
        low, end = np.int64(starts[bucket]), np.int64(starts[bucket + 1])
        if class_from > 0:
            low = _first_from(members, low, end, np.int64(cursors[start + i]), class_from)
        cursors[start + i] = low
        ends[start + i] = end
        offsets[start + i] = 0


def open_runs(
    plan: AffinePlan | StoredPlan,
    q: Int,
    values: NDArray[np.int32],
    count: Int,
    start: Int,
    tally: Any,
    class_from: Int,
) -> None:
    """Set the runs of buckets ``values[q, :count]`` to their members from a class on."""
    raise NotImplementedError


def run_row(plan: AffinePlan | StoredPlan, q: Int) -> NDArray[np.uint32]:
    """The members, less a bucket's offset, that row q's runs are in."""
    raise NotImplementedError


def expect_run(plan: AffinePlan | StoredPlan, row: NDArray[np.uint32], cursor: Int) -> None:
    """Have the next members of a run brought into the cache, where they may not be in it."""
    raise NotImplementedError


def exact(scores: NDArray[np.float32], plan: AffinePlan | StoredPlan, label: Int) -> Float:
    """A product's score: the float64 sum in increasing order of repetition."""
    raise NotImplementedError


@overload(open_runs)
def _open_by_plan(
    plan: Any, q: Any, values: Any, count: Any, start: Any, tally: Any, class_from: Any
) -> Any:
    compiled = _open_affine if plan.instance_class is AffinePlan else _open_stored

    def opened(
        plan: Any, q: Any, values: Any, count: Any, start: Any, tally: Any, class_from: Any
    ) -> Any:
        compiled(
            plan, q, values, count, start, tally.cursors, tally.ends, tally.offsets, class_from
        )

    return opened


@overload(run_row)
def _row_by_plan(plan: Any, q: Any) -> Any:
    if plan.instance_class is AffinePlan:

        def by_hash(plan: Any, q: Any) -> Any:
            return plan.run_classes[q]

        return by_hash

    def by_lists(plan: Any, q: Any) -> Any:
        return plan.members[plan.repetitions[q]]

    return by_lists


@overload(expect_run)
def _expect_by_plan(plan: Any, row: Any, cursor: Any) -> Any:
    if plan.instance_class is AffinePlan:

        def by_hash(plan: Any, row: Any, cursor: Any) -> None:
            pass  # all runs of a row are in the same few kilobytes

        return by_hash

    def by_lists(plan: Any, row: Any, cursor: Any) -> None:
        prefetch(row, cursor)
        prefetch(row, cursor + _LINE)

    return by_lists


@overload(exact)
def _exact_by_plan(scores: Any, plan: Any, label: Any) -> Any:
    if plan.instance_class is AffinePlan:

        def by_hash(scores: Any, plan: Any, label: Any) -> Any:
            return exact_affine(scores, plan, label)

        return by_hash

    def by_lists(scores: Any, plan: Any, label: Any) -> Any:
        return exact_stored(scores, plan, label)

    return by_lists
