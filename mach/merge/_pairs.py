"""Compiled: which members of a bucket are in a good bucket of the next repetition too.

The second test of ``_ring`` for affine hashes, by bit vectors or member by member.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._bits import clear_bits, set_bits, trailing_zeros
from mach.merge._types import Bool, Float, Int

__all__ = ["add_hits", "add_members", "hit_buckets", "keep_enough"]


@njit(nogil=True, cache=True)
def keep_enough(
    keys: NDArray[np.float32],
    values: NDArray[np.int32],
    count: Int,
    need: Float,
    enough: NDArray[np.uint64],
    left: Int,
) -> Int:
    """Set exactly the bits of the listed buckets that score ``need``; return how many.

    ``left`` is how many are set, or -1 where the bits are not filled. Along a walk ``need``
    rises, so that bits are cleared one by one.
    """
    if left < 0:
        low, high = 0, count
        while low < high:
            middle = (low + high) >> 1
            if np.float64(keys[middle]) >= need:
                low = middle + 1
            else:
                high = middle
        enough[:] = 0
        set_bits(enough, values, 0, low)
        return low
    keep = left
    while keep > 0 and np.float64(keys[keep - 1]) < need:
        keep -= 1
    clear_bits(enough, values, keep, left)
    return keep


@njit(nogil=True, cache=True)
def hit_buckets(
    bits: NDArray[np.uint64],
    enough: NDArray[np.uint64],
    shift: Int,
    words: NDArray[np.uint64],
    places: NDArray[np.uint32],
    hits: NDArray[np.uint32],
    count: Int,
) -> Int:
    """Append to ``hits`` the buckets of ``enough`` that are in ``bits``, shifted, as well.

    Returns the new length.
    """
    one = np.uint64(1)
    low = np.uint64(shift & 63)
    high = np.uint64(63) - low
    first_word = np.uint64(shift >> 6)
    size = np.uint64(enough.shape[0])
    for w in range(size):
        moved = (bits[w + first_word] >> low) | ((bits[w + first_word + one] << one) << high)
        words[w] = moved & enough[w]
    filled = np.uint64(0)
    for w in range(size):
        places[filled] = w
        filled += np.uint64(words[w] != 0)
    to = np.uint64(count)
    for f in range(filled):
        at = np.uint64(places[f])
        word = words[at]
        place = np.int64(at << np.uint64(6))
        while True:
            hits[to] = place + trailing_zeros(word)
            to += one
            word &= word - one
            if word == 0:
                break
    return np.int64(to)


@njit(nogil=True, cache=True)
def add_hits(
    hits: NDArray[np.uint32],
    start: Int,
    end: Int,
    shift: Int,
    limit: Int,
    wrapped: Bool,
    row: NDArray[np.float32],
    excess: Float,
    starts: NDArray[np.uint32],
    members: NDArray[np.uint64],
    b: Int,
    p: Int,
    first_class: Int,
    num_classes: Int,
    found: NDArray[np.uint32],
    sums: NDArray[np.float32],
    count: Int,
) -> Int:
    """Append to ``found`` the members in the buckets ``hits[start:end]``; return the new length.

    Only those whose step wraps around p (from ``limit`` on), or only those whose does not.
    ``sums`` get ``excess`` plus the bucket's score in ``row``.
    """
    one, half = np.uint64(1), np.uint64(32)
    move = np.uint32(shift - b)  # below 0, a huge number
    b32, p32, class32 = np.uint32(b), np.uint32(p), np.uint32(first_class)
    classes_end, excess32, limit64 = np.uint32(num_classes), np.float32(excess), np.uint64(limit)
    to = np.uint64(count)
    for h in range(np.uint64(start), np.uint64(end)):
        bucket = hits[h]
        moved = np.uint32(bucket + move)
        residue = np.uint64(min(moved, np.uint32(moved + b32)))
        at, stop = np.uint64(starts[residue]), np.uint64(starts[residue + one])
        total = excess32 + row[np.uint64(bucket)]
        while True:
            member = members[at]
            label = np.uint32(np.uint32(member) + class32)
            label = min(label, np.uint32(label - p32))
            found[to] = label
            sums[to] = total
            to += np.uint64((((member >> half) >= limit64) == wrapped) & (label < classes_end))
            at += one
            if at >= stop:
                break
    return np.int64(to)


@njit(nogil=True, cache=True)
def add_members(
    row: NDArray[np.float32],
    residues: NDArray[np.uint32],
    classes: NDArray[np.uint32],
    start: Int,
    end: Int,
    first: Int,
    excess: Float,
    tolerance: Float,
    b: Int,
    p: Int,
    first_class: Int,
    num_classes: Int,
    places: NDArray[np.uint32],
    found: NDArray[np.uint32],
    sums: NDArray[np.float32],
    count: Int,
) -> Int:
    """The same for members ``start`` to ``end``, by looking their buckets up in ``row``.

    A member's bucket there is ``first`` plus its residue, mod B.
    """
    # One loop, though the compiler could turn a part of it into vector instructions: the members
    # are too few for that. Places count from ``count`` on without a slice, whose reference
    # counting costs as much.
    need, excess32 = np.float32(-tolerance - excess), np.float32(excess)
    move, b32 = np.uint32(first - b), np.uint32(b)  # below 0, a huge number
    base = np.uint64(count)
    kept = base
    for j in range(np.uint64(start), np.uint64(end)):
        bucket = np.uint32(residues[j] + move)
        score = row[np.uint64(min(bucket, np.uint32(bucket + b32)))]
        places[kept - base] = j
        sums[kept] = score
        kept += np.uint64(not score < need)
    p32, class32, classes_end = np.uint32(p), np.uint32(first_class), np.uint32(num_classes)
    to = base
    for f in range(base, kept):
        label = np.uint32(classes[np.uint64(places[f - base])] + class32)
        label = min(label, np.uint32(label - p32))
        found[to] = label
        sums[to] = excess32 + sums[f]
        to += np.uint64(label < classes_end)
    return np.int64(to)
