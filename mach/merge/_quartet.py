"""Four queries scored from 8-bit codes together.

The sums of four queries' codes fit one word of 64 bits, 16 each: a product's bucket is read once,
and one lookup and one addition serve all four.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._coded import PAST_ALL, CodedScan, is_done, offer_chunk
from mach.merge._types import Int

__all__ = ["QUARTET", "pack_codes", "scan_four"]

QUARTET = 4
_CHUNK = 16_384  # products summed up together


@njit(nogil=True, cache=True)
def pack_codes(
    codes0: NDArray[np.uint8],
    codes1: NDArray[np.uint8],
    codes2: NDArray[np.uint8],
    codes3: NDArray[np.uint8],
) -> NDArray[np.uint64]:
    """Codes of four queries, shape (n, B) each, as words of shape (n, B)."""
    one, two, three = np.uint64(16), np.uint64(32), np.uint64(48)
    rows, buckets = codes0.shape
    packed = np.empty((rows, buckets), np.uint64)
    for q in range(rows):
        for v in range(buckets):
            packed[q, v] = (
                np.uint64(codes0[q, v])
                | (np.uint64(codes1[q, v]) << one)
                | (np.uint64(codes2[q, v]) << two)
                | (np.uint64(codes3[q, v]) << three)
            )
    return packed


@njit(nogil=True, cache=True)
def _add_words(
    row: NDArray[np.uint64], words: NDArray[np.uint64], sums: NDArray[np.uint64]
) -> None:
    """Four buckets of 16 bits a read."""
    low, one, two, three = np.uint64(0xFFFF), np.uint64(16), np.uint64(32), np.uint64(48)
    f = np.uint64(0)
    for w in range(np.uint64(words.shape[0])):
        word = words[w]
        sums[f] += row[word & low]
        f += np.uint64(1)
        sums[f] += row[(word >> one) & low]
        f += np.uint64(1)
        sums[f] += row[(word >> two) & low]
        f += np.uint64(1)
        sums[f] += row[word >> three]
        f += np.uint64(1)


@njit(nogil=True, cache=True)
def _add_four(
    scan: CodedScan, packed: NDArray[np.uint64], start: Int, length: Int, sums: NDArray[np.uint64]
) -> None:
    first = start - scan.base
    sums[:length] = 0
    for q in range(packed.shape[0]):
        row, repetition = packed[q], scan.repetitions[q]
        begin = np.int64(0)
        if scan.words.shape[0] > 0 and first % 4 == 0:
            word, past = first // 4, (first + length) // 4
            _add_words(row, scan.words[repetition, word:past], sums)
            begin = 4 * (past - word)
        column = scan.columns[repetition, first : first + length]
        for f in range(np.uint64(begin), np.uint64(length)):
            sums[f] += row[np.uint64(column[f])]


@njit(nogil=True, cache=True)
def _take_apart(
    together: NDArray[np.uint64], shift: Int, count: Int, sums: NDArray[np.uint16]
) -> None:
    for f in range(np.uint64(count)):
        sums[f] = np.uint16((together[f] >> np.uint64(shift)) & np.uint64(0xFFFF))


@njit(nogil=True, cache=True)
def scan_four(
    scans: tuple[CodedScan, CodedScan, CodedScan, CodedScan],
    packed: NDArray[np.uint64],
    start: Int,
    end: Int,
    positions: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sums: NDArray[np.uint16],
) -> None:
    """:func:`mach.merge._coded.scan_codes` for four queries of the same products and repetitions.

    Their ``positions`` and the ``sizes`` of their heaps are updated; what is at PAST_ALL is done.
    ``sums`` has a row for each.
    """
    together = np.empty(_CHUNK, np.uint64)
    for chunk in range(start, end, sums.shape[1]):
        length = min(np.int64(sums.shape[1]), end - chunk)
        left = 0
        for i in range(QUARTET):
            if positions[i] != PAST_ALL and is_done(scans[i], sizes[i]):
                positions[i] = PAST_ALL
            left += positions[i] != PAST_ALL
        if left == 0:
            return
        for part in range(0, length, _CHUNK):
            count = min(_CHUNK, length - part)
            _add_four(scans[0], packed, chunk + part, count, together)
            for i in range(QUARTET):
                _take_apart(together, np.uint64(16 * i), count, sums[i, part : part + count])
        for i in range(QUARTET):
            if positions[i] != PAST_ALL:
                sizes[i] = offer_chunk(scans[i], sums[i], chunk, length, sizes[i])
    for i in range(QUARTET):
        if positions[i] != PAST_ALL:
            positions[i] = end
