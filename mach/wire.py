"""Arrays to and from the messages of ``mach.v1``: little-endian bytes, checked on arrival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput
from mach.features import SparseBatch
from mach.v1 import features_pb2, shard_pb2

__all__ = [
    "ENCODINGS",
    "EncodedRows",
    "check_rows",
    "decode_rows",
    "encode_rows",
    "largest_answer",
    "rows_that_fit",
    "sparse_from_proto",
    "sparse_to_proto",
]

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")
_FLOAT16 = np.dtype("<f2")

#: What a log-probability may be: finite, and at most 0 but for rounding.
_LOWEST = np.finfo(np.float32).min
_HIGHEST = 1e-2
_WIDEST = 1e30  # times 255 is still finite
_FULL = np.float32(255)
_HALF = np.float32(0.5)
_SMALLEST_STEP = np.finfo(np.float32).tiny

#: Bytes a bucket in each encoding.
ENCODINGS: dict[int, int] = {
    shard_pb2.ENCODING_FLOAT32: 4,
    shard_pb2.ENCODING_FLOAT16: 2,
    shard_pb2.ENCODING_UINT8: 1,
}


# What a shard's answer holds beside log-probabilities, at most: for itself, for each repetition
# (field numbers and lengths), and for each row of one (its least value and its step).
_ANSWER_BYTES, _REPETITION_BYTES, _ROW_BYTES = 512, 64, 8


def largest_answer(rows: int, repetitions: int, num_buckets: int, encoding: int) -> int:
    """The most bytes that a shard's answer to ``rows`` queries takes."""
    row = num_buckets * ENCODINGS[encoding] + _ROW_BYTES
    return _ANSWER_BYTES + repetitions * (_REPETITION_BYTES + rows * row)


def rows_that_fit(limit: int, repetitions: int, num_buckets: int, encoding: int) -> int:
    """The most queries to which a shard's answer takes no more than ``limit`` bytes; or 0."""
    none, one = (largest_answer(rows, repetitions, num_buckets, encoding) for rows in (0, 1))
    return max(0, limit - none) // (one - none)


def _array(field: str, data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise InvalidInput(
            field, f"{len(data)} bytes are no whole number of {dtype.itemsize}-byte values"
        )
    return np.frombuffer(data, dtype)


def sparse_to_proto(batch: SparseBatch) -> features_pb2.SparseFeatures:
    """Write a batch of feature vectors."""
    return features_pb2.SparseFeatures(
        indices=batch.indices.astype(_INT32, copy=False).tobytes(),
        values=batch.values.astype(_FLOAT32, copy=False).tobytes(),
        splits=batch.splits.astype(_INT32, copy=False).tobytes(),
    )


def sparse_from_proto(message: features_pb2.SparseFeatures, num_features: int) -> SparseBatch:
    """Read a batch of feature vectors, without copying.

    Raises:
        InvalidInput: if it is malformed; see :meth:`SparseBatch.check`.
    """
    batch = SparseBatch(
        _array("features.indices", message.indices, _INT32),
        _array("features.values", message.values, _FLOAT32),
        _array("features.splits", message.splits, _INT32),
    )
    batch.check(num_features)
    return batch


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows of log-probabilities as bytes.

    Attributes:
        data: n x B values, row by row.
        minimum: float32, shape (n,), as bytes; empty but for ENCODING_UINT8.
        step: the same.
    """

    data: bytes
    minimum: bytes = b""
    step: bytes = b""

    def rows(self, start: int, stop: int, num_rows: int) -> EncodedRows:
        """Rows ``start:stop`` of the ``num_rows`` there are."""
        if start == 0 and stop == num_rows:
            return self
        width = len(self.data) // num_rows
        return EncodedRows(
            self.data[start * width : stop * width],
            self.minimum[4 * start : 4 * stop],
            self.step[4 * start : 4 * stop],
        )


def encode_rows(rows: NDArray[np.float32], encoding: int) -> EncodedRows:
    """Write log-probabilities, float32 of shape (n, B), finite.

    In 8 bits a row's own range is cut into 255 equal steps, so the error is at most half a
    step; measured on real queries that changes no accuracy figure (``docs/merge.md``).

    Raises:
        InvalidInput: if the encoding is unknown.
    """
    if encoding == shard_pb2.ENCODING_FLOAT32:
        return EncodedRows(rows.astype(_FLOAT32, copy=False).tobytes())
    if encoding == shard_pb2.ENCODING_FLOAT16:
        return EncodedRows(rows.astype(_FLOAT16).tobytes())
    if encoding != shard_pb2.ENCODING_UINT8:
        raise InvalidInput("encoding", f"{encoding} is unknown")
    minimum = rows.min(axis=1)
    # A row without a range has a step all the same: what can be inverted needs no special case.
    step = np.maximum((rows.max(axis=1) - minimum) / _FULL, _SMALLEST_STEP)
    codes = rows - minimum[:, None]
    codes *= (1 / step)[:, None]
    codes += _HALF
    return EncodedRows(
        codes.astype(np.uint8).tobytes(),
        minimum.astype(_FLOAT32, copy=False).tobytes(),
        step.astype(_FLOAT32, copy=False).tobytes(),
    )


def check_rows(encoded: EncodedRows, encoding: int, num_queries: int, num_buckets: int) -> None:
    """Refuse rows of log-probabilities that cannot be what a classifier gave.

    Raises:
        InvalidInput: if the encoding is unknown, a length is off, or a value is NaN, positive
            infinite or above 0 by more than rounding explains.
    """
    width = ENCODINGS.get(encoding)
    if width is None:
        raise InvalidInput("encoding", f"{encoding} is unknown")
    if len(encoded.data) != num_queries * num_buckets * width:
        raise InvalidInput(
            "data",
            f"{len(encoded.data)} bytes for {num_queries} x {num_buckets} values of {width} bytes",
        )
    if encoding == shard_pb2.ENCODING_UINT8:
        if not len(encoded.minimum) == len(encoded.step) == 4 * num_queries:
            raise InvalidInput("minimum", f"needs {num_queries} values, as does step")
        minimum = np.frombuffer(encoded.minimum, _FLOAT32)
        step = np.frombuffer(encoded.step, _FLOAT32)
        # Written so that a NaN anywhere fails: it is not >= anything.
        fine = (minimum >= _LOWEST) & (step >= 0) & (step <= _WIDEST)
        if not fine.all():
            raise InvalidInput("minimum", "must be finite, and step not negative")
        highest = minimum + step * _FULL
    else:
        dtype = _FLOAT32 if encoding == shard_pb2.ENCODING_FLOAT32 else _FLOAT16
        highest = np.frombuffer(encoded.data, dtype)
    if len(highest) and not highest.max() <= _HIGHEST:
        raise InvalidInput("data", "log-probabilities must be numbers, at most 0")


def decode_rows(
    encoded: EncodedRows, encoding: int, num_queries: int, num_buckets: int
) -> NDArray[np.float32]:
    """Read log-probabilities: float32 of shape (num_queries, num_buckets).

    Raises:
        InvalidInput: see :func:`check_rows`.
    """
    check_rows(encoded, encoding, num_queries, num_buckets)
    shape = (num_queries, num_buckets)
    if encoding != shard_pb2.ENCODING_UINT8:
        dtype = _FLOAT32 if encoding == shard_pb2.ENCODING_FLOAT32 else _FLOAT16
        return np.frombuffer(encoded.data, dtype).reshape(shape).astype(np.float32, copy=False)
    rows = np.frombuffer(encoded.data, np.uint8).reshape(shape).astype(np.float32)
    rows *= np.frombuffer(encoded.step, _FLOAT32)[:, None]
    rows += np.frombuffer(encoded.minimum, _FLOAT32)[:, None]
    return rows
