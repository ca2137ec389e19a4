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
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._stored import exact_stored
from mach.merge._types import Float, Int

__all__ = ["exact", "open_runs", "run_row"]


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
    for i in range(count):
        bucket = np.int64(values[q, i])
        low, end = starts[bucket], starts[bucket + 1]
        high = end if class_from > 0 else low
        while low < high:
            middle = (low + high) >> 1
            if np.int64(members[middle]) < class_from:
                low = middle + 1
            else:
                high = middle
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


@overload(exact)
def _exact_by_plan(scores: Any, plan: Any, label: Any) -> Any:
    if plan.instance_class is AffinePlan:

        def by_hash(scores: Any, plan: Any, label: Any) -> Any:
            return exact_affine(scores, plan, label)

        return by_hash

    def by_lists(scores: Any, plan: Any, label: Any) -> Any:
        return exact_stored(scores, plan, label)

    return by_lists
