"""Compiled bit vectors: 64 buckets, or products, to a word."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mach.merge._types import Bool, Int

__all__ = ["clear_bits", "is_allowed", "set_bits", "trailing_zeros"]


def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    """How many low bits of a uint64, not 0, are clear: one instruction."""
    if word != types.uint64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


trailing_zeros: Any = intrinsic(_trailing_zeros)


@njit(nogil=True, cache=True)
def set_bits(bits: NDArray[np.uint64], values: NDArray[np.int32], start: Int, end: Int) -> None:
    """Set the bits ``values[start:end]``."""
    for i in range(start, end):
        v = values[i]
        bits[v >> 6] |= np.uint64(1) << np.uint64(v & 63)


@njit(nogil=True, cache=True)
def clear_bits(bits: NDArray[np.uint64], values: NDArray[np.int32], start: Int, end: Int) -> None:
    """Clear the bits ``values[start:end]``."""
    for i in range(start, end):
        v = values[i]
        bits[v >> 6] &= ~(np.uint64(1) << np.uint64(v & 63))


@njit(nogil=True, cache=True)
def is_allowed(bitmap: NDArray[np.uint8], label: Int) -> Bool:
    """Whether a bitmap of products allowed, one bit each or empty for all, has a product."""
    return bitmap.shape[0] == 0 or (bitmap[label >> 3] >> np.uint8(label & 7)) & 1 != 0
