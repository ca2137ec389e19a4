"""Streaming columns out of Parquet, CSV, TSV and JSON Lines files, with errors that name rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mach.errors import DataError
from trainer.tables.delimited import DELIMITERS, csv_columns, csv_error, stream_csv
from trainer.tables.files import (
    COLUMN_TYPES,
    TableBatch,
    file_format,
    is_text,
    located,
    open_binary,
)
from trainer.tables.jsonl import json_rows, jsonl_columns, stream_jsonl
from trainer.tables.parquet import parquet_columns, stream_parquet

__all__ = [
    "DELIMITERS",
    "TableBatch",
    "column_names",
    "csv_error",
    "file_format",
    "is_text",
    "json_rows",
    "open_binary",
    "stream_columns",
]


def column_names(path: Path) -> list[str]:
    """Names of the columns; of JSON Lines, the keys of the first row.

    Raises:
        DataError: if the file cannot be read.
    """
    kind, compression = file_format(path)
    with located(path):
        if kind == "parquet":
            names = parquet_columns(path)
        else:
            with open_binary(path, compression) as stream:
                if kind == "jsonl":
                    names = jsonl_columns(path, stream)
                else:
                    names = csv_columns(path, kind, stream)
    for name in names:
        if names.count(name) > 1 and name in COLUMN_TYPES:
            raise DataError(path, f"column {name} occurs more than once")
    return names


def stream_columns(path: Path, columns: Sequence[str]) -> Iterator[TableBatch]:
    """Read some columns, all of which the file has, in batches of bounded size.

    Raises:
        DataError: naming the row, where a row is malformed, not UTF-8 or of a wrong type.
    """
    kind, compression = file_format(path)
    with located(path):
        if kind == "parquet":
            yield from stream_parquet(path, columns)
        elif kind == "jsonl":
            yield from stream_jsonl(path, compression, columns)
        else:
            yield from stream_csv(path, kind, compression, columns)
