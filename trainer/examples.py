"""Prepared training examples on disk: flat arrays, read in shuffled order, a window at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mach.errors import DataError
from mach.features import SparseBatch

__all__ = ["Examples", "ExamplesReader", "ExamplesWriter"]

_ARRAYS: dict[str, np.dtype[Any]] = {
    "feature_indices": np.dtype("<i4"),
    "feature_values": np.dtype("<f4"),
    "feature_splits": np.dtype("<i8"),
    "classes": np.dtype("<i4"),
    "class_weights": np.dtype("<f4"),
    "class_splits": np.dtype("<i8"),
    "weights": np.dtype("<f4"),
}
_META_FILE = "examples.json"
#: Rows read from disk in one piece. Shuffling permutes these pieces, then rows in a window.
_PIECE = 4096
#: Rows held in memory: some 60 MB for queries of 15 features.
_WINDOW = 64 * _PIECE


@dataclass(frozen=True, eq=False)
class Examples:
    """n examples in memory.

    Attributes:
        features: n sparse rows.
        classes: int32, shape (m,): classes of the pairs, row by row.
        class_weights: float32, shape (m,): of each pair; a row's sum to 1.
        class_splits: int64, shape (n + 1,): row i owns pairs ``class_splits[i]`` and on.
        weights: float32, shape (n,): of each example, positive.
    """

    features: SparseBatch
    classes: NDArray[np.int32]
    class_weights: NDArray[np.float32]
    class_splits: NDArray[np.int64]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """The given rows, in the given order."""
        entries, splits = _ranges(self.features.splits, rows)
        pairs, class_splits = _ranges(self.class_splits, rows)
        return Examples(
            SparseBatch(
                self.features.indices[entries],
                self.features.values[entries],
                splits.astype(np.int32),
            ),
            self.classes[pairs],
            self.class_weights[pairs],
            class_splits,
            self.weights[rows],
        )

    @staticmethod
    def concatenate(parts: list[Examples]) -> Examples:
        """All rows of ``parts``, in order."""
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([np.diff(part.class_splits) for part in parts])
        return Examples(
            SparseBatch.concatenate([part.features for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate([part.class_weights for part in parts]),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            np.concatenate([part.weights for part in parts]),
        )


def _ranges(
    splits: NDArray[Any], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the entries of ``rows``, and where each row's begin among them."""
    starts = splits[rows].astype(np.int64)
    lengths = splits[rows + 1].astype(np.int64) - starts
    new = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=new[1:])
    return np.arange(new[-1]) + np.repeat(starts - new[:-1], lengths), new


class ExamplesWriter:
    """Appends examples to the files of a new directory; complete once closed without an error."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._files: dict[str, BinaryIO] = {
            name: (directory / f"{name}.bin").open("wb") for name in _ARRAYS
        }
        self._num_features = self._num_pairs = self._num_examples = 0
        self._weight = 0.0
        for name in ("feature_splits", "class_splits"):
            self._write(name, np.zeros(1, np.int64))

    def _write(self, name: str, array: NDArray[Any]) -> None:
        self._files[name].write(np.ascontiguousarray(array, _ARRAYS[name]).data)

    def append(self, examples: Examples) -> None:
        """Add some rows."""
        features = examples.features
        self._write("feature_indices", features.indices)
        self._write("feature_values", features.values)
        self._write("feature_splits", features.splits[1:].astype(np.int64) + self._num_features)
        self._write("classes", examples.classes)
        self._write("class_weights", examples.class_weights)
        self._write("class_splits", examples.class_splits[1:] + self._num_pairs)
        self._write("weights", examples.weights)
        self._num_features += len(features.indices)
        self._num_pairs += len(examples.classes)
        self._num_examples += len(examples)
        self._weight += float(examples.weights.sum(dtype=np.float64))

    def __enter__(self) -> ExamplesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if kind is None:
            meta = {
                "examples": self._num_examples,
                "pairs": self._num_pairs,
                "features": self._num_features,
                "weight": self._weight,
            }
            (self._directory / _META_FILE).write_text(json.dumps(meta))


class ExamplesReader:
    """Reads what :class:`ExamplesWriter` wrote.

    Attributes:
        num_examples: n.
        num_pairs: (query, product) pairs.
        mean_weight: mean of the examples' weights.
    """

    def __init__(self, directory: Path) -> None:
        """Open a directory.

        Raises:
            DataError: if a file is missing or has a wrong length.
        """
        self._directory = directory
        try:
            meta = json.loads((directory / _META_FILE).read_text())
            self.num_examples = int(meta["examples"])
            self.num_pairs = int(meta["pairs"])
            self.mean_weight = float(meta["weight"]) / max(1, self.num_examples)
            lengths = {
                "feature_indices": int(meta["features"]),
                "feature_values": int(meta["features"]),
                "feature_splits": self.num_examples + 1,
                "classes": self.num_pairs,
                "class_weights": self.num_pairs,
                "class_splits": self.num_examples + 1,
                "weights": self.num_examples,
            }
            for name, length in lengths.items():
                size = (directory / f"{name}.bin").stat().st_size
                if size != length * _ARRAYS[name].itemsize:
                    raise DataError(directory / f"{name}.bin", "is damaged: its length is wrong")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(directory, f"prepared data cannot be read: {error}") from error

    def __len__(self) -> int:
        return self.num_examples

    def _read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        dtype = _ARRAYS[name]
        with (self._directory / f"{name}.bin").open("rb") as file:
            file.seek(start * dtype.itemsize)
            array: NDArray[Any] = np.fromfile(file, dtype, stop - start)
            return array

    def read(self, start: int, stop: int) -> Examples:
        """Rows ``start:stop``, in the order in which they were written."""
        splits = self._read("feature_splits", start, stop + 1)
        class_splits = self._read("class_splits", start, stop + 1)
        return Examples(
            SparseBatch(
                self._read("feature_indices", int(splits[0]), int(splits[-1])),
                self._read("feature_values", int(splits[0]), int(splits[-1])),
                (splits - splits[0]).astype(np.int32),
            ),
            self._read("classes", int(class_splits[0]), int(class_splits[-1])),
            self._read("class_weights", int(class_splits[0]), int(class_splits[-1])),
            class_splits - class_splits[0],
            self._read("weights", start, stop),
        )

    def in_order(self, batch_size: int) -> Iterator[Examples]:
        """All rows, in batches of ``batch_size`` (the last may be smaller)."""
        for start in range(0, self.num_examples, batch_size):
            yield self.read(start, min(start + batch_size, self.num_examples))

    def shuffled(self, batch_size: int, rng: np.random.Generator) -> Iterator[Examples]:
        """All rows once, in random order, in batches of ``batch_size`` (the last may be smaller).

        Pieces of the file are drawn in random order into a window that fits memory, and rows
        are drawn from it: a full shuffle of up to some 260,000 rows, and all but that of more,
        since :mod:`trainer.prepare` has scattered the log's rows before.
        """
        starts = rng.permutation(np.arange(0, self.num_examples, _PIECE))
        per_window = _WINDOW // _PIECE
        rest: Examples | None = None
        for first in range(0, len(starts), per_window):
            parts = [
                self.read(int(start), min(int(start) + _PIECE, self.num_examples))
                for start in starts[first : first + per_window]
            ]
            if rest is not None:
                parts.append(rest)
            window = Examples.concatenate(parts)
            order = rng.permutation(len(window))
            last = first + per_window >= len(starts)
            stop = len(order) if last else len(order) - len(order) % batch_size
            for start in range(0, stop, batch_size):
                yield window.take(order[start : min(start + batch_size, stop)])
            rest = window.take(order[stop:]) if stop < len(order) else None

    def num_batches(self, batch_size: int) -> int:
        """How many batches :meth:`shuffled` yields."""
        return -(-self.num_examples // batch_size)
