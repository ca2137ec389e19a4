"""What all formats share: columns, names of files, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mach.errors import DataError

__all__ = [
    "BATCH_BYTES",
    "BATCH_ROWS",
    "COLUMN_TYPES",
    "ID_BYTES",
    "MAX_ROW_BYTES",
    "TableBatch",
    "file_format",
    "is_text",
    "located",
    "open_binary",
]

#: The columns this package knows, and the Arrow types they are read as.
COLUMN_TYPES: dict[str, pa.DataType] = {
    "query": pa.string(),
    "product_id": pa.string(),
    "product_ids": pa.list_(pa.string()),
    "weight": pa.float64(),
}

#: Rows given out at once, at most.
BATCH_ROWS = 16_384
#: Bytes of text given out at once, roughly: a batch ends with the row that reaches them.
BATCH_BYTES = 32 << 20
#: What an id of a list takes beside its text, roughly: lists are bounded by their ids, too.
ID_BYTES = 64
#: Longest row of a text format.
MAX_ROW_BYTES = 32 << 20

_FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


class TableBatch(NamedTuple):
    """Some rows of a file."""

    first_row: int
    """Number of the first row, counted from 1, the header not included."""
    columns: dict[str, pa.Array]
    """The columns asked for that the file has, of the types in ``COLUMN_TYPES``."""


def is_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be read as text: bytes may be UTF-8, nulls be missing."""
    types = pa.types
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_null,
    )
    return any(test(kind) for test in tests)


def file_format(path: Path) -> tuple[str, str | None]:
    """Format and compression of a file, by the end of its name.

    Raises:
        DataError: if the file does not exist, is not a file, is empty, or its name ends otherwise.
    """
    if not path.exists():
        raise DataError(path, "no such file")
    if not path.is_file():
        raise DataError(path, "is not a file")
    if path.stat().st_size == 0:
        raise DataError(path, "is empty")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None or (kind == "parquet" and compression):
        raise DataError(
            path, "unknown format: the name must end in .parquet, .csv, .tsv or .jsonl "
            "(the text formats also in .gz, .zst or .bz2 after that)"
        )  # fmt: skip
    return kind, compression


@contextmanager
def open_binary(path: Path, compression: str | None) -> Iterator[pa.NativeFile]:
    """The file's bytes, decompressed as they are read."""
    with pa.OSFile(str(path)) as raw:
        if compression is None:
            yield raw
        else:
            with pa.CompressedInputStream(raw, compression) as stream:
                yield stream


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Say of which file the errors of Arrow and of the operating system are."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(path, f"cannot be read: {first_line}") from error
