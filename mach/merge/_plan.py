"""What a search over a given subset of repetitions needs to know of an affine hash.

The inner map of repetition q takes class i to ``x = (a_q * i + b_q) mod p``; its bucket is
``x mod B``. Bucket v's members are ``x = v + j * B`` for j = 0, 1, ... below p. In another
repetition's inner map they are an arithmetic progression too, ``x' = x'_0 + P_j mod p`` with
``P_j = j * B * alpha mod p`` and ``alpha = a_q' / a_q mod p``: the steps P_j do not depend on v.
Neither do their residues ``P_j mod B``, kept here as a bit vector: shifted by ``x'_0 mod B`` it
is the set of buckets of repetition q' that bucket v of repetition q has a member in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mach.merge._arithmetic import magic_of
from mach.merge.table import AffineHash, BucketTable

__all__ = ["AffinePlan", "StoredPlan", "plan_affine", "plan_stored"]


BY_BITS = 400  # members a bucket must have for the search by bit vector to be the quicker one
_LEVELS = 16  # of steps, told apart by bit vectors of their own


class AffinePlan(NamedTuple):
    """Arrays for compiled code; row q is for the q-th repetition searched and the one after it.

    With n repetitions searched, m = ceil(p / B) members a bucket and w words of B bits.
    """

    repetitions: NDArray[np.int64]  # (n,)
    prime: int
    num_buckets: int
    bucket_magic: int
    multipliers: NDArray[np.int64]  # (n,)
    multiplier_magics: NDArray[np.int64]
    offsets: NDArray[np.int64]
    inverses: NDArray[np.int64]
    inverse_magics: NDArray[np.int64]
    alphas: NDArray[np.int64]  # a_q' / a_q mod p
    alpha_magics: NDArray[np.int64]
    betas: NDArray[np.int64]  # b_q' - alpha * b_q mod p
    steps: NDArray[np.uint32]  # (n, m): P_j, rising
    step_residues: NDArray[np.uint32]  # (n, m): P_j mod B
    step_classes: NDArray[np.uint32]  # (n, m): j * B / a_q mod p, the step from class to class
    # The same by residue, for searches by bit vector; empty where m is too small for them.
    # (n, 2, levels, words of 2 B bits): P_j mod B, twice in a row, of the steps that may be below
    # a limit of that level, and of those that may not.
    level_bits: NDArray[np.uint64]
    level_shift: int  # from a limit to its level
    residue_starts: NDArray[np.uint32]  # (n, B + 1): where in the next a residue's members are
    residue_members: NDArray[np.uint64]  # (n, m): P_j times 2**32, plus j * B / a_q mod p
    # The steps from class to class rising, twice in a row, p and 2 p added: from whichever step
    # wraps around p the next m are a bucket's members, rising. Then the same without the last j,
    # for buckets v whose v + (m - 1) * B is not below p.
    run_classes: NDArray[np.uint32]  # (n, 4 m)
    run_index: NDArray[np.uint32]  # (n, 2, p >> run_shift + 1): where steps that high begin
    run_shift: int


def plan_affine(hash: AffineHash, repetitions: NDArray[np.int64]) -> AffinePlan:
    """Prepare a search over ``repetitions``; takes O(p / B + B) memory for each."""
    p, b = int(hash.prime), int(hash.num_buckets)
    n, m = len(repetitions), -(-p // b)
    a = [int(hash.multipliers[r]) for r in repetitions]
    shift = [int(hash.offsets[r]) for r in repetitions]
    inverses = [pow(x, -1, p) for x in a]
    alphas = [a[(q + 1) % n] * inverses[q] % p for q in range(n)]
    betas = [(shift[(q + 1) % n] - alphas[q] * shift[q]) % p for q in range(n)]
    steps, step_residues, step_classes = (np.empty((n, m), np.uint32) for _ in range(3))
    by_bits = BY_BITS <= m <= b  # of more, there are some in about every bucket
    level_shift = max(0, p.bit_length() - _LEVELS.bit_length() + 1)
    levels = ((p - 1) >> level_shift) + 1 if by_bits else 0
    # Groups of eight words are read from any word of the first B bits on, and one word more.
    bits = np.zeros((n, 2, levels, -(-2 * b // 64) + 10), np.uint64)
    starts = np.zeros((n, b + 1 if by_bits else 0), np.uint32)
    residue_members = np.empty((n, m if by_bits else 0), np.uint64)
    j = np.arange(m, dtype=np.int64)
    run_shift = max(0, p.bit_length() - m.bit_length())
    heights = np.arange((p >> run_shift) + 1, dtype=np.int64) << run_shift
    run_classes = np.empty((n, 4 * m), np.uint32)
    run_index = np.empty((n, 2, len(heights)), np.uint32)
    for q in range(n):
        step = j * (b * alphas[q] % p) % p
        classes = j * (b * inverses[q] % p) % p
        order = np.argsort(step)
        steps[q] = step[order]
        step_residues[q] = steps[q] % b
        step_classes[q] = classes[order]
        whole, short = np.sort(classes), np.sort(classes[:-1])
        run_classes[q] = np.concatenate([whole, whole + p, [2 * p], short, short + p, [2 * p]])
        for which, rising in enumerate((whole, short)):
            run_index[q, which] = np.searchsorted(rising, heights)
        if by_bits:
            order = np.argsort(step % b, kind="stable")
            step, classes = step[order], classes[order]
            residue_members[q] = (step << 32) | classes
            starts[q, 1:] = np.cumsum(np.bincount(step % b, minlength=b))
            for level in range(levels):
                least, past = level << level_shift, (level + 1) << level_shift
                _set_twice(bits[q, 0, level], step[step < past] % b, b)
                _set_twice(bits[q, 1, level], step[step >= least] % b, b)
    return AffinePlan(
        repetitions=repetitions,
        prime=p,
        num_buckets=b,
        bucket_magic=magic_of(1, b),
        multipliers=np.array(a, np.int64),
        multiplier_magics=np.array([magic_of(x, p) for x in a], np.int64),
        offsets=np.array(shift, np.int64),
        inverses=np.array(inverses, np.int64),
        inverse_magics=np.array([magic_of(x, p) for x in inverses], np.int64),
        alphas=np.array(alphas, np.int64),
        alpha_magics=np.array([magic_of(x, p) for x in alphas], np.int64),
        betas=np.array(betas, np.int64),
        steps=steps,
        step_residues=step_residues,
        step_classes=step_classes,
        level_bits=bits,
        level_shift=level_shift,
        residue_starts=starts,
        residue_members=residue_members,
        run_classes=run_classes,
        run_index=run_index,
        run_shift=run_shift,
    )


def _set_twice(bits: NDArray[np.uint64], residues: NDArray[np.int64], b: int) -> None:
    """Set the bits of residues mod b, and those b further."""
    for copy in (residues, residues + b):
        np.bitwise_or.at(bits, copy >> 6, np.uint64(1) << (copy & 63).astype(np.uint64))


class StoredPlan(NamedTuple):
    """The same for an explicit assignment; see :class:`mach.merge.BucketTable`."""

    repetitions: NDArray[np.int64]  # (n,)
    assignment: NDArray[Any]  # (K, R)
    starts: NDArray[np.int64]  # (R, B + 1)
    members: NDArray[np.uint32]  # (R, K)


def plan_stored(table: BucketTable, repetitions: NDArray[np.int64]) -> StoredPlan:
    """Prepare a search over ``repetitions`` of a table over an assignment."""
    assert table.assignment is not None
    assert table.starts is not None
    assert table.members is not None
    return StoredPlan(repetitions, table.assignment, table.starts, table.members)
