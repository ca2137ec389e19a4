"""Compiled bit vectors, 64 buckets or products to a word, and other single instructions."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mach.merge._types import Bool, Int

__all__ = ["bits_from", "clear_bits", "is_allowed", "prefetch", "set_bits", "trailing_zeros"]


def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    """How many low bits of a uint64, not 0, are clear: one instruction."""
    if word != types.uint64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


trailing_zeros: Any = intrinsic(_trailing_zeros)


def _bits_from(typing_context: Any, row: Any, start: Any, least: Any) -> Any:
    """Which of the 64 scores ``row[start : start + 64]``, float32, are ``least`` or more.

    One bit each of a uint64, the first lowest. In vector instructions, which a loop that writes
    down where the scores are would not become.
    """
    if not isinstance(row, types.Array) or row.dtype != types.float32 or least != types.float32:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        many = ir.VectorType(ir.FloatType(), 64)
        at = builder.bitcast(builder.gep(data, [arguments[1]]), many.as_pointer())
        scores = builder.load(at, align=4)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 64), [ir.IntType(32)(0)] * 64)
        empty = ir.Constant(many, ir.Undefined)
        single = builder.insert_element(empty, arguments[2], ir.IntType(32)(0))
        all_least = builder.shuffle_vector(single, empty, lanes)
        found = builder.fcmp_ordered(">=", scores, all_least)
        return builder.bitcast(found, ir.IntType(64))

    return types.uint64(row, types.int64, types.float32), generate


bits_from: Any = intrinsic(_bits_from)


def _prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    """Have the memory of ``array[at]``, which may be beyond its end, brought into the cache."""
    if not isinstance(array, types.Array) or at != types.int64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(function, [address, word(0), word(3), word(1)])  # to read, to keep, of data
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


prefetch: Any = intrinsic(_prefetch)


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
