"""Every product's bucket in each repetition searched, side by side, a slice of products at a time.

Tables that are small keep them all. Of others a slice is filled when it is scanned: buckets of an
affine hash advance from product to product by additions alone, many at a time, and the queries of
a batch share what was filled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload
from numpy.typing import NDArray

from mach.merge._arithmetic import multiply_mod
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._types import Bool, Int

__all__ = ["SLICE", "Filled", "Slices", "fill_listed", "fill_row"]

_CHUNK, _BLOCK = 4096, 256
SLICE = 4 * _CHUNK  # products filled together: with 32 repetitions a megabyte


class Filled(NamedTuple):
    """Room for a slice; n repetitions."""

    buckets: NDArray[Any]  # (n, SLICE): of uint16 or uint32
    steps: NDArray[np.uint32]  # (n, _CHUNK): i * multiplier mod p, how far product i is ahead
    residues: NDArray[np.uint32]  # (n, _CHUNK): the same mod B


@njit(nogil=True, cache=True)
def _set_steps(plan: AffinePlan, filled: Filled) -> None:
    p, b = np.uint32(plan.prime), np.uint32(plan.num_buckets)
    for q in range(filled.steps.shape[0]):
        x = np.uint32(0)
        for f in range(filled.steps.shape[1]):
            filled.steps[q, f] = x
            filled.residues[q, f] = x % b
            x = np.uint32(x + np.uint32(plan.multipliers[q]))
            x = min(x, np.uint32(x - p))


@njit(nogil=True, cache=True)
def _fill_chunk(
    steps: NDArray[np.uint32],
    residues: NDArray[np.uint32],
    first: Int,
    prime: Int,
    num_buckets: Int,
    buckets: NDArray[Any],
) -> None:
    """Buckets ``(first + step) mod p mod B``, in 32 bits, of which vector instructions take eight.

    Where the sum wraps around p, the residue is p mod B further back.
    """
    p, b = np.uint32(prime), np.uint32(num_buckets)
    x0, r0 = np.uint32(first), np.uint32(first % num_buckets)
    back = np.uint32(prime % num_buckets)
    for f in range(buckets.shape[0]):
        x = np.uint32(steps[f] + x0)
        r = np.uint32(residues[f] + r0)
        r = min(r, np.uint32(r - b))
        wrapped = np.uint32(r - back)
        wrapped = min(wrapped, np.uint32(wrapped + b))
        buckets[f] = wrapped if x >= p else r


@njit(nogil=True, cache=True)
def _fill_affine(plan: AffinePlan, filled: Filled, start: Int, length: Int) -> None:
    p = plan.prime
    for q in range(filled.buckets.shape[0]):
        multiplier, magic = plan.multipliers[q], plan.multiplier_magics[q]
        for chunk in range(0, length, _CHUNK):
            first = multiply_mod(start + chunk, multiplier, magic, p) + plan.offsets[q]
            if first >= p:
                first -= p
            past = min(chunk + _CHUNK, length)
            _fill_chunk(
                filled.steps[q],
                filled.residues[q],
                first,
                p,
                plan.num_buckets,
                filled.buckets[q, chunk:past],
            )


@njit(nogil=True, cache=True)
def _fill_places(
    labels: NDArray[np.uint32],
    multiplier: Int,
    magic: Int,
    offset: Int,
    prime: Int,
    bucket_magic: Int,
    num_buckets: Int,
    buckets: NDArray[Any],
) -> None:
    """Buckets of any products; see ``_affine._step`` for the arithmetic."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a, a_magic, p = np.uint64(multiplier) & low, np.uint64(magic) & low, np.uint64(prime) & low
    b_magic = np.uint64(bucket_magic)
    p32, b32, shift = np.uint32(prime), np.uint32(num_buckets), np.uint32(offset)
    for f in range(labels.shape[0]):
        label = np.uint64(labels[f])
        x = np.uint32(label * a - ((label * a_magic) >> half) * p)
        x = np.uint32(min(x, np.uint32(x - p32)) + shift)
        x = min(x, np.uint32(x - p32))
        bucket = np.uint32(x - np.uint32((np.uint64(x) * b_magic) >> half) * b32)
        buckets[f] = min(bucket, np.uint32(bucket - b32))


@njit(nogil=True, cache=True)
def _fill_stored(plan: StoredPlan, filled: Filled, start: Int, length: Int) -> None:
    for block in range(0, length, _BLOCK):  # the products' buckets stay in the first-level cache
        past = min(length, block + _BLOCK)
        for q in range(filled.buckets.shape[0]):
            repetition = plan.repetitions[q]
            for f in range(np.uint64(block), np.uint64(past)):
                filled.buckets[q, f] = plan.assignment[np.uint64(start) + f, repetition]


def _fill(
    plan: AffinePlan | StoredPlan, filled: Filled, start: Int, length: Int, new: Bool
) -> None:
    """Fill ``length`` products from ``start`` on; prepare first where the plan is ``new``."""
    raise NotImplementedError


def fill_listed(
    plan: AffinePlan | StoredPlan, labels: NDArray[np.uint32], buckets: NDArray[Any]
) -> None:
    """Buckets of any products, a row a repetition; for compiled code."""
    raise NotImplementedError


def fill_row(
    plan: AffinePlan | StoredPlan, q: Int, labels: NDArray[np.uint32], buckets: NDArray[Any]
) -> None:
    """Buckets of any products in the q-th repetition searched; for compiled code."""
    raise NotImplementedError


@overload(_fill)
def _fill_by_plan(plan: Any, filled: Any, start: Any, length: Any, new: Any) -> Any:
    if plan.instance_class is AffinePlan:

        def by_hash(plan: Any, filled: Any, start: Any, length: Any, new: Any) -> Any:
            if new:
                _set_steps(plan, filled)
            _fill_affine(plan, filled, start, length)

        return by_hash

    def by_lists(plan: Any, filled: Any, start: Any, length: Any, new: Any) -> Any:
        _fill_stored(plan, filled, start, length)

    return by_lists


@overload(fill_row)
def _fill_row_by_plan(plan: Any, q: Any, labels: Any, buckets: Any) -> Any:
    if plan.instance_class is AffinePlan:

        def by_hash(plan: Any, q: Any, labels: Any, buckets: Any) -> Any:
            _fill_places(
                labels,
                plan.multipliers[q],
                plan.multiplier_magics[q],
                plan.offsets[q],
                plan.prime,
                plan.bucket_magic,
                plan.num_buckets,
                buckets,
            )

        return by_hash

    def by_lists(plan: Any, q: Any, labels: Any, buckets: Any) -> Any:
        repetition = plan.repetitions[q]
        for f in range(np.uint64(labels.shape[0])):
            buckets[f] = plan.assignment[np.uint64(labels[f]), repetition]

    return by_lists


@overload(fill_listed)
def _fill_listed_by_plan(plan: Any, labels: Any, buckets: Any) -> Any:
    if plan.instance_class is AffinePlan:

        def by_hash(plan: Any, labels: Any, buckets: Any) -> Any:
            for q in range(buckets.shape[0]):
                fill_row(plan, q, labels, buckets[q])

        return by_hash

    def by_lists(plan: Any, labels: Any, buckets: Any) -> Any:
        for f in range(np.uint64(labels.shape[0])):
            for q in range(buckets.shape[0]):
                buckets[q, f] = plan.assignment[np.uint64(labels[f]), plan.repetitions[q]]

    return by_lists


@njit(nogil=True, cache=True)
def _fill_any(
    plan: AffinePlan | StoredPlan, labels: NDArray[np.uint32], buckets: NDArray[Any]
) -> None:
    fill_listed(plan, labels, buckets)


@njit(nogil=True, cache=True)
def _fill_slice(
    plan: AffinePlan | StoredPlan, filled: Filled, start: Int, length: Int, new: Bool
) -> None:
    _fill(plan, filled, start, length, new)


class Slices:
    """One slice at a time, for one thread; what was filled last is kept."""

    def __init__(self, rows: int, dtype: np.dtype[Any]) -> None:
        self.rows = np.arange(rows)
        self._filled = Filled(
            np.empty((rows, SLICE), dtype),
            np.empty((rows, _CHUNK), np.uint32),
            np.empty((rows, _CHUNK), np.uint32),
        )
        self._prepared: AffinePlan | StoredPlan | None = None  # whose steps are there
        # What is filled: of this plan, of all products or a list, from one place to another.
        self._plan: AffinePlan | StoredPlan | None = None
        self._listed: NDArray[np.uint32] | None = None
        self._begins = self._ends = 0

    def _has(
        self,
        plan: AffinePlan | StoredPlan,
        listed: NDArray[np.uint32] | None,
        start: int,
        stop: int,
    ) -> bool:
        same = plan is self._plan and listed is self._listed
        if same and start == self._begins and stop <= self._ends:
            return True
        self._plan, self._listed, self._begins, self._ends = plan, listed, start, stop
        return False

    def at(self, plan: AffinePlan | StoredPlan, start: int, stop: int) -> NDArray[Any]:
        """Buckets of products ``start`` to ``stop``, at most SLICE, from column 0 on."""
        if not self._has(plan, None, start, stop):
            _fill_slice(plan, self._filled, start, stop - start, plan is not self._prepared)
            self._prepared = plan
        return self._filled.buckets

    def listed(
        self,
        plan: AffinePlan | StoredPlan,
        listed: NDArray[np.uint32],
        start: int,
        stop: int,
    ) -> NDArray[Any]:
        """Buckets of the products ``listed[start:stop]``, at most SLICE.

        What a table keeps side by side would not help: a product's buckets lie far apart there.
        """
        if not self._has(plan, listed, start, stop):
            _fill_any(plan, listed[start:stop], self._filled.buckets)
        return self._filled.buckets
