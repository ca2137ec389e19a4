"""Compiled walk over the members of a block of one repetition's best buckets, affine hashes.

Members that pass the tests of ``_ring`` are scored exactly and offered to the heap.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge._arithmetic import multiply_mod, reduce_mod
from mach.merge._pairs import add_hits, add_members, hit_buckets, keep_enough
from mach.merge._plan import AffinePlan
from mach.merge._query import MEMBERS, STEPS, Query, offer
from mach.merge._select import lower_bound, seen_has
from mach.merge._types import Float, Int

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
    buckets: NDArray[np.uint32],
    places: NDArray[np.uint32],
    count: Int,
) -> Int:
    """Add one repetition to the sums of ``found[:count]``, keep those that pass; how many."""
    # :func:`multiply_mod` and :func:`reduce_mod` again, in 32 bits wherever the products are not
    # needed and by itself: the compiler turns that into vector instructions, a look-up never.
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a, a_magic, p = np.uint64(multiplier) & low, np.uint64(magic) & low, np.uint64(prime) & low
    b_magic = np.uint64(bucket_magic) & low
    p32, b32, shift = np.uint32(prime), np.uint32(num_buckets), np.uint32(offset)
    for f in range(count):
        label = np.uint64(found[f])
        x = np.uint32(label * a - ((label * a_magic) >> half) * p)
        x = np.uint32(min(x, np.uint32(x - p32)) + shift)
        x = min(x, np.uint32(x - p32))
        bucket = np.uint32(x - np.uint32((np.uint64(x) * b_magic) >> half) * b32)
        buckets[f] = min(bucket, np.uint32(bucket - b32))
    floor32, least = np.float32(floor), np.float32(-tolerance)
    kept = np.uint64(0)
    for f in range(np.uint64(count)):
        total = sums[f] + (row[np.uint64(buckets[f])] - floor32)
        next_sums[f] = total
        places[kept] = f
        kept += np.uint64(not total < least)
    for i in range(kept):
        at = np.uint64(places[i])
        found[i] = found[at]
        sums[i] = next_sums[at]
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
            query.buckets,
            query.places,
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
def walk_affine(  # noqa: PLR0912, PLR0915 - compiled as one: a call here costs as much as its work
    query: Query, plan: AffinePlan, num_classes: Int, q: Int, start: Int, end: Int
) -> None:
    """Look at the members of row q's listed buckets ``start`` to ``end`` of an affine hash."""
    tolerance, found, sums = query.tolerances[1], query.found, query.sums
    words, places = query.words, query.places
    keys, values, enough = query.keys[q], query.values[q], query.enough[q]
    steps, step_residues, step_classes = plan.steps[q], plan.step_residues[q], plan.step_classes[q]
    level_bits, residue_starts = plan.level_bits[q], plan.residue_starts[q]
    residue_members = plan.residue_members[q]
    offset, inverse, inverse_magic = plan.offsets[q], plan.inverses[q], plan.inverse_magics[q]
    alpha, alpha_magic, beta = plan.alphas[q], plan.alpha_magics[q], plan.betas[q]
    n, b, p, bucket_magic = query.scores.shape[0], plan.num_buckets, plan.prime, plan.bucket_magic
    m = steps.shape[0]
    by_bits = plan.residue_members.shape[1] > 0 and n > 1
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
        excess, limit = slack - floor_after, p - x
        if by_bits and -tolerance - excess >= least_listed:
            num_enough = keep_enough(
                keys_after, values_after, count_after, -tolerance - excess, enough, num_enough
            )
            if num_enough == 0:
                continue
            shift = b - first_after
            level = min(limit, p - 1) >> plan.level_shift
            low_end = hit_buckets(
                level_bits[0, level], enough, shift, words, places, query.hits, zero
            )
            shift_wrapped = shift + p_mod_b
            if shift_wrapped > b:
                shift_wrapped -= b
            high_end = hit_buckets(
                level_bits[1, level], enough, shift_wrapped, words, places, query.hits, low_end
            )
            for wrapped in (False, True):
                count = add_hits(
                    query.hits,
                    low_end if wrapped else zero,
                    high_end if wrapped else low_end,
                    shift_wrapped if wrapped else shift,
                    limit,
                    wrapped,
                    row_after,
                    excess,
                    residue_starts,
                    residue_members,
                    b,
                    p,
                    first_class,
                    num_classes,
                    found,
                    sums,
                    count,
                )
        else:
            wrap = lower_bound(steps, 0, steps.shape[0], limit)
            for wrapped in (False, True):
                count = add_members(
                    row_after,
                    step_residues,
                    step_classes,
                    wrap if wrapped else zero,
                    m if wrapped else wrap,
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
    _finish_affine(query, plan, q, min(n, 2), count)
    query.enough_counts[q] = num_enough
    query.state[MEMBERS] += members
