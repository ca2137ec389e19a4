"""Products that may not be returned: their sums are made those of no product."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._codes import NO_SUM
from mach.merge._scan import Scan
from mach.merge._types import Int

__all__ = ["exclude"]

# Eight bits of a bitmap as eight sums of 16 bits: nothing where allowed, else NO_SUM.
_SPREAD = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1,
    np.uint16(0),
    np.uint16(NO_SUM),
).view(np.uint64)


@njit(nogil=True, cache=True)
def _exclude_run(scan: Scan, label: Int, sums: NDArray[np.uint16]) -> None:
    """The same for consecutive products from ``label`` on."""
    length = sums.shape[0]
    bitmap, blocked = scan.allowed.bitmap, scan.allowed.blocked
    if bitmap.shape[0] > 0:
        whole = np.int64(0)
        if label % 8 == 0:
            whole = length - length % 8
            words, first = sums[:whole].view(np.uint64), np.uint64(label >> 3)
            for i in range(np.uint64(whole // 8)):
                bits = bitmap[first + i]
                words[np.uint64(2) * i] |= _SPREAD[bits, 0]
                words[np.uint64(2) * i + np.uint64(1)] |= _SPREAD[bits, 1]
        for f in range(whole, length):
            if not (bitmap[(label + f) >> 3] >> ((label + f) & 7)) & 1:
                sums[f] = NO_SUM
    if blocked.shape[0] > 0:
        for i in range(np.searchsorted(blocked, np.uint32(label)), blocked.shape[0]):
            if np.int64(blocked[i]) >= label + length:
                break
            sums[np.int64(blocked[i]) - label] = NO_SUM


@njit(nogil=True, cache=True)
def exclude(scan: Scan, first: Int, length: Int, sums: NDArray[np.uint16]) -> None:
    """Give products at places ``first`` on no sum where they are not allowed."""
    if scan.allowed.listed.shape[0] > 0:
        return
    if scan.order.shape[0] == 0:
        _exclude_run(scan, first, sums[:length])
        return
    width = 1 << scan.searched.shift
    for at in range(0, length, width):
        block = scan.order[(first + at) >> scan.searched.shift]
        _exclude_run(scan, block << scan.searched.shift, sums[at : min(at + width, length)])
