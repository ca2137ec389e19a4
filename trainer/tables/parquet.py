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


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns."""
    with pq.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def stream_parquet(path: Path, columns: Sequence[str]) -> Iterator[TableBatch]:
    """Read some columns; arguments and errors as of :func:`trainer.tables.stream_columns`."""
    # A buffer size keeps memory to some pages of a row group, where the default reads it whole.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        row = 1
        for batch in file.iter_batches(batch_size=files.BATCH_ROWS, columns=list(columns)):
            found = {name: _converted(path, name, batch.column(name), row) for name in columns}
            yield TableBatch(row, found)
            row += batch.num_rows


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
