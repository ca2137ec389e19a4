"""Hashing of products to buckets: a family that moves blocks of products together.

MACH (Medini et al., "Extreme Classification in Log Memory using Count-Min Sketch",
NeurIPS 2019) asks for R independent draws from a 2-universal family, that is for two products
to share a bucket with a probability of about 1/B. This family gives that to any two products
and lets a search add up many products in one instruction: ``width`` consecutive products, a
block, lie in as many consecutive buckets, from a start that each repetition draws anew::

    h_r(i) = (s_r(i div width) + i mod width) mod B
    s_r(x) = floor(v B / q),    v = (a_r x^2 + b_r x + c_r) mod q,    q = 2**31 - 1

Polynomials of degree 2 are 3-independent (Wegman and Carter, "New hash functions and their use in
authentication and set equality", 1981): the starts of any three blocks are. So two products of
different blocks collide with probability 1/B (to some B/q), products of one block never, and given
a product, which others collide with it is independent between blocks: a merged score's variance is
no larger than under a hash of single products that are pairwise independent given a third.
``docs/merge.md`` has the argument and measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput

__all__ = ["MAX_CLASSES", "MAX_WIDTH", "UniversalHash", "block_width", "is_width"]

#: Blocks and coefficients are below this prime, so that all products stay below 2**63.
MAX_CLASSES = _PRIME = 2**31 - 1
#: Products a block at most. Of 8-bit codes: eight cache lines, read one after the other.
MAX_WIDTH = 512

_FAMILY = "quadratic-blocks"
_TERMS = 3


def is_width(width: int, num_buckets: int) -> bool:
    """Whether blocks may have so many products: a power of two up to B and :data:`MAX_WIDTH`."""
    return 1 <= width <= min(num_buckets, MAX_WIDTH) and not width & (width - 1)


def block_width(num_buckets: int) -> int:
    """Products a block: the largest power of two up to 512 of which two blocks fit B buckets."""
    return int(min(MAX_WIDTH, 1 << max(0, (num_buckets // 2).bit_length() - 1)))


@dataclass(frozen=True, eq=False)
class UniversalHash:
    """R hash functions from classes 0..K-1 to buckets 0..B-1.

    Attributes:
        num_classes: K.
        num_buckets: B.
        width: products a block, a power of two of at most B and :data:`MAX_WIDTH`.
        coefficients: a, b and c of each repetition, below q, uint64, shape (R, 3).
    """

    num_classes: int
    num_buckets: int
    width: int
    coefficients: NDArray[np.uint64]

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
        coefficients = np.empty((num_repetitions, _TERMS), np.uint64)
        for repetition in range(num_repetitions):
            rng = np.random.Generator(np.random.PCG64([seed, repetition]))
            coefficients[repetition] = rng.integers(0, _PRIME, _TERMS)
        return cls(num_classes, num_buckets, block_width(num_buckets), coefficients)

    @property
    def num_repetitions(self) -> int:
        """R."""
        return len(self.coefficients)

    @property
    def num_blocks(self) -> int:
        """Blocks of products, the last of which may be short."""
        return -(-self.num_classes // self.width)

    def starts(self, repetition: int, blocks: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The buckets of the ``blocks``' first products in one repetition, int64, their shape."""
        x, q = np.asarray(blocks).astype(np.uint64), np.uint64(_PRIME)
        a, b, c = self.coefficients[repetition]
        v = ((a * x + b) % q * x + c) % q
        starts: NDArray[np.int64] = (v * np.uint64(self.num_buckets) // q).astype(np.int64)
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
            "coefficients": self.coefficients.tolist(),
        }

    def describe(self, repetition: int) -> dict[str, Any]:
        """The same of one repetition."""
        return self.to_manifest() | {"coefficients": self.coefficients[repetition].tolist()}

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
            width = int(entry["width"])
            rows = [[int(number) for number in row] for row in entry["coefficients"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidInput("hash", f"cannot be read: {error!r}") from error
        if not is_width(width, num_buckets):
            raise InvalidInput("hash.width", f"{width} is no power of two up to B and {MAX_WIDTH}")
        if not rows or any(len(row) != _TERMS for row in rows):
            raise InvalidInput("hash.coefficients", f"needs {_TERMS} numbers a repetition")
        if not all(0 <= number < _PRIME for row in rows for number in row):
            raise InvalidInput("hash.coefficients", f"a number is not from 0 to {_PRIME - 1}")
        return cls(num_classes, num_buckets, width, np.array(rows, np.uint64))
