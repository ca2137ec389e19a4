"""``catalog.arrow``: product ids in class order and their attributes, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mach.errors import BundleError, DataError

__all__ = ["ID_COLUMN", "Catalog", "repeated_column", "write_catalog"]

ID_COLUMN = "product_id"
_MOST_TEXT_BYTES = 2**30  # of a column; Arrow's offsets of 32 bits end at twice as much


def repeated_column(names: Sequence[str]) -> str | None:
    """The first name that two columns have, if any: asked for by name, neither can be found."""
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def write_catalog(path: Path, table: pa.Table) -> None:
    """Write ``table`` (column ``product_id`` and any others) sorted by id, in one record batch.

    Class i is row i: the i-th product id in UTF-8 byte order. So an id is found by binary
    search in the mapped file, without an index, and equal scores rank by product id.

    Raises:
        DataError: if ids are missing, empty or not unique, or values nested too deep or of a
            kind that cannot be sorted.
    """
    table = table.set_column(
        table.column_names.index(ID_COLUMN), ID_COLUMN, table[ID_COLUMN].cast(pa.large_string())
    )
    ids = table[ID_COLUMN]
    if ids.null_count:
        raise DataError(path, "a product_id is missing")
    try:
        table = _with_long_columns(table).take(pa.compute.sort_indices(ids)).combine_chunks()
    except pa.ArrowException as error:
        raise DataError(path, f"cannot be sorted: {error}") from error
    ids = table[ID_COLUMN].combine_chunks()
    if len(ids) and ids[0].as_py() == "":
        raise DataError(path, "a product_id is empty")
    if len(ids) > 1:
        same = pa.compute.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
        if (row := pa.compute.index(same, True).as_py()) >= 0:
            raise DataError(path, f"product_id {ids[row].as_py()!r} occurs more than once")
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    except pa.ArrowInvalid as error:
        raise DataError(path, f"cannot be written: {error}") from error


def _with_long_columns(table: pa.Table) -> pa.Table:
    """With text of any length: a column of ``string`` holds 2 GiB at most once it is in one."""
    long = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    for at, field in enumerate(table.schema):
        if (kind := long.get(field.type)) and table[at].nbytes >= _MOST_TEXT_BYTES:
            table = table.set_column(at, field.with_type(kind), table[at].cast(kind))
    return table


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        pass
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(part) for name, part in scalar.items()}
    if isinstance(scalar, pa.ListScalar):
        return [_value(part) for part in scalar.values]
    if isinstance(scalar, pa.TimestampScalar):  # its zone may be unknown
        text = str(scalar.cast(pa.timestamp(scalar.type.unit)).cast(pa.string()))
        return text.replace(" ", "T", 1) + ("Z" if scalar.type.tz else "")
    return str(scalar.cast(pa.string()) if pa.types.is_date(scalar.type) else scalar.value)


class Catalog:
    """Products of a bundle. Class i is row i; ids are unique and increase in byte order."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._ids = table[ID_COLUMN].combine_chunks()
        self._attributes = [name for name in table.column_names if name != ID_COLUMN]

    @classmethod
    def open(cls, path: Path) -> Catalog:
        """Map the file; nothing is read until it is asked for.

        Raises:
            BundleError: if the file is not an Arrow file with a ``product_id`` column, or two
                of its columns have one name.
        """
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise BundleError(f"{path} cannot be read: {error}") from error
        if ID_COLUMN not in table.column_names:
            raise BundleError(f"{path} has no column {ID_COLUMN}")
        if (name := repeated_column(table.column_names)) is not None:
            raise BundleError(f"{path} has column {name!r} more than once")
        return cls(table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def attributes(self) -> list[str]:
        """Names of the attribute columns."""
        return list(self._attributes)

    def product_ids(self, classes: Iterable[int]) -> list[str]:
        """Ids of ``classes``."""
        ids = self._ids
        return [ids[int(i)].as_py() for i in classes]

    def rows(self, classes: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Any]]:
        """Attributes of ``classes`` (without the id), missing values left out.

        What Python has no value for, such as nanoseconds or the year 10000, is text.
        """
        if not self._attributes:  # of a table without columns no row can be taken
            return [{} for _ in classes]
        picked = self.table.select(self._attributes).take(pa.array(classes, pa.int64()))
        try:
            rows = picked.to_pylist()
        except (ValueError, OverflowError, pa.ArrowException):
            columns = [[_value(scalar) for scalar in column] for column in picked.columns]
            rows = [
                dict(zip(self._attributes, row, strict=True)) for row in zip(*columns, strict=True)
            ]
        return [{name: value for name, value in row.items() if value is not None} for row in rows]

    def class_of(self, product_id: str) -> int | None:
        """The class of an id, or None; a binary search of log2(K) steps."""
        ids, wanted = self._ids, product_id.encode()
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if ids[middle].as_buffer().to_pybytes() < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(ids) and ids[low].as_py() == product_id else None
