"""Compiled inversion of an explicit assignment: buckets to their products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["invert"]


@njit(nogil=True, cache=True)
def invert(column: NDArray[Any], starts: NDArray[np.int64], members: NDArray[np.uint32]) -> None:
    """Counting sort of products by bucket.

    ``column`` (K,) gives each product's bucket. On return bucket v holds the products
    ``members[starts[v]:starts[v + 1]]``, in increasing order.
    """
    starts[:] = 0
    for i in range(column.shape[0]):
        starts[column[i] + 1] += 1
    for v in range(1, starts.shape[0]):
        starts[v] += starts[v - 1]
    # Place each product at its bucket's cursor; afterwards every cursor is its bucket's end.
    for i in range(column.shape[0]):
        v = column[i]
        members[starts[v]] = i
        starts[v] += 1
    for v in range(starts.shape[0] - 1, 0, -1):
        starts[v] = starts[v - 1]
    starts[0] = 0
