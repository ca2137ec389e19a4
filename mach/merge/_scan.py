"""One query's arrays while every product is scored."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._types import Int

__all__ = ["Allowed", "Index", "Scan", "class_at"]


class Index(NamedTuple):
    """What is searched: see :class:`mach.merge.BucketTable`."""

    starts: NDArray[Any]  # (R, blocks)
    repetitions: NDArray[np.int64]  # (n,): which rows of ``starts``
    num_classes: int
    shift: int  # width = 1 << shift


class Allowed(NamedTuple):
    """Which products may be returned: all of a list, or all but some."""

    listed: NDArray[np.uint32]  # the only ones, rising; or empty
    bitmap: NDArray[np.uint8]  # one bit each; or empty
    blocked: NDArray[np.uint32]  # not these, rising


class Scan(NamedTuple):
    """A query with n rows of B scores, room for k products; places are products in scan order.

    Whole blocks are taken in the order of their numbers or of ``order``; or only what is listed.
    """

    scores: NDArray[np.float32]  # (n, B)
    codes: NDArray[np.uint8]  # (n, B + width - 1): see `_codes`
    searched: Index
    allowed: Allowed
    order: NDArray[np.int64]  # blocks; or empty
    heap_scores: NDArray[np.float64]  # (k,)
    heap_classes: NDArray[np.int64]  # (k,)
    step: float  # what a code of one stands for
    top_sum: float  # of the rows' best scores
    top_magnitude: float  # of their absolute values


@njit(nogil=True, cache=True)
def class_at(scan: Scan, place: Int) -> Int:
    """The product at a place."""
    if scan.allowed.listed.shape[0] > 0:
        return np.int64(scan.allowed.listed[place])
    if scan.order.shape[0] > 0:
        lane = place & ((1 << scan.searched.shift) - 1)
        return (scan.order[place >> scan.searched.shift] << scan.searched.shift) + lane
    return np.int64(place)
