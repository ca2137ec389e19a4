"""The catalog of a run, from a file or from the log, and the way from product id to class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from mach.bundle.catalog import ID_COLUMN, repeated_column
from mach.errors import DataError
from mach.hashing import MAX_CLASSES
from trainer.interactions import SkipReport, read_interactions
from trainer.tables import DELIMITERS, csv_error, file_format, is_text, json_rows, open_binary

__all__ = ["TITLE_COLUMN", "ClassIndex", "catalog_from_log", "read_catalog"]

_CHUNK = 65_536
#: Digits that begin with a zero; Arrow reads a number with blanks around it.
_LEADING_ZERO = r"^\s*0[0-9]+\s*$"
#: Whole numbers of which a double loses digits; Arrow reads them as such beyond 64 bits.
_TOO_LONG = r"^\s*-?[0-9]{16,}\s*$"
#: Shown with results, and used as a training query.
TITLE_COLUMN = "title"


def read_catalog(path: Path) -> pa.Table:
    """Read a catalog, all of it: column ``product_id`` (as text) and any others.

    Raises:
        DataError: if the file cannot be read, the column is missing, a column is repeated,
            or an id is missing, empty or repeated; the message names the column or the row.
    """
    kind, compression = file_format(path)
    try:
        if kind == "parquet":
            _check_columns(path, pq.read_schema(path).names)  # repeated ones are not even read
            table = pq.read_table(path)
        elif kind == "jsonl":
            with open_binary(path, compression) as stream:
                table = _read_jsonl(path, stream)
        else:
            table = _read_csv(path, kind, compression)
    except (pa.ArrowException, OSError, EOFError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(path, f"cannot be read: {message}") from error
    except UnicodeDecodeError as error:
        raise DataError(path, "the names of its columns are not UTF-8 text") from error
    _check_columns(path, table.column_names)
    if not table.num_rows:
        raise DataError(path, "has no rows")
    if table.num_rows > MAX_CLASSES:
        raise DataError(path, f"has more than {MAX_CLASSES} products")
    ids = _ids(path, table[ID_COLUMN])
    table = table.set_column(table.column_names.index(ID_COLUMN), ID_COLUMN, ids)
    for at, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type):
            table = table.set_column(at, field.name, table[at].cast(pa.large_string()))
    _check_text(path, table)
    return table


def _check_columns(path: Path, names: list[str]) -> None:
    if names.count(ID_COLUMN) != 1:
        raise DataError(path, f"needs one column {ID_COLUMN}, and has {', '.join(names)}")
    if (name := repeated_column(names)) is not None:
        raise DataError(path, f"column {name!r} occurs more than once")


def _check_text(path: Path, table: pa.Table) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if name == TITLE_COLUMN and not (text or pa.types.is_null(kind)):
            raise DataError(path, f"column {name} is {kind}, it must be text")
        if text:
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                raise DataError(path, f"column {name} is not UTF-8 text: {error}") from error


def _read_csv(path: Path, kind: str, compression: str | None) -> pa.Table:
    table = _parse_csv(path, kind, compression, [ID_COLUMN, TITLE_COLUMN])
    _check_columns(path, table.column_names)
    for field in table.schema:
        if pa.types.is_binary(field.type):  # what Arrow makes of text that is not UTF-8
            row = _first_not_utf8(table[field.name])
            raise DataError(path, f"{field.name} is not UTF-8 text", row)
    numbers = [
        field.name
        for field in table.schema
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    ]
    if not numbers:
        return table
    written = _parse_csv(path, kind, compression, numbers, include=numbers)
    for name in numbers:  # 00112 is a code, which as a number would lose its zeros
        code = _LEADING_ZERO
        if pa.types.is_floating(table.schema.field(name).type):
            code = f"{_LEADING_ZERO}|{_TOO_LONG}"
        if pc.any(pc.match_substring_regex(written[name], code)).as_py():
            table = table.set_column(table.column_names.index(name), name, written[name])
    return table


def _first_not_utf8(column: pa.ChunkedArray) -> int:
    for row, value in enumerate(column, start=1):
        try:
            (value.as_py() or b"").decode()
        except UnicodeDecodeError:
            return row
    raise AssertionError("all of it is UTF-8")


def _parse_csv(
    path: Path, kind: str, compression: str | None, texts: list[str], include: Sequence[str] = ()
) -> pa.Table:
    """The columns ``include``, by default all; ``texts`` as text, others of the type they show."""
    try:
        with open_binary(path, compression) as stream:
            return pyarrow.csv.read_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(use_threads=False),  # so that errors tell rows
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=DELIMITERS[kind], newlines_in_values=True
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=list(include),
                    column_types=dict.fromkeys(texts, pa.string()),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            )
    except pa.ArrowInvalid as error:
        raise csv_error(path, str(error), 1) from error


def _read_jsonl(path: Path, stream: pa.NativeFile) -> pa.Table:
    tables = []
    rows = json_rows(path, stream)
    while chunk := list(islice(rows, _CHUNK)):
        names = dict.fromkeys(name for _, row in chunk for name in row)
        for name in names:
            if name != name.encode(errors="replace").decode():  # half of a surrogate pair
                raise DataError(path, f"{name!r} cannot be the name of a column")
        tables.append(pa.table({name: _json_column(path, name, chunk) for name in names}))
    if not tables:
        raise DataError(path, "has no rows")
    return pa.concat_tables(tables, promote_options="permissive")


def _json_column(path: Path, name: str, chunk: list[tuple[int, dict[str, Any]]]) -> pa.Array:
    values = [row.get(name) for _, row in chunk]
    if name == ID_COLUMN:
        values = [
            str(value) if isinstance(value, int) and not isinstance(value, bool) else value
            for value in values
        ]
    try:
        return pa.array(values, pa.string() if name in (ID_COLUMN, TITLE_COLUMN) else None)
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
        kind: type = str if name in (ID_COLUMN, TITLE_COLUMN) else type(None)
        for (number, _), value in zip(chunk, values, strict=True):
            kind = type(value) if kind is type(None) else kind
            if value is not None and type(value) is not kind:
                needed = "text or a whole number" if name == ID_COLUMN else kind.__name__
                raise DataError(
                    path, f"{name} is {type(value).__name__}, it must be {needed}", number
                ) from error
        raise DataError(path, f"column {name} cannot be read: {error}") from error


def _ids(path: Path, column: pa.ChunkedArray) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (is_text(kind) or pa.types.is_integer(kind)):
        raise DataError(path, f"column {ID_COLUMN} is {kind}, it must be text or whole numbers")
    try:
        ids = column.cast(pa.large_string()).combine_chunks()
        if isinstance(ids, pa.ChunkedArray):  # an older Arrow keeps one chunk as chunked
            ids = pa.concat_arrays(ids.chunks)
        ids.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(path, f"column {ID_COLUMN} is not UTF-8 text: {error}") from error
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(ids), ""), True)
    if (row := pc.index(blank, True).as_py()) >= 0:
        raise DataError(path, f"{ID_COLUMN} is missing", row + 1)
    if pc.count_distinct(ids).as_py() < len(ids):
        order = pc.sort_indices(ids)
        sorted_ids = ids.take(order)
        same = pc.equal(sorted_ids.slice(1), sorted_ids.slice(0, len(ids) - 1))
        row = order[pc.index(same, True).as_py() + 1].as_py()
        raise DataError(path, f"{ID_COLUMN} {ids[row].as_py()!r} occurs more than once", row + 1)
    return ids


def catalog_from_log(paths: Sequence[Path]) -> pa.Table:
    """A catalog of the products that occur in a log; its memory grows with their number only.

    Raises:
        DataError: as :func:`read_interactions`, or if no product occurs.
    """
    known = pa.array([], pa.large_string())
    pending: list[pa.Array] = []
    size = 0
    for batch in read_interactions(paths, SkipReport()):
        pending.append(pc.unique(batch.products).cast(pa.large_string()))
        size += len(pending[-1])
        if size > max(1_000_000, len(known)):  # so that merging costs a constant per product
            known, pending, size = pc.unique(pa.concat_arrays([known, *pending])), [], 0
    known = pc.unique(pa.concat_arrays([known, *pending]))
    if not len(known):
        raise DataError(paths[0], "no row has a query and a product")
    return pa.table({ID_COLUMN: known})


class ClassIndex:
    """Class of a product id, exactly, in 12 bytes a product beside the ids themselves.

    Ids are found by a 64-bit hash and then compared, so a colliding unknown id is unknown.
    """

    def __init__(self, ids: Any) -> None:
        """Index ``ids``, an Arrow array of distinct texts; class i is ``ids[i]``."""
        self._ids = ids
        self._seed = 0
        while True:  # two known ids with one hash: not once in a million runs with 1e6 products
            hashes = self._hash(ids)
            order = np.argsort(hashes)
            self._hashes = hashes[order]
            if len(ids) < 2 or (self._hashes[1:] != self._hashes[:-1]).all():
                break
            self._seed += 1
        self._classes = order.astype(np.int32)

    def __len__(self) -> int:
        return len(self._ids)

    def _hash(self, texts: Any) -> NDArray[np.uint64]:
        hashes = np.empty(len(texts), np.uint64)
        digest, seed = xxhash.xxh3_64_intdigest, self._seed
        for start in range(0, len(texts), _CHUNK):
            part = texts.slice(start, _CHUNK).to_pylist()
            hashes[start : start + len(part)] = np.fromiter(
                (digest(text.encode(), seed) for text in part), np.uint64, len(part)
            )
        return hashes

    def lookup(self, ids: pa.Array) -> NDArray[np.int32]:
        """Classes of ``ids``, int32 of the same length; -1 where an id is not known."""
        if not len(ids):
            return np.empty(0, np.int32)
        encoded = ids.dictionary_encode()
        distinct = encoded.dictionary
        hashes = self._hash(distinct)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        classes = self._classes[at]
        same = pc.equal(self._ids.take(pa.array(classes)), distinct.cast(pa.large_string()))
        classes = np.where(same.to_numpy(zero_copy_only=False), classes, -1).astype(np.int32)
        result: NDArray[np.int32] = classes[encoded.indices.to_numpy()]
        return result
