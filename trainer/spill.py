"""Grouping a log of any size by query, in bounded memory.

Pairs are spilled to files chosen by a hash of the query, so that all pairs of a query lie in
one file; each file is then small enough to be grouped in memory. The same hash decides which
queries are held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

__all__ = ["HELD_OUT", "Groups", "Spill", "group_pairs"]

#: Number of the held-out part; the training parts count from 0.
HELD_OUT = -1

_SCHEMA = pa.schema(
    [
        ("query", pa.large_string()),
        ("class", pa.list_(pa.int32())),
        ("weight", pa.list_(pa.float64())),
    ]
)
_UINT64 = float(2**64)


@dataclass(frozen=True, eq=False)
class Groups:
    """n distinct queries with their products.

    Attributes:
        queries: Arrow array of n texts.
        splits: int64, shape (n + 1,): query i owns pairs ``splits[i]:splits[i + 1]``.
        classes: int32, shape (m,), increasing and distinct within a query.
        weights: float64, shape (m,): of each pair, repeats added up.
    """

    queries: Any
    splits: NDArray[np.int64]
    classes: NDArray[np.int32]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: NDArray[np.int64]) -> Groups:
        """The given queries, in the given order."""
        starts = self.splits[rows]
        lengths = self.splits[rows + 1] - starts
        splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        pairs = np.arange(splits[-1]) + np.repeat(starts - splits[:-1], lengths)
        return Groups(
            self.queries.take(pa.array(rows)), splits, self.classes[pairs], self.weights[pairs]
        )


def group_pairs(
    queries: Any,
    pair_rows: NDArray[np.int64],
    classes: NDArray[np.int32],
    weights: NDArray[np.float64],
) -> Groups:
    """Group (query, class) pairs by query text, in order of first appearance; weights add.

    Args:
        queries: Arrow array of texts, in chunks or whole, repeats allowed.
        pair_rows: int64, shape (m,): which query each pair is of.
        classes: int32, shape (m,).
        weights: float64, shape (m,).
    """
    if isinstance(queries, pa.ChunkedArray) and len(queries):  # not joined: it may be large
        encoded = queries.dictionary_encode()
        numbers = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
        texts = encoded.chunk(encoded.num_chunks - 1).dictionary  # the same for all
    else:
        whole = queries.combine_chunks() if isinstance(queries, pa.ChunkedArray) else queries
        encoded = whole.dictionary_encode()
        numbers, texts = encoded.indices.to_numpy(), encoded.dictionary
    groups = numbers.astype(np.int64)[pair_rows]
    order = np.lexsort((classes, groups))
    groups, classes, weights = groups[order], classes[order], weights[order]
    new = np.ones(len(groups), bool)
    new[1:] = (groups[1:] != groups[:-1]) | (classes[1:] != classes[:-1])
    first = np.flatnonzero(new)
    summed = np.add.reduceat(weights, first) if len(first) else weights
    splits = np.searchsorted(groups[first], np.arange(len(texts) + 1))
    return Groups(texts, splits, classes[first], summed)


class Spill:
    """Files of pairs, by a hash of the query.

    Args:
        directory: an empty directory.
        num_parts: how many training files.
        held_out: share of the queries that goes to the held-out file.
        seed: of the hash.
        buffer_bytes: memory for text and pairs not yet written.
    """

    def __init__(
        self,
        directory: Path,
        num_parts: int,
        *,
        held_out: float,
        seed: int,
        buffer_bytes: int = 64 << 20,
    ) -> None:
        self.num_parts = num_parts
        self._directory = directory
        self._held_out = held_out
        self._seed = seed
        self._buffer_bytes = buffer_bytes
        self._buffer: list[tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self._size = 0
        self._train_only = False
        self._sinks: dict[int, tuple[pa.OSFile, Any]] = {}

    def add(
        self,
        queries: Any,
        pair_rows: NDArray[np.int64],
        classes: NDArray[np.int32],
        weights: NDArray[np.float64],
        *,
        train_only: bool = False,
    ) -> None:
        """Add pairs; arguments as of :func:`group_pairs`.

        Args:
            train_only: keep these out of the held-out part whatever their hash.
        """
        if train_only != self._train_only:
            self._flush()
            self._train_only = train_only
        self._buffer.append((queries.cast(pa.large_string()), pair_rows, classes, weights))
        self._size += queries.nbytes + 24 * len(classes)
        if self._size > self._buffer_bytes:
            self._flush()

    def _flush(self) -> None:
        if not self._buffer:
            return
        lengths = [len(queries) for queries, *_ in self._buffer]
        offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        groups = group_pairs(
            pa.chunked_array([queries for queries, *_ in self._buffer]),  # not copied
            np.concatenate(
                [b[1] + offset for b, offset in zip(self._buffer, offsets, strict=True)]
            ),
            np.concatenate([b[2] for b in self._buffer]),
            np.concatenate([b[3] for b in self._buffer]),
        )
        self._buffer, self._size = [], 0
        nonempty = np.flatnonzero(np.diff(groups.splits) > 0)
        groups = groups.take(nonempty)
        parts = self.part_of(groups.queries, train_only=self._train_only)
        for part in np.unique(parts):
            self._write(int(part), groups.take(np.flatnonzero(parts == part)))

    def hashes(self, queries: Any) -> NDArray[np.uint64]:
        """A 64-bit hash of each text."""
        digest, seed = xxhash.xxh3_64_intdigest, self._seed
        return np.fromiter(
            (digest(text.encode(), seed) for text in queries.to_pylist()), np.uint64, len(queries)
        )

    def part_of(self, queries: Any, *, train_only: bool = False) -> NDArray[np.int64]:
        """Which file each query belongs to."""
        hashes = self.hashes(queries)
        parts = (hashes % np.uint64(self.num_parts)).astype(np.int64)
        if not train_only:
            parts[hashes.astype(np.float64) / _UINT64 < self._held_out] = HELD_OUT
        return parts

    def _path(self, part: int) -> Path:
        return self._directory / (f"part-{part:05d}" if part != HELD_OUT else "held-out")

    def _write(self, part: int, groups: Groups) -> None:
        if part not in self._sinks:
            sink = pa.OSFile(str(self._path(part)), "wb")
            self._sinks[part] = (sink, pa.ipc.new_stream(sink, _SCHEMA))
        splits = pa.array(groups.splits.astype(np.int32))
        self._sinks[part][1].write_batch(
            pa.record_batch(
                [
                    groups.queries,
                    pa.ListArray.from_arrays(splits, pa.array(groups.classes)),
                    pa.ListArray.from_arrays(splits, pa.array(groups.weights)),
                ],
                schema=_SCHEMA,
            )
        )

    def close(self) -> None:
        """Write what is buffered and close the files."""
        try:
            self._flush()
        finally:
            for sink, writer in self._sinks.values():
                writer.close()
                sink.close()
            self._sinks = {}

    def parts(self) -> Iterator[Groups]:
        """The training parts, grouped; after :meth:`close`."""
        for part in range(self.num_parts):
            yield self.part(part)

    def part(self, part: int) -> Groups:
        """One part, grouped, or ``HELD_OUT``; after :meth:`close`."""
        path = self._path(part)
        if not path.exists():
            empty = np.empty(0, np.int64)
            return group_pairs(
                pa.array([], pa.large_string()), empty, empty.astype(np.int32), empty.astype(float)
            )
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()  # its pages can be dropped
        lists = table["class"].combine_chunks()
        return group_pairs(
            table["query"],
            pa.compute.list_parent_indices(lists).to_numpy().astype(np.int64),
            lists.flatten().to_numpy(),
            table["weight"].combine_chunks().flatten().to_numpy(),
        )
