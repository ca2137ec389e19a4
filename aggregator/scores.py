"""Bucket log-probabilities of a batch, as the additive scores that merging adds up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mach.merge import MergeRule
from mach.v1 import shard_pb2
from mach.wire import EncodedRows

__all__ = ["CodedScores", "PlainScores", "Scores", "read_scores"]

_FLOATS: dict[int, str] = {
    shard_pb2.ENCODING_FLOAT32: "<f4",
    shard_pb2.ENCODING_FLOAT16: "<f2",
}
_CODES = np.arange(256, dtype=np.float32)


class Scores(Protocol):
    """Rows of r repetitions for n queries.

    Attributes:
        repetitions: which, increasing, int64, shape (r,).
    """

    repetitions: NDArray[np.int64]

    def scores(self, query: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Additive scores of one query, written to ``out``: float32, shape (r, B)."""

    def log_probabilities(
        self, query: int, buckets: NDArray[np.integer[Any]]
    ) -> NDArray[np.float32]:
        """Log-probabilities of buckets of shape (m, r), of that shape, float32."""


def read_scores(
    rows: Mapping[int, EncodedRows],
    encoding: int,
    num_queries: int,
    num_buckets: int,
    rule: MergeRule,
) -> Scores:
    """Scores from rows by repetition, at least one, that :func:`mach.wire.check_rows` accepts."""
    if encoding == shard_pb2.ENCODING_UINT8:
        return CodedScores(rows, num_queries, num_buckets, rule)
    dtype, shape = _FLOATS[encoding], (num_queries, num_buckets)
    return PlainScores(
        {number: np.frombuffer(one.data, dtype).reshape(shape) for number, one in rows.items()},
        rule,
    )


class PlainScores:
    """Scores from log-probabilities as they are, float32 or float16, (n, B) a repetition."""

    def __init__(self, rows: Mapping[int, NDArray[np.floating[Any]]], rule: MergeRule) -> None:
        self.repetitions = np.array(sorted(rows), np.int64)
        self._rows = [rows[repetition] for repetition in sorted(rows)]
        self._rule = rule

    def scores(self, query: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :class:`Scores`."""
        for position, rows in enumerate(self._rows):
            out[position] = rows[query]
        return self._rule.transform(out, out=out)

    def log_probabilities(
        self, query: int, buckets: NDArray[np.integer[Any]]
    ) -> NDArray[np.float32]:
        """See :class:`Scores`."""
        columns = [rows[query][buckets[:, at]] for at, rows in enumerate(self._rows)]
        return np.stack(columns, axis=1).astype(np.float32)


class CodedScores:
    """Scores from 8-bit codes.

    A row has 256 values at most, so the merge rule is applied to these, and each bucket's
    score is looked up.
    """

    def __init__(
        self, rows: Mapping[int, EncodedRows], num_queries: int, num_buckets: int, rule: MergeRule
    ) -> None:
        order = [rows[repetition] for repetition in sorted(rows)]
        self.repetitions = np.array(sorted(rows), np.int64)
        shape = (len(order), num_queries)
        minimum = np.frombuffer(b"".join([one.minimum for one in order]), "<f4").reshape(shape)
        step = np.frombuffer(b"".join([one.step for one in order]), "<f4").reshape(shape)
        self._codes = np.frombuffer(b"".join([one.data for one in order]), np.uint8).reshape(
            *shape, num_buckets
        )
        self._logs = _CODES * step[:, :, None]
        self._logs += minimum[:, :, None]
        self._tables = rule.transform(self._logs, out=np.empty_like(self._logs))

    def scores(self, query: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :class:`Scores`."""
        _look_up(self._codes, self._tables, query, out)
        return out

    def log_probabilities(
        self, query: int, buckets: NDArray[np.integer[Any]]
    ) -> NDArray[np.float32]:
        """See :class:`Scores`."""
        position = np.arange(len(self.repetitions))
        codes = self._codes[position, query, buckets]
        return cast("NDArray[np.float32]", self._logs[position, query, codes])


@njit(nogil=True, cache=True)
def _look_up(
    codes: NDArray[np.uint8], tables: NDArray[np.float32], query: int, out: NDArray[np.float32]
) -> None:
    for repetition in range(codes.shape[0]):
        table = tables[repetition, query]
        row = codes[repetition, query]
        for bucket in range(row.shape[0]):
            out[repetition, bucket] = table[row[bucket]]
