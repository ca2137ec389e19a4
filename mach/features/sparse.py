"""Batches of sparse feature vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput

__all__ = ["MAX_VALUE", "SparseBatch"]

#: The largest value of a feature either way. A featurizer's rows have length 1; a classifier fed
#: values without bound overflows to NaN.
MAX_VALUE = 1e6


@dataclass(frozen=True, eq=False)
class SparseBatch:
    """n sparse rows in compressed form (CSR).

    Attributes:
        indices: int32, shape (nnz,): feature of each entry.
        values: float32, shape (nnz,): value of each entry.
        splits: int32, shape (n + 1,): row i owns entries ``splits[i]:splits[i + 1]``.
    """

    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    splits: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.splits) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Entries of each row, shape (n,)."""
        return self.splits[1:] - self.splits[:-1]

    @cached_property
    def longest(self) -> int:
        """Entries of the longest row; 0 where there is no row."""
        if len(self.splits) <= 2:
            return len(self.indices)
        return int(self.lengths.max())

    @classmethod
    def from_rows(
        cls, rows: Iterable[tuple[NDArray[np.int32], NDArray[np.float32]]]
    ) -> SparseBatch:
        """Stack ``(indices, values)`` pairs."""
        pairs = list(rows)
        splits = np.zeros(len(pairs) + 1, np.int32)
        np.cumsum([len(indices) for indices, _ in pairs], out=splits[1:])
        if not pairs:
            return cls(np.empty(0, np.int32), np.empty(0, np.float32), splits)
        return cls(
            np.concatenate([indices for indices, _ in pairs]).astype(np.int32, copy=False),
            np.concatenate([values for _, values in pairs]).astype(np.float32, copy=False),
            splits,
        )

    @classmethod
    def concatenate(cls, batches: Sequence[SparseBatch]) -> SparseBatch:
        """All rows of ``batches``, in order."""
        if len(batches) == 1:
            return batches[0]
        splits = [np.zeros(1, np.int32)]
        shift = 0
        for batch in batches:
            splits.append(batch.splits[1:] + np.int32(shift))
            shift += len(batch.indices)
        return cls(
            np.concatenate([batch.indices for batch in batches]),
            np.concatenate([batch.values for batch in batches]),
            np.concatenate(splits),
        )

    def rows(self, start: int, stop: int) -> SparseBatch:
        """Rows ``start:stop``, sharing memory where possible."""
        first, last = self.splits[start], self.splits[stop]
        return SparseBatch(
            self.indices[first:last],
            self.values[first:last],
            self.splits[start : stop + 1] - first,
        )

    def take(self, rows: NDArray[np.int64]) -> SparseBatch:
        """The rows numbered ``rows``, in that order."""
        lengths = self.lengths[rows]
        splits = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(lengths, out=splits[1:])
        entries = np.repeat(self.splits[rows] - splits[:-1], lengths) + np.arange(splits[-1])
        return SparseBatch(self.indices[entries], self.values[entries], splits)

    def padded(self, width: int | None = None) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows side by side, short ones filled with feature 0 at value 0.

        Args:
            width: entries a row; the longest row's length (at least 1) where not given.

        Returns:
            ``indices`` int32 and ``values`` float32, both of shape (n, width).
        """
        if width is None:
            width = max(1, self.longest)
        if len(self.indices) == len(self) * width:  # no row is shorter
            return self.indices.reshape(-1, width), self.values.reshape(-1, width)
        indices = np.zeros((len(self), width), np.int32)
        values = np.zeros((len(self), width), np.float32)
        filled = np.arange(width) < self.lengths[:, None]
        indices[filled] = self.indices
        values[filled] = self.values
        return indices, values

    def padded_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The rows numbered ``rows``, in that order, at least one, as :meth:`padded` gives them."""
        lengths = self.lengths[rows]
        width = max(1, int(lengths.max()))
        if not len(self.indices):
            return np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
        places = np.arange(width, dtype=np.int32)
        entries = self.splits[rows][:, None] + places
        indices = self.indices.take(entries, mode="clip")
        values = self.values.take(entries, mode="clip")
        beyond = places >= lengths[:, None]
        indices[beyond] = 0
        values[beyond] = 0
        return indices, values

    def check(self, num_features: int) -> None:
        """Refuse what a model must never see.

        Raises:
            InvalidInput: if the row splits do not partition the entries, an index is not in
                0..num_features-1, or a value is not finite or above ``MAX_VALUE``.
        """
        splits, nnz = self.splits, len(self.indices)
        if len(self.values) != nnz:
            raise InvalidInput("features.values", f"{len(self.values)} values for {nnz} indices")
        # Neighbours are compared, not subtracted: a difference of two int32 may wrap around.
        if (
            len(splits) < 1
            or splits[0] != 0
            or splits[-1] != nnz
            or (len(splits) > 2 and not (splits[1:] >= splits[:-1]).all())
        ):
            raise InvalidInput("features.splits", f"must rise from 0 to {nnz}")
        if not nnz:
            return
        if self.indices.view(np.uint32).max() >= num_features:  # a negative one is huge
            raise InvalidInput("features.indices", f"must be from 0 to {num_features - 1}")
        if not np.abs(self.values).max() <= MAX_VALUE:  # NaN fails this too
            raise InvalidInput(
                "features.values", f"must be numbers from -{MAX_VALUE} to {MAX_VALUE}"
            )
