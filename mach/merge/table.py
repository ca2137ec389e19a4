"""The index: which bucket a product falls into in each repetition."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import BundleError, InvalidInput
from mach.files import atomic_path
from mach.hashing import MAX_CLASSES, MAX_WIDTH, UniversalHash, is_width
from mach.merge.products import ProductSet

__all__ = ["BucketTable"]

_MAGIC = b"MACHBKT2"
_ALIGNMENT = 4096  # the array starts on a page
_MOST_REPETITIONS = 10_000  # their codes are added up in 16 bits


class BucketTable:
    """Product → bucket in every repetition.

    Products come in blocks of ``width``, which lie in consecutive buckets from a start on::

        bucket of i in repetition r = (starts[r, i // width] + i % width) mod B

    A table over a hash has its blocks; of an explicit assignment each product is a block. So
    either way this is 2 bytes a block and repetition while B ≤ 65,536, else 4.

    Attributes:
        num_classes: K.
        num_buckets: B.
        num_repetitions: R.
        width: products a block, a power of two of at most B and 512; 1 for an assignment.
        starts: ``dtype``, read-only, shape (R, blocks); rows are padded with zeros to a multiple
            of four blocks.
        dtype: uint16 while B ≤ 65,536, else uint32.
    """

    def __init__(
        self, num_classes: int, num_buckets: int, width: int, starts: NDArray[Any]
    ) -> None:
        self.num_classes = num_classes
        self.num_buckets = num_buckets
        self.num_repetitions = len(starts)
        self.width = width
        self.starts = starts
        self.starts.flags.writeable = False
        self.dtype = starts.dtype

    @classmethod
    def from_hash(cls, hash: UniversalHash, num_classes: int) -> BucketTable:
        """A table over a hash.

        Raises:
            InvalidInput: if a size is out of range, or the width no power of two up to B and 512.
        """
        if not 1 <= num_classes <= MAX_CLASSES:
            raise InvalidInput("num_classes", f"must be from 1 to {MAX_CLASSES}, not {num_classes}")
        if not is_width(hash.width, hash.num_buckets):
            message = f"{hash.width} is no power of two up to B and {MAX_WIDTH}"
            raise InvalidInput("hash.width", message)
        if not 1 <= hash.num_repetitions <= _MOST_REPETITIONS:
            message = f"must be from 1 to {_MOST_REPETITIONS}, not {hash.num_repetitions}"
            raise InvalidInput("num_repetitions", message)
        blocks = np.arange(-(-num_classes // hash.width))
        starts = _empty(hash.num_repetitions, len(blocks), hash.num_buckets)
        for repetition in range(hash.num_repetitions):
            starts[repetition, : len(blocks)] = hash.starts(repetition, blocks)
        return cls(num_classes, hash.num_buckets, hash.width, starts)

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
        if not 1 <= repetitions <= _MOST_REPETITIONS or not 1 <= classes <= MAX_CLASSES:
            raise InvalidInput("assignment", f"cannot index {repetitions} x {classes} buckets")
        largest = int(assignment.max())
        buckets = largest + 1 if num_buckets is None else num_buckets
        if int(assignment.min()) < 0 or largest >= buckets:
            raise InvalidInput("assignment", f"a bucket is not from 0 to {buckets - 1}")
        starts = _empty(repetitions, classes, buckets)
        starts[:, :classes] = assignment
        return cls(classes, buckets, 1, starts)

    @property
    def num_blocks(self) -> int:
        """Blocks of products, the last of which may be short."""
        return -(-self.num_classes // self.width)

    def rows(self, classes: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Buckets of ``classes`` (shape (n,)) in every repetition, ``dtype``, shape (n, R)."""
        classes = np.asarray(classes)
        if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
            raise InvalidInput("classes", f"a class is not from 0 to {self.num_classes - 1}")
        blocks, lanes = np.divmod(classes.astype(np.int64), self.width)
        buckets = self.starts[:, blocks].T + lanes[:, None]
        return (buckets % self.num_buckets).astype(self.dtype)

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
        return int(self.starts.nbytes)

    def save(self, path: str | Path) -> None:
        """Write the table as one file, atomically: beside ``path``, synced, then renamed."""
        header = {
            "num_classes": self.num_classes,
            "num_buckets": self.num_buckets,
            "num_repetitions": self.num_repetitions,
            "width": self.width,
        }
        encoded = json.dumps(header).encode()
        with atomic_path(Path(path)) as draft, draft.open("wb") as file:
            file.write(_MAGIC + len(encoded).to_bytes(8, "little") + encoded)
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            file.write(np.ascontiguousarray(self.starts).data.cast("B"))

    @classmethod
    def open(cls, path: str | Path) -> BucketTable:
        """Map a table written by :meth:`save`; processes that open it share its pages.

        Raises:
            BundleError: if the file is missing, is not a table, is cut short or damaged.
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
        classes, buckets, repetitions, width = (
            int(header[name]) for name in ("num_classes", "num_buckets", "num_repetitions", "width")
        )
        if (
            min(classes, buckets, repetitions) < 1
            or classes > MAX_CLASSES
            or repetitions > _MOST_REPETITIONS
        ):
            raise ValueError("a size is out of range")
        if not is_width(width, buckets):
            raise ValueError(f"the width is no power of two of at most B and {MAX_WIDTH}")
        shape = repetitions, _padded(-(-classes // width))
        dtype = _dtype(buckets)
        position += -position % _ALIGNMENT
        end = position + shape[0] * shape[1] * dtype.itemsize
        if end > size:
            raise BundleError(f"{path} is cut short: {size} bytes, at least {end} expected")
        mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        starts: NDArray[Any] = np.ndarray(shape, dtype, mapped, position)
        if int(starts.max()) >= buckets:  # compiled code reads what it says
            raise BundleError(f"{path} is damaged: a bucket is not from 0 to {buckets - 1}")
        return cls(classes, buckets, width, starts)


def _dtype(buckets: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if buckets <= 65_536 else np.uint32)


def _padded(blocks: int) -> int:
    return -(-blocks // 4) * 4


def _empty(repetitions: int, blocks: int, buckets: int) -> NDArray[Any]:
    return np.zeros((repetitions, _padded(blocks)), _dtype(buckets))
