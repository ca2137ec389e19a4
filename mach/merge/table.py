"""The index: which bucket a product falls into in each repetition, and the way back."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mach.errors import BundleError, InvalidInput
from mach.files import atomic_path
from mach.merge._inverted import invert
from mach.merge.products import ProductSet

__all__ = ["AffineHash", "BucketTable"]

_MAGIC = b"MACHBKT1"
_ALIGNMENT = 4096  # arrays start on a page, so that mapping one touches no other


class AffineHash(Protocol):
    """What is needed of a hash: ``((a_r * i + b_r) mod p) mod B`` (``mach.hashing``)."""

    @property
    def num_buckets(self) -> int:
        """B."""

    @property
    def prime(self) -> int:
        """p, a prime of at least K and B and below 2**31."""

    @property
    def multipliers(self) -> NDArray[np.uint64]:
        """a, shape (R,)."""

    @property
    def offsets(self) -> NDArray[np.uint64]:
        """b, shape (R,)."""


class BucketTable:
    """Product → bucket in every repetition, and bucket → products.

    A table over an affine hash stores nothing but the hash's parameters: both directions are
    arithmetic. A table over an explicit assignment stores the buckets product by product
    (2 bytes a product and repetition while B ≤ 65,536, else 4), and inverted lists.

    Attributes:
        num_classes: K.
        num_buckets: B.
        num_repetitions: R.
        dtype: uint16 while B ≤ 65,536, else uint32.
        hash: the affine hash, or None for an assignment.
        assignment: the buckets, shape (K, R), ``dtype``; None for a hash.
        starts: where in ``members`` a bucket's products start, int64, shape (R, B + 1); or None.
        members: the products of each bucket, by bucket, increasing, uint32, shape (R, K); or None.
    """

    def __init__(
        self,
        num_classes: int,
        num_buckets: int,
        num_repetitions: int,
        *,
        hash: AffineHash | None = None,
        assignment: NDArray[Any] | None = None,
        starts: NDArray[np.int64] | None = None,
        members: NDArray[np.uint32] | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.num_buckets = num_buckets
        self.num_repetitions = num_repetitions
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if num_buckets <= 65_536 else np.uint32)
        self.hash = hash
        self.assignment = assignment
        self.starts = starts
        self.members = members

    @classmethod
    def from_hash(cls, hash: AffineHash, num_classes: int) -> BucketTable:
        """A table that computes what it is asked; no memory that grows with K.

        Raises:
            InvalidInput: if the prime is below K or B, or is not below 2**31.
        """
        prime = int(hash.prime)
        if num_classes < 1:
            raise InvalidInput("num_classes", f"must be at least 1, got {num_classes}")
        if not max(num_classes, hash.num_buckets) <= prime < 2**31:
            raise InvalidInput("hash.prime", f"{prime} is not from max(K, B) to 2**31 - 1")
        return cls(num_classes, hash.num_buckets, len(hash.multipliers), hash=hash)

    @classmethod
    def from_assignment(
        cls, assignment: NDArray[np.integer[Any]], num_buckets: int | None = None
    ) -> BucketTable:
        """A table over buckets chosen otherwise than by a hash (learned, re-balanced).

        Args:
            assignment: the bucket of every product in every repetition, integers, shape (R, K).
            num_buckets: B; by default one more than the largest bucket given.

        Raises:
            InvalidInput: if the shape is not (R, K) or a bucket is not from 0 to B - 1.
        """
        assignment = np.asarray(assignment)
        if assignment.ndim != 2 or not np.issubdtype(assignment.dtype, np.integer):
            raise InvalidInput("assignment", "must be integers of shape (R, K)")
        repetitions, classes = assignment.shape
        if not repetitions or not classes or classes > 2**31 - 1:
            raise InvalidInput("assignment", f"cannot index {repetitions} x {classes} buckets")
        largest = int(assignment.max())
        buckets = largest + 1 if num_buckets is None else num_buckets
        if int(assignment.min()) < 0 or largest >= buckets:
            raise InvalidInput("assignment", f"a bucket is not from 0 to {buckets - 1}")
        table = cls(classes, buckets, repetitions)
        table.assignment = np.empty((classes, repetitions), table.dtype)
        table.starts = np.empty((repetitions, buckets + 1), np.int64)
        table.members = np.empty((repetitions, classes), np.uint32)
        for repetition in range(repetitions):
            column = np.ascontiguousarray(assignment[repetition].astype(table.dtype))
            table.assignment[:, repetition] = column
            invert(column, table.starts[repetition], table.members[repetition])
        return table

    def rows(self, classes: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Buckets of ``classes`` (shape (n,)) in every repetition, ``dtype``, shape (n, R)."""
        classes = np.asarray(classes)
        if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
            raise InvalidInput("classes", f"a class is not from 0 to {self.num_classes - 1}")
        if self.assignment is not None:
            return np.asarray(self.assignment[classes])
        assert self.hash is not None
        a, b = self.hash.multipliers.astype(np.uint64), self.hash.offsets.astype(np.uint64)
        mixed = (classes.astype(np.uint64)[:, None] * a + b) % np.uint64(self.hash.prime)
        return (mixed % np.uint64(self.num_buckets)).astype(self.dtype)

    def members_of(self, repetition: int, buckets: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Products of some buckets of one repetition, int64, in no order."""
        if self.members is not None and self.starts is not None:
            starts = self.starts[repetition]
            parts = [self.members[repetition, starts[v] : starts[v + 1]] for v in buckets]
            return np.concatenate(parts).astype(np.int64)
        assert self.hash is not None
        p = int(self.hash.prime)
        inverse = pow(int(self.hash.multipliers[repetition]), -1, p)
        mixed = np.arange(0, p, self.num_buckets) + np.asarray(buckets, np.int64)[:, None]
        mixed = mixed[mixed < p]
        # Below 2**62: both factors are below p, which is below 2**31.
        classes: NDArray[np.int64] = (mixed + p - int(self.hash.offsets[repetition])) % p
        classes = classes * inverse % p
        return classes[classes < self.num_classes]

    def columns(self) -> NDArray[Any]:
        """Buckets of every product in every repetition, ``dtype``, shape (R, K); computed."""
        columns = np.empty((self.num_repetitions, self.num_classes), self.dtype)
        for start in range(0, self.num_classes, 1 << 16):
            classes = np.arange(start, min(self.num_classes, start + (1 << 16)))
            columns[:, start : start + len(classes)] = self.rows(classes).T
        return columns

    def checked_repetitions(
        self, repetitions: Sequence[int] | NDArray[np.integer[Any]] | None
    ) -> NDArray[np.int64]:
        """Which repetitions a query's rows are, int64; all of them for None.

        Raises:
            InvalidInput: unless they increase and are repetitions of this table.
        """
        if repetitions is None:
            return np.arange(self.num_repetitions)
        chosen = np.asarray(repetitions)
        if chosen.ndim != 1 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
            raise InvalidInput("repetitions", "must be a list of at least one integer")
        rows = chosen.astype(np.int64)
        last = self.num_repetitions - 1
        if (np.diff(rows) <= 0).any() or rows[0] < 0 or rows[-1] > last:
            raise InvalidInput("repetitions", f"must increase, from 0 to at most {last}")
        return rows

    def check_query(
        self, shape: tuple[int, ...], num_rows: int, k: int, allowed: ProductSet | None
    ) -> None:
        """Refuse a query whose scores' shape, k or product set do not fit this table.

        Raises:
            InvalidInput: naming the argument at fault.
        """
        expected = (num_rows, self.num_buckets)
        if shape != expected:
            raise InvalidInput("scores", f"a query must have shape {expected}, got {shape}")
        if k < 1:
            raise InvalidInput("k", f"must be at least 1, got {k}")
        if allowed is not None and allowed.num_classes != self.num_classes:
            raise InvalidInput(
                "allowed", f"is a set of {allowed.num_classes} products, not {self.num_classes}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the index: what is stored, mapped or not."""
        arrays = (self.assignment, self.starts, self.members)
        return 16 * self.num_repetitions + sum(a.nbytes for a in arrays if a is not None)

    def save(self, path: str | Path) -> None:
        """Write the table as one file, atomically: beside ``path``, synced, then renamed."""
        header: dict[str, Any] = {
            "num_classes": self.num_classes,
            "num_buckets": self.num_buckets,
            "num_repetitions": self.num_repetitions,
        }
        if self.hash is not None:
            header["hash"] = {
                "prime": int(self.hash.prime),
                "multipliers": [int(a) for a in self.hash.multipliers],
                "offsets": [int(b) for b in self.hash.offsets],
            }
        encoded = json.dumps(header).encode()
        with atomic_path(Path(path)) as draft, draft.open("wb") as file:
            file.write(_MAGIC + len(encoded).to_bytes(8, "little") + encoded)
            for array in (self.assignment, self.starts, self.members):
                if array is not None:
                    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                    file.write(np.ascontiguousarray(array).data.cast("B"))

    @classmethod
    def open(cls, path: str | Path) -> BucketTable:
        """Map a table written by :meth:`save`; processes that open it share its pages.

        Raises:
            BundleError: if the file is missing, is not a table, or is cut short.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if file.read(8) != _MAGIC:
                    raise BundleError(f"{path} is not a bucket table")
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, size)))
                return cls._map(path, file.fileno(), size, 16 + length, header)
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BundleError(f"{path} has a damaged header: {error}") from error

    @classmethod
    def _map(
        cls, path: Path, handle: int, size: int, position: int, header: dict[str, Any]
    ) -> BucketTable:
        classes, buckets = int(header["num_classes"]), int(header["num_buckets"])
        repetitions = int(header["num_repetitions"])
        if min(classes, buckets, repetitions) < 1:
            raise ValueError("a size is below 1")
        if "hash" in header:
            stored = _StoredHash(buckets, header["hash"])
            if len(stored.multipliers) != repetitions or len(stored.offsets) != repetitions:
                raise ValueError("the hash has another number of repetitions")
            try:
                return cls.from_hash(stored, classes)
            except InvalidInput as error:
                raise ValueError(str(error)) from error
        table = cls(classes, buckets, repetitions)
        mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        arrays: list[NDArray[Any]] = []
        shapes: list[tuple[tuple[int, int], Any]] = [
            ((classes, repetitions), table.dtype),
            ((repetitions, buckets + 1), np.dtype(np.int64)),
            ((repetitions, classes), np.dtype(np.uint32)),
        ]
        for shape, dtype in shapes:
            position += -position % _ALIGNMENT
            end = position + shape[0] * shape[1] * dtype.itemsize
            if end > size:
                raise BundleError(f"{path} is cut short: {size} bytes, at least {end} expected")
            arrays.append(np.ndarray(shape, dtype, mapped, position))
            position = end
        table.assignment, table.starts, table.members = arrays
        return table


class _StoredHash:
    """An affine hash read back from a table's header."""

    def __init__(self, num_buckets: int, entry: dict[str, Any]) -> None:
        self.num_buckets = num_buckets
        self.prime = int(entry["prime"])
        multipliers = [int(a) for a in entry["multipliers"]]
        offsets = [int(b) for b in entry["offsets"]]
        if any(math.gcd(a, self.prime) != 1 or not 0 < a < self.prime for a in multipliers):
            raise ValueError("a multiplier has no inverse below the prime")
        if not all(0 <= b < self.prime for b in offsets):
            raise ValueError("an offset is not below the prime")
        self.multipliers = np.array(multipliers, np.uint64)
        self.offsets = np.array(offsets, np.uint64)
