"""Compiled search by scoring every product from 8-bit codes of the scores.

A code says how far a bucket's score lies below its repetition's best, in steps, rounded down.
So no product scores above the sum of the best scores less a step for each code it adds up: what
that rules out needs no exact score. Codes of two repetitions fit the first-level cache, and the
sums are integers, which are added many at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._bits import is_allowed
from mach.merge._select import heap_push
from mach.merge._types import Bool, Float, Int

__all__ = [
    "MOST_ROWS",
    "PAST_ALL",
    "CodedScan",
    "as_words",
    "encode",
    "is_done",
    "offer_chunk",
    "scan_codes",
]

MOST_ROWS = 257  # 255 a repetition is the largest code, 65,535 the largest sum
_CHUNK, _BLOCK = 16_384, 128  # summed up together, so that codes stay cached; looked through
_TOGETHER = 128  # products scored together, or a few more
_GROUPS = 8  # of products, for each product wanted
_SAMPLE = 64
_SOME = 0.6  # of the products: of fewer allowed only theirs are summed up
_MOST = 65_535
PAST_ALL = 2**62


class CodedScan(NamedTuple):
    """One query's arrays while it is scanned; n repetitions, B buckets, room for k products."""

    scores: NDArray[np.float32]  # (n, B)
    codes: NDArray[np.uint8]  # (n, B)
    columns: NDArray[Any]  # buckets of products from ``base`` on, a row a repetition
    words: NDArray[np.uint64]  # the same, four buckets of 16 bits a word; or empty
    repetitions: NDArray[np.int64]  # (n,): which rows of ``columns``
    base: int
    listed: NDArray[np.uint32]  # products allowed, which are then counted by their place; or empty
    bitmap: NDArray[np.uint8]  # products allowed, one bit each; or empty
    heap_scores: NDArray[np.float64]  # (k,)
    heap_classes: NDArray[np.int64]  # (k,)
    step: float  # what a code of one stands for
    reached: float  # a score known to be reached by k products, or -inf
    top_sum: float  # of the rows' best scores
    top_magnitude: float  # of their absolute values


def as_words(columns: NDArray[Any]) -> NDArray[np.uint64]:
    """Rows of 16-bit buckets, in number a multiple of four, as 64-bit words; else nothing."""
    if columns.dtype != np.uint16 or columns.shape[1] % 4:
        return np.empty((0, 0), np.uint64)
    return columns.view(np.uint64)


@njit(nogil=True, cache=True)
def encode(
    scores: NDArray[np.float32], tops: NDArray[np.float32], codes: NDArray[np.uint8]
) -> Float:
    """Fill ``codes``, shape (n, B), from ``scores`` and each row's best score; return the step.

    The range is taken from a sample: what lies below it gets the last code, which is no more
    than it may get.
    """
    rows, buckets = scores.shape
    span = np.float32(0.0)
    for q in range(rows):
        for i in range(min(_SAMPLE, buckets)):
            score = scores[q, i * buckets // min(_SAMPLE, buckets)]
            if score > -np.inf:
                span = max(span, tops[q] - score)
    step = np.float32(span / np.float32(255.0))
    if not (step > np.float32(1e-30) and step < np.inf):
        step = np.float32(1.0)
    inverse = np.float32(1.0) / step
    for q in range(rows):
        top = tops[q]
        if top == -np.inf:
            codes[q] = 0
            continue
        for v in range(buckets):
            codes[q, v] = np.uint8(np.int32(min((top - scores[q, v]) * inverse, np.float32(255.0))))
    return np.float64(step)


@njit(nogil=True, cache=True)
def _most(reached: Float, top_sum: Float, top_magnitude: Float, rows: Int, step: Float) -> Int:
    """The largest sum of codes that a product scoring ``reached`` can have.

    Rounding moves a code by less than 2**-14, so all of them by less than one, and the sums of
    scores by less than ``error``.
    """
    error = rows * 2.0**-48 * (top_magnitude + abs(top_sum - reached))
    most = (top_sum - reached + error) / step + 1.0
    return np.int64(most) if most < _MOST else np.int64(_MOST)


@njit(nogil=True, cache=True)
def _add_two(
    row0: NDArray[np.uint8],
    row1: NDArray[np.uint8],
    words0: NDArray[np.uint64],
    words1: NDArray[np.uint64],
    sums: NDArray[np.uint64],
) -> None:
    """Add the codes of two repetitions: four buckets of 16 bits a read, four sums a write."""
    low, one, two, three = np.uint64(0xFFFF), np.uint64(16), np.uint64(32), np.uint64(48)
    for w in range(np.uint64(words0.shape[0])):
        a, b = words0[w], words1[w]
        first = np.uint64(row0[a & low]) + np.uint64(row1[b & low])
        second = np.uint64(row0[(a >> one) & low]) + np.uint64(row1[(b >> one) & low])
        third = np.uint64(row0[(a >> two) & low]) + np.uint64(row1[(b >> two) & low])
        last = np.uint64(row0[a >> three]) + np.uint64(row1[b >> three])
        sums[w] += first | second << one | third << two | last << three


@njit(nogil=True, cache=True)
def _add_codes(scan: CodedScan, start: Int, length: Int, sums: NDArray[np.uint16]) -> None:
    """Add up the codes of consecutive products: two repetitions at a time."""
    n = scan.codes.shape[0]
    first = start - scan.base
    sums[:length] = 0
    begin = np.int64(0)  # what is not read in words
    if scan.words.shape[0] > 0 and first % 4 == 0:
        word, past = first // 4, (first + length) // 4
        summed = sums[: 4 * (past - word)].view(np.uint64)
        for q in range(0, n - 1, 2):
            words0 = scan.words[scan.repetitions[q], word:past]
            words1 = scan.words[scan.repetitions[q + 1], word:past]
            _add_two(scan.codes[q], scan.codes[q + 1], words0, words1, summed)
        begin = 4 * (past - word)
    for q in range(n):
        at = begin if q + 1 < n or n % 2 == 0 else np.int64(0)
        row = scan.codes[q]
        column = scan.columns[scan.repetitions[q], first : first + length]
        for f in range(np.uint64(at), np.uint64(length)):
            sums[f] += np.uint16(row[np.uint64(column[f])])


@njit(nogil=True, cache=True)
def _places_allowed(scan: CodedScan, start: Int, length: Int, places: NDArray[np.uint32]) -> Int:
    """Where the products allowed are among consecutive ones; how many they are."""
    count = np.uint64(0)
    for f in range(length):
        places[count] = f
        count += np.uint64(is_allowed(scan.bitmap, start + f))
    return np.int64(count)


@njit(nogil=True, cache=True)
def _add_some(
    scan: CodedScan,
    start: Int,
    length: Int,
    places: NDArray[np.uint32],
    count: Int,
    sums: NDArray[np.uint16],
) -> None:
    """Add up the codes of the products at ``places[:count]``; the others' sums are the largest."""
    n, first = scan.codes.shape[0], start - scan.base
    sums[:length] = 255 * n
    for i in range(count):
        sums[places[i]] = 0
    for q in range(0, n, 2):
        row0, row1 = scan.codes[q], scan.codes[min(q + 1, n - 1)]
        column0 = scan.columns[scan.repetitions[q], first : first + length]
        column1 = scan.columns[scan.repetitions[min(q + 1, n - 1)], first : first + length]
        for i in range(np.uint64(count)):
            at = np.uint64(places[i])
            both = np.uint16(row0[np.uint64(column0[at])])
            if q + 1 < n:
                both += np.uint16(row1[np.uint64(column1[at])])
            sums[at] += both


@njit(nogil=True, cache=True)
def _offer_found(scan: CodedScan, found: NDArray[np.uint32], count: Int, size: Int) -> Int:
    """Score products exactly, as the float64 sum in order of repetition; the heap's new size."""
    totals = np.zeros(found.shape[0], np.float64)
    for q in range(scan.scores.shape[0]):  # many reads of a repetition are under way at a time
        row, column = scan.scores[q], scan.columns[scan.repetitions[q]]
        for i in range(np.uint64(count)):
            totals[i] += np.float64(row[np.uint64(column[np.uint64(found[i])])])
    for i in range(count):
        label = np.int64(found[i]) + scan.base
        if scan.listed.shape[0] > 0:
            label = np.int64(scan.listed[label])
        size = heap_push(scan.heap_scores, scan.heap_classes, size, totals[i], label)
    return size


@njit(nogil=True, cache=True)
def _best_codes(
    scan: CodedScan, sums: NDArray[np.uint16], start: Int, length: Int, wanted: Int
) -> Int:
    """A sum of codes that ``wanted`` allowed products, or all there are, do not exceed.

    The least sums of groups are as many products': few more have sums as low, and they are found
    in vector instructions.
    """
    counts = np.zeros(255 * scan.codes.shape[0] + 1, np.int32)
    groups = _GROUPS * wanted
    if scan.bitmap.shape[0] == 0 and length >= 2 * groups:
        least = sums[:groups].copy()
        for group in range(groups, length - groups + 1, groups):
            for f in range(np.uint64(groups)):
                least[f] = min(least[f], sums[np.uint64(group) + f])
        for f in range(groups):
            counts[least[f]] += 1
    else:
        for f in range(length):
            counts[sums[f]] += is_allowed(scan.bitmap, start + f)
    found = np.int64(0)
    for most in range(counts.shape[0]):
        found += counts[most]
        if found >= wanted:
            return np.int64(most)
    return np.int64(_MOST)


@njit(nogil=True, cache=True)
def _most_of(scan: CodedScan, least: Float) -> Int:
    return _most(least, scan.top_sum, scan.top_magnitude, scan.codes.shape[0], scan.step)


@njit(nogil=True, cache=True)
def _has_some(sums: NDArray[np.uint16], start: Int, end: Int, most: Int) -> Bool:
    """Whether one of some sums is ``most`` or less; in vector instructions."""
    smallest = np.uint16(_MOST)
    for f in range(np.uint64(start), np.uint64(end)):
        smallest = min(smallest, sums[f])
    return np.int64(smallest) <= most


@njit(nogil=True, cache=True)
def _offer_between(
    scan: CodedScan,
    sums: NDArray[np.uint16],
    chunk: Int,
    length: Int,
    over: Int,
    most: Int,
    size: Int,
) -> Int:
    """Offer the allowed products with sums over ``over`` and up to ``most``; the new size."""
    found = np.empty(_TOGETHER + _BLOCK, np.uint32)
    first, count = chunk - scan.base, 0
    for block in range(0, length, _BLOCK):
        past = min(block + _BLOCK, length)
        if _has_some(sums, block, past, most):
            for f in range(block, past):
                if over < np.int64(sums[f]) <= most and is_allowed(scan.bitmap, chunk + f):
                    found[count] = first + f
                    count += 1
        if count >= _TOGETHER or (count > 0 and past == length):
            size = _offer_found(scan, found, count, size)
            count = 0
            if size == scan.heap_scores.shape[0]:
                most = min(most, _most_of(scan, scan.heap_scores[0]))
    return size


@njit(nogil=True, cache=True)
def offer_chunk(
    scan: CodedScan, sums: NDArray[np.uint16], chunk: Int, length: Int, size: Int
) -> Int:
    """Offer the products from ``chunk`` on, with these sums of codes; the heap's new size."""
    k = scan.heap_scores.shape[0]
    first = np.int64(-1)  # sums up to this one are done
    if size < k and scan.reached == -np.inf:
        first = _best_codes(scan, sums, chunk, length, k - size)
        size = _offer_between(scan, sums, chunk, length, -1, first, size)
    least = scan.reached
    if size == k:
        least = max(least, scan.heap_scores[0])
    return _offer_between(scan, sums, chunk, length, first, _most_of(scan, least), size)


@njit(nogil=True, cache=True)
def is_done(scan: CodedScan, size: Int) -> Bool:
    """Whether no product further on can be better: a tie with the worst kept comes after it."""
    return size == scan.heap_scores.shape[0] and scan.heap_scores[0] >= scan.top_sum


@njit(nogil=True, cache=True)
def scan_codes(
    scan: CodedScan, start: Int, end: Int, size: Int, sums: NDArray[np.uint16]
) -> tuple[Int, Int]:
    """Offer products ``start`` to ``end`` to a heap of ``size``.

    ``sums`` is room for those of the products offered together: the more, the fewer are scored
    that later ones turn out to be better than. Returns where to go on, past all products if none
    further on can be better, and the heap's new size.
    """
    places = np.empty(_CHUNK, np.uint32)
    for chunk in range(start, end, sums.shape[0]):
        if is_done(scan, size):
            return PAST_ALL, size
        length = min(np.int64(sums.shape[0]), end - chunk)
        for part in range(0, length, _CHUNK):
            count, allowed = min(_CHUNK, length - part), np.int64(_CHUNK)
            if scan.bitmap.shape[0] > 0:
                allowed = _places_allowed(scan, chunk + part, count, places)
            if allowed <= _SOME * count:
                _add_some(scan, chunk + part, count, places, allowed, sums[part : part + count])
            else:
                _add_codes(scan, chunk + part, count, sums[part : part + count])
        size = offer_chunk(scan, sums, chunk, length, size)
    return end, size
