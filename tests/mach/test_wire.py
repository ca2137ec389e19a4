"""Arrays to bytes and back; damage on the way is named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mach.errors import InvalidInput
from mach.features import SparseBatch
from mach.v1 import features_pb2, shard_pb2
from mach.wire import (
    ENCODINGS,
    EncodedRows,
    decode_rows,
    encode_rows,
    largest_answer,
    rows_that_fit,
    sparse_from_proto,
)
from mach.wire import sparse_to_proto as to_proto

log_rows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
    elements=st.floats(-50, 0, width=32),
)


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6))
def test_sparse_round_trip(rows):
    batch = SparseBatch.from_rows(
        (np.array(row, np.int32), np.arange(len(row), dtype=np.float32)) for row in rows
    )
    message = features_pb2.SparseFeatures.FromString(to_proto(batch).SerializeToString())
    again = sparse_from_proto(message, 100)
    for name in ("indices", "values", "splits"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(again, name))


@given(log_rows, st.sampled_from(sorted(ENCODINGS)))
def test_rows_round_trip_within_the_error_of_the_encoding(rows, encoding):
    again = decode_rows(encode_rows(rows, encoding), encoding, *rows.shape)
    assert again.dtype == np.float32
    assert again.shape == rows.shape
    spread = rows.max(axis=1) - rows.min(axis=1)
    allowed = {
        shard_pb2.ENCODING_FLOAT32: np.zeros_like(spread),
        shard_pb2.ENCODING_FLOAT16: np.full_like(spread, 50 / 1024),
        shard_pb2.ENCODING_UINT8: spread / 255 * 0.51 + 1e-4,
    }[encoding]
    assert (np.abs(again - rows) <= allowed[:, None]).all()


@given(log_rows)
def test_eight_bits_keep_the_order(rows):
    encoding = shard_pb2.ENCODING_UINT8
    again = decode_rows(encode_rows(rows, encoding), encoding, *rows.shape)
    for before, after in zip(rows, again, strict=True):
        assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all()


def test_unknown_encodings_are_refused():
    with pytest.raises(InvalidInput, match="encoding"):
        encode_rows(np.zeros((1, 1), np.float32), 99)
    with pytest.raises(InvalidInput, match="encoding"):
        decode_rows(EncodedRows(b""), 0, 0, 0)


F32, F16, U8 = shard_pb2.ENCODING_FLOAT32, shard_pb2.ENCODING_FLOAT16, shard_pb2.ENCODING_UINT8
ONE, NAN = np.float32(-1).tobytes(), np.float32(np.nan).tobytes()


@pytest.mark.parametrize(
    ("encoded", "encoding", "field"),
    [
        (EncodedRows(ONE), F32, "data"),
        (EncodedRows(ONE * 2 + b"x"), F32, "data"),
        (EncodedRows(ONE + NAN), F32, "data"),
        (EncodedRows(ONE + np.float32(1).tobytes()), F32, "data"),
        (EncodedRows(np.array([np.inf, 0], np.float16).tobytes()), F16, "data"),
        (EncodedRows(b"ab", ONE, b""), U8, "minimum"),
        (EncodedRows(b"ab", b"abc", ONE), U8, "minimum"),
        (EncodedRows(b"ab", NAN, np.float32(1).tobytes()), U8, "minimum"),
        (EncodedRows(b"ab", ONE, ONE), U8, "minimum"),
        (EncodedRows(b"ab", ONE, np.float32(1).tobytes()), U8, "data"),
    ],
)
def test_damage_is_named(encoded, encoding, field):
    with pytest.raises(InvalidInput, match=field):
        decode_rows(encoded, encoding, 1, 2)


def test_bytes_that_are_no_whole_number_of_values():
    with pytest.raises(InvalidInput, match=r"features\.indices: 3 bytes"):
        sparse_from_proto(features_pb2.SparseFeatures(indices=b"abc"), 10)


@given(
    rows=st.integers(1, 40),
    repetitions=st.integers(1, 20),
    buckets=st.integers(1, 300),
    encoding=st.sampled_from(sorted(ENCODINGS)),
)
def test_what_an_answer_takes_is_bounded(rows, repetitions, buckets, encoding):
    values = np.full((rows, buckets), -1.0, np.float32)
    values[:, ::2] = -7.25
    encoded, largest = encode_rows(values, encoding), 2**31 - 1
    response = shard_pb2.PredictResponse(
        bundle_version="f" * 64,
        num_queries=largest,
        num_buckets=largest,
        encoding=encoding,
        queue_us=largest,
        inference_us=largest,
    )
    for repetition in range(repetitions):
        response.repetitions.add(
            repetition=largest - repetition,
            data=encoded.data,
            minimum=encoded.minimum,
            step=encoded.step,
        )
    most = largest_answer(rows, repetitions, buckets, encoding)
    assert response.ByteSize() <= most
    assert rows_that_fit(most, repetitions, buckets, encoding) == rows
    assert rows_that_fit(most - 1, repetitions, buckets, encoding) == rows - 1
    assert rows_that_fit(0, repetitions, buckets, encoding) == 0
