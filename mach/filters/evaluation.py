"""A parsed condition's tree to the rows that meet it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lark import Token, Transformer, Tree
from lark.exceptions import VisitError
from numpy.typing import NDArray

from mach.errors import InvalidInput
from mach.filters.comparing import comparable, compare, is_one_of, is_true
from mach.filters.terms import Literal, Name, error_at, shown

__all__ = ["evaluate"]

_MOST_NAMES = 20  # attributes that a message lists


def evaluate(tree: Tree[Token], table: pa.Table) -> NDArray[np.bool_]:
    """See :meth:`mach.filters.Filter.evaluate`."""
    try:
        met = _Evaluation(table).transform(tree)
    except VisitError as error:
        if isinstance(error.orig_exc, pa.ArrowException):
            message = f"cannot be applied: {error.orig_exc}"
            raise InvalidInput("filter", message) from error.orig_exc
        raise error.orig_exc from None
    mask: NDArray[np.bool_] = pc.fill_null(met, False).to_numpy(zero_copy_only=False)
    return mask


class _Evaluation(Transformer[Token, Any]):
    """Turns the tree into masks, Arrow boolean arrays, with null for unknown."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__()
        self._table = table
        self._columns: dict[str, Any] = {}

    def name(self, parts: list[Token]) -> Name:
        (token,) = parts
        text = str(token)
        if token.type == "QUOTED_NAME":
            text = text[1:-1].replace("``", "`")
        return Name(text, token.start_pos or 0)

    def literal(self, parts: list[Token]) -> Literal:
        (token,) = parts
        written = str(token)
        value: Any
        if token.type == "TEXT":
            quote = written[0]
            value = written[1:-1].replace(quote * 2, quote)
        elif token.type == "BOOLEAN":
            value = written.lower() == "true"
        else:
            try:
                value = Decimal(written)
            except InvalidOperation:
                message = f"{shown(written)} is too long a number"
                raise error_at(token.start_pos or 0, message) from None
        return Literal(value, shown(written), token.start_pos or 0)

    def any(self, parts: list[Any]) -> Any:
        met = parts[0]
        for part in parts[1:]:
            met = pc.or_kleene(met, part)
        return met

    def all(self, parts: list[Any]) -> Any:
        met = parts[0]
        for part in parts[1:]:
            met = pc.and_kleene(met, part)
        return met

    def negated(self, parts: list[Any]) -> Any:
        return pc.invert(parts[0])

    def compared(self, parts: list[Any]) -> Any:
        name, operator, literal = parts
        return self._of_values(name, partial(compare, str(operator), name, literal))

    def contained(self, parts: list[Any]) -> Any:
        name, *literals = parts
        return self._of_values(name, partial(is_one_of, name, literals))

    def not_contained(self, parts: list[Any]) -> Any:
        return pc.invert(self.contained(parts))

    def missing(self, parts: list[Any]) -> Any:
        return pc.invert(self.present(parts))

    def present(self, parts: list[Any]) -> Any:
        return pc.fill_null(self._of_values(parts[0], pc.is_valid), False)

    def true(self, parts: list[Any]) -> Any:
        return self._of_values(parts[0], partial(is_true, parts[0]))

    def _of_values(self, name: Name, function: Callable[[Any], Any]) -> Any:
        """``function`` of an attribute's values; where few occur again and again, of each once."""
        column = self._column(name)
        if pa.types.is_dictionary(column.type):
            return function(comparable(column.dictionary)).take(column.indices)
        return function(column)

    def _column(self, name: Name) -> Any:
        column = self._columns.get(name.text)
        if column is not None:
            return column
        if name.text not in self._table.column_names:
            names = self._table.column_names
            known = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
            message = f"there is no attribute {shown(name.text)}; there are {known}"
            raise error_at(name.position, message)
        column = self._table[name.text].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # combined chunks of an empty column stay one
            column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
        self._columns[name.text] = column = comparable(column)
        return column
