"""Compiled walk over the members of a block of one repetition's best buckets, affine hashes.

Members that pass the tests of ``_ring`` are scored exactly and offered to the heap.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._arithmetic import multiply_mod, reduce_mod
from mach.merge._bits import clear_bits, set_bits, trailing_zeros
from mach.merge._plan import BY_BITS, AffinePlan
from mach.merge._query import MEMBERS, STEPS, Query, offer
from mach.merge._select import seen_has
from mach.merge._types import Bool, Float, Int

__all__ = ["exact_affine", "walk_affine"]


@njit(nogil=True, cache=True)
def _step(
    row: NDArray[np.float32],
    floor: Float,
    multiplier: Int,
    magic: Int,
    offset: Int,
    prime: Int,
    bucket_magic: Int,
    num_buckets: Int,
    tolerance: Float,
    found: NDArray[np.uint32],
    sums: NDArray[np.float32],
    next_sums: NDArray[np.float32],
    count: Int,
) -> Int:
    """Add one repetition to the sums of ``found[:count]``, keep those that pass; how many.

    The buckets are :func:`multiply_mod` and :func:`reduce_mod` again, in 32 bits wherever the
    products are not needed, which the compiler turns into vector instructions.
    """
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a, a_magic, p = np.uint64(multiplier) & low, np.uint64(magic) & low, np.uint64(prime) & low
    b_magic = np.uint64(bucket_magic)
    p32, b32, shift = np.uint32(prime), np.uint32(num_buckets), np.uint32(offset)
    floor32 = np.float32(floor)
    for f in range(count):
        label = np.uint64(found[f])
        x = np.uint32(label * a - ((label * a_magic) >> half) * p)
        x = np.uint32(min(x, np.uint32(x - p32)) + shift)
        x = min(x, np.uint32(x - p32))
        bucket = np.uint32(x - np.uint32((np.uint64(x) * b_magic) >> half) * b32)
        bucket = min(bucket, np.uint32(bucket - b32))
        next_sums[f] = sums[f] + (row[bucket] - floor32)
    least = np.float32(-tolerance)
    kept = np.uint64(0)
    for f in range(np.uint64(count)):
        found[kept] = found[f]
        sums[kept] = next_sums[f]
        kept += np.uint64(not next_sums[f] < least)
    return np.int64(kept)


@njit(nogil=True, cache=True)
def exact_affine(scores: NDArray[np.float32], plan: AffinePlan, label: Int) -> Float:
    """A product's score: the float64 sum in increasing order of repetition."""
    multipliers, magics, offsets = plan.multipliers, plan.multiplier_magics, plan.offsets
    p, b, bucket_magic = plan.prime, plan.num_buckets, plan.bucket_magic
    total = 0.0
    for q in range(np.uint64(scores.shape[0])):
        x = multiply_mod(label, multipliers[q], magics[q], p) + offsets[q]
        if x >= p:
            x -= p
        total += np.float64(scores[q, np.uint64(reduce_mod(x, bucket_magic, b))])
    return total


@njit(nogil=True, cache=True)
def _finish_affine(query: Query, plan: AffinePlan, q: Int, done: Int, count: Int) -> None:
    """Take ``query.found[:count]`` around the ring from row q and offer what is left.

    ``query.sums`` has by how much each exceeds the floors of the ``done`` rows summed already.
    """
    scores, floors, bitmap = query.scores, query.floors, query.bitmap
    found, sums = query.found, query.sums
    multipliers, magics, offsets = plan.multipliers, plan.multiplier_magics, plan.offsets
    p, b, bucket_magic = plan.prime, plan.num_buckets, plan.bucket_magic
    n = scores.shape[0]
    if bitmap.shape[0] > 0:
        kept = np.uint64(0)
        for f in range(np.uint64(count)):
            label = found[f]
            found[kept] = label
            sums[kept] = sums[f]
            kept += np.uint64((bitmap[label >> np.uint32(3)] >> np.uint8(label & np.uint32(7))) & 1)
        count = np.int64(kept)
    for step in range(done, n):
        if count == 0:
            return
        at = q + step
        if at >= n:
            at -= n
        query.state[STEPS] += count
        count = _step(
            scores[at],
            floors[at],
            multipliers[at],
            magics[at],
            offsets[at],
            p,
            bucket_magic,
            b,
            query.tolerances[1],
            found,
            sums,
            query.next_sums,
            count,
        )
        if step == 2:  # few are left, and many of them were found before
            new = 0
            for f in range(count):
                found[new] = found[f]
                sums[new] = sums[f]
                new += not seen_has(query.seen, np.int64(found[f]))
            count = new
    for f in range(count):
        label = np.int64(found[f])
        offer(query, exact_affine(scores, plan, label), label)


@njit(nogil=True, cache=True)
def _keep_enough(
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
def _by_bits(
    bits: NDArray[np.uint64],
    enough: NDArray[np.uint64],
    row: NDArray[np.float32],
    excess: Float,
    shift: Int,
    limit: Int,
    wrapped: Bool,
    starts: NDArray[np.uint32],
    steps: NDArray[np.uint32],
    classes: NDArray[np.uint32],
    b: Int,
    p: Int,
    first_class: Int,
    num_classes: Int,
    words: NDArray[np.uint64],
    places: NDArray[np.uint32],
    found: NDArray[np.uint32],
    sums: NDArray[np.float32],
    count: Int,
) -> Int:
    """Append to ``found`` the members of a bucket that are in a bucket of ``enough`` as well.

    Members whose step wraps around p (from ``limit`` on) have another shift than those whose
    does not: the two kinds are asked for one at a time. ``sums`` get ``excess`` plus the score
    in ``row``. Returns the new length.
    """
    one = np.uint64(1)
    low = np.uint64(shift & 63)
    high = np.uint64(63) - low
    first_word = np.uint64(shift >> 6)
    for w in range(np.uint64(enough.shape[0])):
        moved = (bits[w + first_word] >> low) | ((bits[w + first_word + one] << one) << high)
        words[w] = moved & enough[w]
    hit = np.uint64(0)
    for w in range(np.uint64(enough.shape[0])):
        word = words[w]
        words[hit] = word
        places[hit] = w << np.uint64(6)
        hit += np.uint64(word != 0)
    to = np.uint64(count)
    for h in range(hit):
        word = words[h]
        place = np.int64(places[h])
        while True:
            bucket = place + trailing_zeros(word)
            word &= word - one
            residue = bucket + shift - b
            residue += b & (residue >> 63)
            sum32 = np.float32(excess + np.float64(row[np.uint64(bucket)]))
            at, end = np.int64(starts[np.uint64(residue)]), np.int64(starts[np.uint64(residue + 1)])
            while True:
                label = first_class + np.int64(classes[np.uint64(at)]) - p
                label += p & (label >> 63)
                found[to] = label
                sums[to] = sum32
                wraps = np.int64(steps[np.uint64(at)]) >= limit
                to += np.uint64((wraps == wrapped) & (label < num_classes))
                at += 1
                if at >= end:
                    break
            if word == 0:
                break
    return np.int64(to)


@njit(nogil=True, cache=True)
def _by_members(
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

    A member's bucket in ``row`` is ``first`` plus its residue, mod B.
    """
    # Places count from ``count`` on without a slice, whose reference counting costs as much as
    # a bucket's members.
    need = np.float32(-tolerance - excess)
    base = np.uint64(count)
    kept = base
    for j in range(np.uint64(start), np.uint64(end)):
        bucket = first + np.int64(residues[j]) - b
        bucket += b & (bucket >> 63)
        score = row[np.uint64(bucket)]
        places[kept - base] = j
        sums[kept] = score
        kept += np.uint64(not score < need)
    to = base
    for f in range(base, kept):
        label = first_class + np.int64(classes[places[f - base]]) - p
        label += p & (label >> 63)
        found[to] = label
        sums[to] = np.float32(excess + np.float64(sums[f]))
        to += np.uint64(label < num_classes)
    return np.int64(to)


@njit(nogil=True, cache=True)
def _first_wrapped(steps: NDArray[np.uint32], limit: Int) -> Int:
    low, high = 0, steps.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if np.int64(steps[middle]) < limit:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def walk_affine(  # noqa: PLR0912, PLR0915 - compiled as one: a call here costs as much as its work
    query: Query, plan: AffinePlan, num_classes: Int, q: Int, start: Int, end: Int
) -> None:
    """Look at the members of row q's listed buckets ``start`` to ``end`` of an affine hash."""
    tolerance, found, sums = query.tolerances[1], query.found, query.sums
    words, places = query.words, query.places
    keys, values, enough = query.keys[q], query.values[q], query.enough[q]
    steps, step_residues, step_classes = plan.steps[q], plan.step_residues[q], plan.step_classes[q]
    residue_bits, residue_starts = plan.residue_bits[q], plan.residue_starts[q]
    residue_steps, residue_classes = plan.residue_steps[q], plan.residue_classes[q]
    offset, inverse, inverse_magic = plan.offsets[q], plan.inverses[q], plan.inverse_magics[q]
    alpha, alpha_magic, beta = plan.alphas[q], plan.alpha_magics[q], plan.betas[q]
    n, b, p, bucket_magic = query.scores.shape[0], plan.num_buckets, plan.prime, plan.bucket_magic
    m = steps.shape[0]
    by_bits = m >= BY_BITS and n > 1
    after = q + 1 if q + 1 < n else 0
    row_after = query.scores[after]
    keys_after, values_after = query.keys[after], query.values[after]
    floor, floor_after = query.floors[q], query.floors[after]
    count_after = query.counts[after]
    least_listed = -np.inf if count_after == b else query.cutoffs[after]
    num_enough = query.enough_counts[q]
    p_mod_b = p % b
    zero = np.int64(0)  # typed: a literal would compile what it is passed to once more
    members = zero
    count = zero
    for i in range(start, end):
        slack = np.float64(keys[i]) - floor
        if slack < -tolerance:
            break  # the floors have risen meanwhile
        if count + m > found.shape[0]:
            _finish_affine(query, plan, q, min(n, 2), count)
            count = zero
        bucket = np.int64(values[i])
        first = bucket - offset
        if first < 0:
            first += p
        first_class = multiply_mod(first, inverse, inverse_magic, p)
        members += m
        if n == 1:
            for j in range(m):
                label = first_class + np.int64(step_classes[j])
                if label >= p:
                    label -= p
                found[count] = label
                count += label < num_classes
            continue
        x = multiply_mod(bucket, alpha, alpha_magic, p) + beta
        if x >= p:
            x -= p
        first_after = reduce_mod(x, bucket_magic, b)
        excess = slack - floor_after
        if by_bits and -tolerance - excess >= least_listed:
            num_enough = _keep_enough(
                keys_after, values_after, count_after, -tolerance - excess, enough, num_enough
            )
            if num_enough == 0:
                continue
            shift = b - first_after
            for wrapped in (False, True):
                count = _by_bits(
                    residue_bits,
                    enough,
                    row_after,
                    excess,
                    shift,
                    p - x,
                    wrapped,
                    residue_starts,
                    residue_steps,
                    residue_classes,
                    b,
                    p,
                    first_class,
                    num_classes,
                    words,
                    places,
                    found,
                    sums,
                    count,
                )
                shift += p_mod_b
                if shift > b:
                    shift -= b
        else:
            wrap = _first_wrapped(steps, p - x)
            count = _by_members(
                row_after,
                step_residues,
                step_classes,
                zero,
                wrap,
                first_after,
                excess,
                tolerance,
                b,
                p,
                first_class,
                num_classes,
                places,
                found,
                sums,
                count,
            )
            first_after -= p_mod_b
            if first_after < 0:
                first_after += b
            count = _by_members(
                row_after,
                step_residues,
                step_classes,
                wrap,
                m,
                first_after,
                excess,
                tolerance,
                b,
                p,
                first_class,
                num_classes,
                places,
                found,
                sums,
                count,
            )
    _finish_affine(query, plan, q, min(n, 2), count)
    query.enough_counts[q] = num_enough
    query.state[MEMBERS] += members
