"""Streaming columns out of JSON Lines files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mach.errors import DataError
from trainer.tables import files
from trainer.tables.files import COLUMN_TYPES, TableBatch, open_binary

__all__ = ["half_pair", "id_texts", "json_rows", "jsonl_columns", "stream_jsonl"]

_BOM = "\ufeff"


def jsonl_columns(path: Path, stream: pa.NativeFile) -> list[str]:
    """Keys of the first row.

    Raises:
        DataError: if there is none.
    """
    for _, row in json_rows(path, stream):
        return list(row)
    raise DataError(path, "has no rows")


def json_rows(path: Path, stream: pa.NativeFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows that are not blank lines, with their numbers (blank lines count, as in an editor)."""
    for number, line in enumerate(_lines(path, stream), 1):
        try:
            text = line.decode()
            if number == 1:
                text = text.removeprefix(_BOM)
            if not text.strip():
                continue
            row = json.loads(text)
        except UnicodeDecodeError as error:
            raise DataError(path, "is not UTF-8 text", number) from error
        except (ValueError, RecursionError) as error:
            raise DataError(path, f"is not valid JSON: {error}", number) from error
        if not isinstance(row, dict):
            raise DataError(path, "is no JSON object", number)
        yield number, row


def _lines(path: Path, stream: pa.NativeFile) -> Iterator[bytes]:
    tail = b""
    number = 1
    while block := stream.read(1 << 20):
        lines = (tail + block).split(b"\n")
        tail = lines.pop()
        yield from lines
        number += len(lines)
        if len(tail) > files.MAX_ROW_BYTES:
            raise DataError(path, f"is longer than {files.MAX_ROW_BYTES >> 20} MiB", number)
    if tail:
        yield tail


def id_texts(value: Any) -> list[str | None]:
    """Ids of a parsed JSON list; TypeError if it is none."""
    if not isinstance(value, list):
        raise TypeError("not a list")
    return [_text(item) for item in value]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError("not text")


def _query(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError("not text")


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise TypeError("not a number")


def half_pair(values: Iterable[Any]) -> int:
    r"""Index of the first value with half a surrogate pair, or -1: "\ud800" is JSON, not text."""
    for index, value in enumerate(values):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return index
    return -1


def _size(value: Any) -> int:
    if isinstance(value, list):
        return files.ID_BYTES * len(value) + sum(len(text) for text in value if text)
    return len(value) if isinstance(value, str) else 0


_OTHERS = {"product_id": "product_ids", "product_ids": "product_id"}
_JSON_CONVERTERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "query": (_query, "text"),
    "product_id": (_text, "text or a whole number"),
    "product_ids": (lambda value: None if value is None else id_texts(value), "a list of ids"),
    "weight": (_number, "a number"),
}


def stream_jsonl(
    path: Path, compression: str | None, columns: Sequence[str]
) -> Iterator[TableBatch]:
    """Read some columns; arguments and errors as of :func:`trainer.tables.stream_columns`."""
    converters = [(name, *_JSON_CONVERTERS[name]) for name in columns]
    others = [(name, _OTHERS[name]) for name in columns if name in _OTHERS]
    values: dict[str, list[Any]] = {name: [] for name in columns}
    numbers: list[int] = []

    def flush() -> TableBatch:
        try:
            found = {name: pa.array(values[name], COLUMN_TYPES[name]) for name in columns}
        except UnicodeEncodeError as error:
            number = numbers[half_pair(zip(*values.values(), strict=True))]
            raise DataError(path, "holds half a surrogate pair", number) from error
        first = numbers[0]
        numbers.clear()
        for name in columns:
            values[name] = []
        return TableBatch(first, found)

    size = 0
    with open_binary(path, compression) as stream:
        for number, row in json_rows(path, stream):
            if numbers and (
                len(numbers) >= files.BATCH_ROWS
                or size >= files.BATCH_BYTES
                or number != numbers[-1] + 1
            ):
                yield flush()
                size = 0
            for given, other in others:
                if row.get(other) is not None:
                    raise DataError(path, f"has {other}, but the first row {given}", number)
            for name, convert, needed in converters:
                try:
                    values[name].append(convert(row.get(name)))
                except (TypeError, OverflowError) as error:
                    raise DataError(path, f"{name} must be {needed}", number) from error
            numbers.append(number)
            size += sum(_size(column[-1]) for column in values.values())
        if numbers:
            yield flush()
