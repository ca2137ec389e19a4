"""Hashing of products to buckets: a 2-universal family whose inverse is arithmetic.

MACH (Medini et al., "Extreme Classification in Log Memory using Count-Min Sketch",
NeurIPS 2019) asks for R independent draws from a 2-universal family. This is the family
of Carter and Wegman ("Universal classes of hash functions", 1979)::

    h_r(i) = ((a_r * i + b_r) mod p) mod B,    1 <= a_r < p,  0 <= b_r < p

with ``p`` the smallest prime not below max(K, B). The inner map is a bijection of
{0..p-1}, so with ``p`` that close to K the buckets are all but equally large, and the
members of a bucket are ``a_r^-1 * (v - b_r) mod p`` for v = bucket, bucket + B, ... < p:
an arithmetic progression, which needs no inverted lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput

__all__ = ["MAX_CLASSES", "UniversalHash", "smallest_prime_from"]

#: With classes and multipliers below 2**31 the product a*i + b stays below 2**63.
MAX_CLASSES = 2**31 - 1

_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # Miller-Rabin, exact below 2**64


def _is_prime(n: int) -> bool:
    if n < 2:
        return False
    for q in _WITNESSES:
        if n % q == 0:
            return n == q
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for witness in _WITNESSES:
        x = pow(witness, odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def smallest_prime_from(n: int) -> int:
    """The smallest prime that is at least ``n``."""
    candidate = max(2, n)
    while not _is_prime(candidate):
        candidate += 1
    return candidate


@dataclass(frozen=True, eq=False)
class UniversalHash:
    """R hash functions from classes 0..K-1 to buckets 0..B-1.

    Attributes:
        num_classes: K.
        num_buckets: B.
        prime: p, the modulus of the inner map.
        multipliers: a, uint64, shape (R,).
        offsets: b, uint64, shape (R,).
    """

    num_classes: int
    num_buckets: int
    prime: int
    multipliers: NDArray[np.uint64]
    offsets: NDArray[np.uint64]

    @classmethod
    def draw(
        cls, num_classes: int, num_buckets: int, num_repetitions: int, seed: int
    ) -> UniversalHash:
        """Draw R functions; the same arguments give the same functions on any machine.

        Repetition r depends on ``seed`` and r alone, so adding repetitions keeps the first ones.

        Raises:
            InvalidInput: if a size is below 1 or K or B is above ``MAX_CLASSES``.
        """
        for name, value in (
            ("num_classes", num_classes),
            ("num_buckets", num_buckets),
            ("num_repetitions", num_repetitions),
        ):
            if not 1 <= value <= MAX_CLASSES:
                raise InvalidInput(name, f"must be from 1 to {MAX_CLASSES}, got {value}")
        prime = smallest_prime_from(max(num_classes, num_buckets))
        multipliers = np.empty(num_repetitions, np.uint64)
        offsets = np.empty(num_repetitions, np.uint64)
        for repetition in range(num_repetitions):
            rng = np.random.Generator(np.random.PCG64([seed, repetition]))
            multipliers[repetition] = rng.integers(1, prime)
            offsets[repetition] = rng.integers(0, prime)
        return cls(num_classes, num_buckets, prime, multipliers, offsets)

    @property
    def num_repetitions(self) -> int:
        """R."""
        return len(self.multipliers)

    def buckets(self, repetition: int, classes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Buckets of ``classes`` (any shape) in one repetition, int64, the same shape."""
        i = np.asarray(classes).astype(np.uint64)
        mixed = (i * self.multipliers[repetition] + self.offsets[repetition]) % np.uint64(
            self.prime
        )
        buckets: NDArray[np.int64] = (mixed % np.uint64(self.num_buckets)).astype(np.int64)
        return buckets

    def table(self) -> NDArray[np.uint32]:
        """Buckets of every class in every repetition, uint32, shape (R, K)."""
        classes = np.arange(self.num_classes)
        table = np.empty((self.num_repetitions, self.num_classes), np.uint32)
        for repetition in range(self.num_repetitions):
            table[repetition] = self.buckets(repetition, classes)
        return table

    def members(self, repetition: int, bucket: int) -> NDArray[np.int64]:
        """Classes of one bucket, int64, increasing; by arithmetic, without a table."""
        inverse = pow(int(self.multipliers[repetition]), -1, self.prime)
        mixed = np.arange(bucket, self.prime, self.num_buckets, dtype=np.uint64)
        shifted = (mixed + np.uint64(self.prime) - self.offsets[repetition]) % np.uint64(self.prime)
        classes = (shifted * np.uint64(inverse)) % np.uint64(self.prime)
        members: NDArray[np.int64] = classes[classes < self.num_classes].astype(np.int64)
        members.sort()
        return members

    def to_manifest(self) -> dict[str, Any]:
        """A JSON-ready description, read back by :meth:`from_manifest`."""
        return {
            "family": "affine-mod-prime",
            "prime": self.prime,
            "multipliers": [int(a) for a in self.multipliers],
            "offsets": [int(b) for b in self.offsets],
        }

    @classmethod
    def from_manifest(
        cls, num_classes: int, num_buckets: int, entry: dict[str, Any]
    ) -> UniversalHash:
        """Read what :meth:`to_manifest` wrote.

        Raises:
            InvalidInput: if the family is unknown, or a parameter missing or out of its range.
        """
        if entry.get("family") != "affine-mod-prime":
            raise InvalidInput("hash.family", f"unknown hash family {entry.get('family')!r}")
        try:
            prime = int(entry["prime"])
            multipliers = [int(a) for a in entry["multipliers"]]
            offsets = [int(b) for b in entry["offsets"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidInput("hash", f"cannot be read: {error!r}") from error
        if not max(num_classes, num_buckets) <= prime <= MAX_CLASSES or not _is_prime(prime):
            raise InvalidInput("hash.prime", f"{prime} is no prime of at least K and B")
        if len(multipliers) != len(offsets) or not multipliers:
            raise InvalidInput("hash.multipliers", "needs one multiplier and one offset each")
        if min(multipliers) < 1 or min(offsets) < 0 or max(multipliers + offsets) >= prime:
            raise InvalidInput("hash.multipliers", "an entry is not below the prime")
        return cls(
            num_classes,
            num_buckets,
            prime,
            np.array(multipliers, np.uint64),
            np.array(offsets, np.uint64),
        )
