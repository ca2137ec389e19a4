"""Adding up products' codes, which is where a search spends its time.

A block's codes lie side by side in every row, so that they are added many at a time; eight rows
are added before the sums are written back. Where every product is a block (an explicit
assignment), or only some products are wanted, each code is looked up.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._scan import Scan
from mach.merge._types import Int

__all__ = ["add_up"]

_TOGETHER = 8  # rows


@njit(nogil=True, cache=True)
def _add_eight(
    scan: Scan, q: Int, blocks: NDArray[np.int64], count: Int, sums: NDArray[np.uint16]
) -> None:
    """Add rows ``q`` to ``q + 7`` of some blocks' codes."""
    width = 1 << scan.searched.shift
    starts, rows, codes = scan.searched.starts, scan.searched.repetitions, scan.codes
    s0, s1, s2, s3 = starts[rows[q]], starts[rows[q + 1]], starts[rows[q + 2]], starts[rows[q + 3]]
    s4, s5, s6, s7 = (
        starts[rows[q + 4]],
        starts[rows[q + 5]],
        starts[rows[q + 6]],
        starts[rows[q + 7]],
    )
    for b in range(count):
        x = blocks[b]
        into = sums[b * width : b * width + width]
        c0 = codes[q, s0[x] : s0[x] + width]
        c1 = codes[q + 1, s1[x] : s1[x] + width]
        c2 = codes[q + 2, s2[x] : s2[x] + width]
        c3 = codes[q + 3, s3[x] : s3[x] + width]
        c4 = codes[q + 4, s4[x] : s4[x] + width]
        c5 = codes[q + 5, s5[x] : s5[x] + width]
        c6 = codes[q + 6, s6[x] : s6[x] + width]
        c7 = codes[q + 7, s7[x] : s7[x] + width]
        for j in range(np.uint64(width)):
            into[j] += (
                np.uint16(c0[j])
                + np.uint16(c1[j])
                + np.uint16(c2[j])
                + np.uint16(c3[j])
                + np.uint16(c4[j])
                + np.uint16(c5[j])
                + np.uint16(c6[j])
                + np.uint16(c7[j])
            )


@njit(nogil=True, cache=True)
def _add_one(
    scan: Scan, q: Int, blocks: NDArray[np.int64], count: Int, sums: NDArray[np.uint16]
) -> None:
    width = 1 << scan.searched.shift
    starts = scan.searched.starts[scan.searched.repetitions[q]]
    for b in range(count):
        start = starts[blocks[b]]
        into, codes = sums[b * width : b * width + width], scan.codes[q, start : start + width]
        for j in range(np.uint64(width)):
            into[j] += np.uint16(codes[j])


@njit(nogil=True, cache=True)
def _add_blocks(
    scan: Scan, first: Int, length: Int, blocks: NDArray[np.int64], sums: NDArray[np.uint16]
) -> None:
    count = np.int64(0)
    for b in range(
        first >> scan.searched.shift,
        (first + length + (1 << scan.searched.shift) - 1) >> scan.searched.shift,
    ):
        blocks[count] = scan.order[b] if scan.order.shape[0] > 0 else b
        count += 1
    n = scan.codes.shape[0]
    whole = n - n % _TOGETHER
    for q in range(0, whole, _TOGETHER):
        _add_eight(scan, q, blocks, count, sums)
    for q in range(whole, n):
        _add_one(scan, q, blocks, count, sums)


@njit(nogil=True, cache=True)
def _add_words(
    row0: NDArray[np.uint8],
    row1: NDArray[np.uint8],
    words0: NDArray[np.uint64],
    words1: NDArray[np.uint64],
    sums: NDArray[np.uint64],
) -> None:
    """Add the codes of two rows: four buckets of 16 bits a read, four sums a write."""
    low, one, two, three = np.uint64(0xFFFF), np.uint64(16), np.uint64(32), np.uint64(48)
    for w in range(np.uint64(words0.shape[0])):
        a, b = words0[w], words1[w]
        first = np.uint64(row0[a & low]) + np.uint64(row1[b & low])
        second = np.uint64(row0[(a >> one) & low]) + np.uint64(row1[(b >> one) & low])
        third = np.uint64(row0[(a >> two) & low]) + np.uint64(row1[(b >> two) & low])
        last = np.uint64(row0[a >> three]) + np.uint64(row1[b >> three])
        sums[w] += first | second << one | third << two | last << three


@njit(nogil=True, cache=True)
def _add_each(scan: Scan, first: Int, length: Int, sums: NDArray[np.uint16]) -> None:
    """Add the codes of consecutive products, each of which is a block."""
    n = scan.codes.shape[0]
    begin = np.int64(0)  # what is not read in words
    if scan.searched.starts.itemsize == 2:
        begin = length - length % 4
        summed = sums[:begin].view(np.uint64)
        for q in range(0, n - 1, 2):
            row0 = scan.searched.starts[scan.searched.repetitions[q], first : first + begin]
            row1 = scan.searched.starts[scan.searched.repetitions[q + 1], first : first + begin]
            _add_words(
                scan.codes[q],
                scan.codes[q + 1],
                row0.view(np.uint64),
                row1.view(np.uint64),
                summed,
            )
    for q in range(n):
        at = begin if q + 1 < n or n % 2 == 0 else np.int64(0)
        row = scan.codes[q]
        column = scan.searched.starts[scan.searched.repetitions[q], first : first + length]
        for f in range(np.uint64(at), np.uint64(length)):
            sums[f] += np.uint16(row[np.uint64(column[f])])


@njit(nogil=True, cache=True)
def _add_listed(scan: Scan, first: Int, length: Int, sums: NDArray[np.uint16]) -> None:
    listed = scan.allowed.listed[first : first + length]
    shift, lanes = np.uint64(scan.searched.shift), np.uint64((1 << scan.searched.shift) - 1)
    for q in range(scan.codes.shape[0]):
        row, starts = scan.codes[q], scan.searched.starts[scan.searched.repetitions[q]]
        for f in range(np.uint64(length)):
            label = np.uint64(listed[f])
            sums[f] += np.uint16(row[np.uint64(starts[label >> shift]) + (label & lanes)])


@njit(nogil=True, cache=True)
def add_up(
    scan: Scan, first: Int, length: Int, blocks: NDArray[np.int64], sums: NDArray[np.uint16]
) -> None:
    """Fill ``sums[:length]`` for the products at places ``first`` on.

    ``first`` begins a block; ``sums`` has room for whole ones, ``blocks`` for as many.
    """
    sums[:] = 0
    if scan.allowed.listed.shape[0] > 0:
        _add_listed(scan, first, length, sums)
    elif scan.searched.shift == 0:
        _add_each(scan, first, length, sums)
    else:
        _add_blocks(scan, first, length, blocks, sums)
