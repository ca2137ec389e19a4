"""Streaming columns out of CSV and TSV files."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from mach.errors import DataError
from trainer.tables import files
from trainer.tables.files import COLUMN_TYPES, TableBatch, open_binary
from trainer.tables.jsonl import half_pair, id_texts

__all__ = ["DELIMITERS", "csv_columns", "csv_error", "stream_csv"]

DELIMITERS = {"csv": ",", "tsv": "\t"}
#: Arrow reads 32 blocks ahead, so they are small until a row calls for larger ones.
BLOCK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20


def csv_columns(path: Path, kind: str, stream: pa.NativeFile) -> list[str]:
    """Names of the columns, from the first line."""
    head = stream.read(_MAX_HEADER_BYTES)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(path, "is UTF-16, it must be UTF-8")
    text = head.rpartition(b"\n")[0] if len(head) == _MAX_HEADER_BYTES else head
    try:
        lines = io.StringIO(text.decode("utf-8-sig"), newline="")
        return next(row for row in csv.reader(lines, delimiter=DELIMITERS[kind]) if row)
    except UnicodeDecodeError:  # perhaps in the rows: then reading them says in which
        first = text.split(b"\n", 1)[0].decode("utf-8-sig", "replace")
        return next(csv.reader([first], delimiter=DELIMITERS[kind]))
    except (StopIteration, csv.Error):
        raise DataError(path, "has no header") from None


def _csv_batches(
    path: Path, kind: str, compression: str | None, columns: Sequence[str], block_bytes: int
) -> Iterator[pa.RecordBatch]:
    types = {name: pa.string() for name in COLUMN_TYPES} | {"weight": pa.float64()}
    with open_binary(path, compression) as stream:
        yield from pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=block_bytes, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=DELIMITERS[kind], newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(columns),
                column_types=types,
                strings_can_be_null=False,
                null_values=[""],
            ),
        )


def stream_csv(
    path: Path, kind: str, compression: str | None, columns: Sequence[str]
) -> Iterator[TableBatch]:
    """Read some columns; arguments and errors as of :func:`trainer.tables.stream_columns`."""
    row = 1  # the next to be given out
    for block_bytes in (BLOCK_BYTES, files.MAX_ROW_BYTES):
        passed = 0
        try:
            for batch in _csv_batches(path, kind, compression, columns, block_bytes):
                passed += batch.num_rows
                while row <= passed:
                    part = batch.slice(batch.num_rows - (passed - row + 1), files.BATCH_ROWS)
                    found = {name: part.column(name) for name in columns}
                    if "product_ids" in found:
                        found["product_ids"] = _split_ids(path, found["product_ids"], row)
                    yield TableBatch(row, found)
                    row += part.num_rows
            return
        except pa.ArrowInvalid as error:
            if "straddling" in str(error) and block_bytes < files.MAX_ROW_BYTES:
                continue  # a row is longer than a block: once more, with larger ones
            raise csv_error(path, str(error), row) from error


def csv_error(path: Path, message: str, next_row: int) -> DataError:
    """What Arrow's message means, with our row number; ``next_row`` is the first not yet read."""
    if "straddling" in message:
        return DataError(
            path,
            f"from row {next_row} on there is a row of more than {files.MAX_ROW_BYTES >> 20} MiB, "
            "or a quote that is never closed",
        )
    message = message.splitlines()[0]
    row = re.search(r"Row #(\d+): ?", message)
    message = re.sub(r"^CSV parse error: |^In CSV column #\d+: |Row #\d+: |CSV ", "", message)
    return DataError(path, message[:200], int(row[1]) - 1 if row else None)  # Arrow counts headers


def _split_ids(path: Path, column: pa.Array, first_row: int) -> pa.Array:
    """Lists of ids in one field: a JSON array, or ids with ``|`` between them."""
    if not pc.any(pc.starts_with(column, "[")).as_py():
        return pc.split_pattern(column, "|")
    lists = []
    for index, text in enumerate(column.to_pylist()):
        if not text.startswith("["):
            lists.append(text.split("|"))
            continue
        try:
            lists.append(id_texts(json.loads(text)))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                path, "product_ids is no JSON list of ids", first_row + index
            ) from error
    try:
        return pa.array(lists, COLUMN_TYPES["product_ids"])
    except UnicodeEncodeError as error:
        row = first_row + half_pair(lists)
        raise DataError(path, "product_ids holds half a surrogate pair", row) from error
