"""Compiled modular arithmetic in signed 64-bit integers, without a division.

Shoup's trick: with ``magic = floor(a * 2**32 / p)`` the quotient of ``a * x / p`` is
``(x * magic) >> 32``, at most one too small while x < 2**32. Everything stays below 2**63 because
classes, buckets and the prime are below 2**31.
"""

from __future__ import annotations

from numba import njit

from mach.merge._types import Int

__all__ = ["magic_of", "multiply_mod", "reduce_mod"]


def magic_of(multiplier: int, modulus: int) -> int:
    """``floor(multiplier * 2**32 / modulus)``, for :func:`multiply_mod` and :func:`reduce_mod`.

    Less one for 1 / 1, so that it fits 32 bits: the quotient is then one too small, as it may be.
    """
    return min((int(multiplier) << 32) // int(modulus), (1 << 32) - 1)


@njit(nogil=True, cache=True, inline="always")
def multiply_mod(x: Int, a: Int, magic: Int, p: Int) -> Int:
    """``a * x mod p`` for 0 <= x < 2**31, 0 <= a < p < 2**31, ``magic = magic_of(a, p)``."""
    remainder = x * a - ((x * magic) >> 32) * p
    if remainder >= p:
        remainder -= p
    return remainder


@njit(nogil=True, cache=True, inline="always")
def reduce_mod(x: Int, magic: Int, b: Int) -> Int:
    """``x mod b`` for 0 <= x < 2**31, ``magic = magic_of(1, b)``."""
    remainder = x - ((x * magic) >> 32) * b
    if remainder >= b:
        remainder -= b
    return remainder
