"""Hashing of products to buckets: a 2-universal family that moves blocks of products together.

MACH (Medini et al., "Extreme Classification in Log Memory using Count-Min Sketch",
NeurIPS 2019) asks for R independent draws from a 2-universal family, that is for two products
to share a bucket with a probability of about 1/B. This family gives that to any two products
and lets a search add up many products in one instruction: ``width`` consecutive products, a
block, lie in as many consecutive buckets, from a start that each repetition draws anew::

    h_r(i) = (s_r(i div width) + i mod width) mod B

Products of one block never collide. Those of two blocks do where the starts differ by one certain
number mod B, and these differences are spread evenly over the B buckets. Given a product, the
others collide with it no less independently than under independent buckets, so that a merged
score's variance is no larger; ``docs/merge.md`` has the argument and the measurements.

Starts are jittered cells, so that buckets are all but equally large: with x the block,

    s_r(x) = floor((u + v / q) * B / p),  u = (a_r * x + b_r) mod p,  v = (c_r * x + d_r) mod q

where p is the smallest prime not below the number of blocks, and q = 2**31 - 1. Both maps are of
the family of Carter and Wegman ("Universal classes of hash functions", 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput

__all__ = ["MAX_CLASSES", "UniversalHash", "block_width", "smallest_prime_from"]

#: With factors below 2**31 all products stay below 2**63.
MAX_CLASSES = 2**31 - 1

_FAMILY = "affine-blocks"
_JITTER_PRIME = 2**31 - 1
_MOST_WIDTH = 512  # of 8-bit codes: eight cache lines, read one after the other
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


def block_width(num_buckets: int) -> int:
    """Products a block: the largest power of two up to 512 of which two blocks fit B buckets."""
    return int(min(_MOST_WIDTH, 1 << max(0, (num_buckets // 2).bit_length() - 1)))


@dataclass(frozen=True, eq=False)
class UniversalHash:
    """R hash functions from classes 0..K-1 to buckets 0..B-1.

    Attributes:
        num_classes: K.
        num_buckets: B.
        width: products a block, a power of two of at most B.
        prime: p, at least the number of blocks.
        multipliers: a, from 1 to p - 1, uint64, shape (R,).
        offsets: b, below p, uint64, shape (R,).
        jitter_multipliers: c, from 1 to q - 1, uint64, shape (R,).
        jitter_offsets: d, below q, uint64, shape (R,).
    """

    num_classes: int
    num_buckets: int
    width: int
    prime: int
    multipliers: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    jitter_multipliers: NDArray[np.uint64]
    jitter_offsets: NDArray[np.uint64]

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
        width = block_width(num_buckets)
        prime = smallest_prime_from(-(-num_classes // width))
        parameters = np.empty((4, num_repetitions), np.uint64)
        for repetition in range(num_repetitions):
            rng = np.random.Generator(np.random.PCG64([seed, repetition]))
            for row, (least, past) in enumerate(
                ((1, prime), (0, prime), (1, _JITTER_PRIME), (0, _JITTER_PRIME))
            ):
                parameters[row, repetition] = rng.integers(least, past)
        return cls(num_classes, num_buckets, width, prime, *parameters)

    @property
    def num_repetitions(self) -> int:
        """R."""
        return len(self.multipliers)

    @property
    def num_blocks(self) -> int:
        """Blocks of products, the last of which may be short."""
        return -(-self.num_classes // self.width)

    def starts(self, repetition: int, blocks: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The buckets of the ``blocks``' first products in one repetition, int64, their shape."""
        x = np.asarray(blocks).astype(np.uint64)
        p, q, b = (np.uint64(n) for n in (self.prime, _JITTER_PRIME, self.num_buckets))
        u = (self.multipliers[repetition] * x + self.offsets[repetition]) % p
        v = (self.jitter_multipliers[repetition] * x + self.jitter_offsets[repetition]) % q
        # A floor within a floor: the same as of the whole.
        starts: NDArray[np.int64] = ((u * b + v * b // q) // p).astype(np.int64)
        return starts

    def buckets(self, repetition: int, classes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Buckets of ``classes`` (any shape) in one repetition, int64, the same shape."""
        blocks, lanes = np.divmod(np.asarray(classes, np.int64), self.width)
        buckets: NDArray[np.int64] = (self.starts(repetition, blocks) + lanes) % self.num_buckets
        return buckets

    def table(self) -> NDArray[np.uint32]:
        """Buckets of every class in every repetition, uint32, shape (R, K)."""
        classes = np.arange(self.num_classes)
        table = np.empty((self.num_repetitions, self.num_classes), np.uint32)
        for repetition in range(self.num_repetitions):
            table[repetition] = self.buckets(repetition, classes)
        return table

    def to_manifest(self) -> dict[str, Any]:
        """A JSON-ready description, read back by :meth:`from_manifest`."""
        return {
            "family": _FAMILY,
            "width": self.width,
            "prime": self.prime,
            **{name: [int(number) for number in getattr(self, name)] for name in _PARAMETERS},
        }

    def describe(self, repetition: int) -> dict[str, Any]:
        """The same of one repetition, JSON-ready."""
        entry: dict[str, Any] = {"family": _FAMILY, "width": self.width, "prime": self.prime}
        for name in _PARAMETERS:
            entry[name.removesuffix("s")] = int(getattr(self, name)[repetition])
        return entry

    @classmethod
    def from_manifest(
        cls, num_classes: int, num_buckets: int, entry: dict[str, Any]
    ) -> UniversalHash:
        """Read what :meth:`to_manifest` wrote.

        Raises:
            InvalidInput: if the family is unknown, or a parameter missing or out of its range.
        """
        if entry.get("family") != _FAMILY:
            raise InvalidInput("hash.family", f"unknown hash family {entry.get('family')!r}")
        try:
            width, prime = int(entry["width"]), int(entry["prime"])
            lists = [[int(number) for number in entry[name]] for name in _PARAMETERS]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidInput("hash", f"cannot be read: {error!r}") from error
        if not 1 <= width <= num_buckets or width & (width - 1):
            raise InvalidInput("hash.width", f"{width} is no power of two up to B")
        if not -(-num_classes // width) <= prime <= MAX_CLASSES or not _is_prime(prime):
            raise InvalidInput("hash.prime", f"{prime} is no prime of at least the blocks")
        for name, numbers in zip(_PARAMETERS, lists, strict=True):
            least = 1 if "multipliers" in name else 0
            past = _JITTER_PRIME if "jitter" in name else prime
            if not numbers or len(numbers) != len(lists[0]):
                raise InvalidInput(f"hash.{name}", "needs one entry a repetition")
            if min(numbers) < least or max(numbers) >= past:
                raise InvalidInput(f"hash.{name}", f"an entry is not from {least} to {past - 1}")
        return cls(
            num_classes, num_buckets, width, prime, *(np.array(some, np.uint64) for some in lists)
        )


_PARAMETERS = ("multipliers", "offsets", "jitter_multipliers", "jitter_offsets")
