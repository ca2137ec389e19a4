"""Streaming columns out of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mach.errors import DataError
from trainer.tables import files
from trainer.tables.files import COLUMN_TYPES, TableBatch, is_text

__all__ = ["parquet_columns", "stream_parquet"]

#: Rows decoded at once: nothing in a file tells how long their lists and texts are.
_SLICE_ROWS = 1024


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns."""
    try:
        with pq.ParquetFile(path) as file:
            return list(file.schema_arrow.names)
    except UnicodeDecodeError as error:
        raise DataError(path, "the names of its columns are not UTF-8 text") from error


def stream_parquet(path: Path, columns: Sequence[str]) -> Iterator[TableBatch]:
    """Read some columns; arguments and errors as of :func:`trainer.tables.stream_columns`."""
    # A buffer size keeps memory to some pages of a row group, where the default reads it whole.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        slice_rows = min(_SLICE_ROWS, files.BATCH_ROWS)
        parts: dict[str, list[pa.Array]] = {name: [] for name in columns}
        first = row = 1
        size = 0
        for batch in file.iter_batches(batch_size=slice_rows, columns=list(columns)):
            if row - first + batch.num_rows > files.BATCH_ROWS or size >= files.BATCH_BYTES:
                yield _joined(first, parts)
                first, size = row, 0
            for name in columns:
                part = _converted(path, name, batch.column(name), row)
                parts[name].append(part)
                size += _size(part)
            row += batch.num_rows
        if row > first:
            yield _joined(first, parts)


def _joined(first_row: int, parts: dict[str, list[pa.Array]]) -> TableBatch:
    found = {name: pa.concat_arrays(arrays) for name, arrays in parts.items()}
    for arrays in parts.values():
        arrays.clear()
    return TableBatch(first_row, found)


def _size(array: pa.Array) -> int:
    size: int = array.nbytes
    return size + (files.ID_BYTES * len(array.flatten()) if pa.types.is_list(array.type) else 0)


def _converted(path: Path, name: str, array: pa.Array, first_row: int) -> pa.Array:
    wanted = COLUMN_TYPES[name]
    _check_type(path, name, array.type)
    try:
        result = array.cast(wanted)
        result.validate(full=True)  # casting from string does not look at the bytes
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        for index in range(len(array)):
            one = array.slice(index, 1)
            try:
                pa.concat_arrays([one.cast(wanted)]).validate(full=True)
            except pa.ArrowInvalid:
                reason = "is not UTF-8 text" if wanted != pa.float64() else "is not a number"
                raise DataError(path, f"{name} {reason}", first_row + index) from error
        raise DataError(path, f"column {name} cannot be read as {wanted}: {error}") from error
    return result


def _check_type(path: Path, name: str, found: pa.DataType) -> None:
    value = found
    listed = False
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        value, listed = found.value_type, True
    if pa.types.is_dictionary(value):
        value = value.value_type
    text = is_text(value)
    whole = pa.types.is_integer(value)
    fits = {
        "query": text and not listed,
        "product_id": (text or whole) and not listed,
        "product_ids": (text or whole) and listed,
        "weight": (whole or pa.types.is_floating(value) or pa.types.is_decimal(value))
        and not listed,
    }[name]
    if not fits and not pa.types.is_null(found):
        needed = {
            "query": "text",
            "product_id": "text or whole numbers",
            "product_ids": "a list of text or whole numbers",
            "weight": "a number",
        }[name]
        raise DataError(path, f"column {name} is {found}, it must be {needed}")
