"""Conditions on the catalog's attributes: ``category = "drills" AND (price < 50 OR NOT in_stock)``.

The language::

    condition   price < 50        = != < <= > >= with text, a number, or true and false
                category IN ("drills", "saws")        NOT IN as well
                brand IS NULL                         IS NOT NULL as well
                in_stock                              an attribute that is true or false
    combined    NOT a     a AND b     a OR b     (a)            binding in this order
    attribute   letters, digits, _ and . ; any other name in backquotes: `price (net)`
    text        in double or single quotes; a quote inside is doubled
    dates       as text: "2024-01-03" or "2024-01-03 14:30"; where the attribute has a zone, one
                may follow, as Z or +02:00, and without one the text is read as UTC
    times       as text: "14:30" or "14:30:05"

Keywords are read in any case; text is compared exactly, and so are numbers, but where the
attribute holds floating-point numbers the given one is rounded to 64 bits first. As in SQL, a
comparison with a missing value is neither true nor false, and a product is kept only where the
whole is true.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lark import Lark, Token, Transformer, Tree
from lark.exceptions import UnexpectedInput, VisitError
from numpy.typing import NDArray

from mach.errors import InvalidInput

__all__ = ["Filter", "parse_filter"]

_GRAMMAR = r"""
    ?start: any
    ?any: all (_OR all)*
    ?all: not (_AND not)*
    ?not: _NOT not -> negated
        | "(" any ")"
        | name OPERATOR literal -> compared
        | name _IN "(" literal ("," literal)* ")" -> contained
        | name _NOT _IN "(" literal ("," literal)* ")" -> not_contained
        | name _IS _NULL -> missing
        | name _IS _NOT _NULL -> present
        | name -> true
    name: NAME | QUOTED_NAME
    literal: TEXT | NUMBER | BOOLEAN

    OPERATOR: "!=" | "<>" | "<=" | ">=" | "=" | "<" | ">"
    BOOLEAN.3: /(true|false)\b/i
    _AND.3: /and\b/i
    _OR.3: /or\b/i
    _NOT.3: /not\b/i
    _IN.3: /in\b/i
    _IS.3: /is\b/i
    _NULL.3: /null\b/i
    NAME: /[^\W\d][\w.]*/
    QUOTED_NAME: /`(?:[^`]|``)+`/
    TEXT: /"(?:[^"]|"")*"|'(?:[^']|'')*'/
    NUMBER: /[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?/
    %ignore /\s+/
"""

_COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_MAX_NESTING = 100


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", propagate_positions=True)


def _error(position: int, message: str) -> InvalidInput:
    return InvalidInput("filter", f"at character {position + 1}: {message}")


@dataclass(frozen=True)
class Filter:
    """A condition that was parsed; applies to any catalog with the attributes it names."""

    text: str
    _tree: Tree[Token]

    def evaluate(self, table: pa.Table) -> NDArray[np.bool_]:
        """Which rows of ``table`` meet the condition: bool, one a row.

        Raises:
            InvalidInput: if the table lacks an attribute, or its type does not go with what it
                is compared with; the message names the character.
        """
        try:
            met = _Evaluation(table).transform(self._tree)
        except VisitError as error:
            raise error.orig_exc from None
        mask: NDArray[np.bool_] = pc.fill_null(met, False).to_numpy(zero_copy_only=False)
        return mask


def parse_filter(text: str) -> Filter:
    """Read a condition.

    Raises:
        InvalidInput: if it cannot be read; the message names the character where it ends to
            make sense.
    """
    depth = deepest = 0
    for character in re.sub(r"\"[^\"]*\"|'[^']*'|`[^`]*`", "", text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        deepest = max(deepest, depth)
    if deepest > _MAX_NESTING or len(re.findall(r"\bnot\b", text, re.IGNORECASE)) > _MAX_NESTING:
        raise InvalidInput("filter", f"is nested more than {_MAX_NESTING} deep")
    try:
        return Filter(text, _parser().parse(text))
    except UnexpectedInput as error:
        position = error.pos_in_stream
        token = getattr(error, "token", None)
        if position is None or position < 0 or (token is not None and token.type == "$END"):
            raise _error(len(text), "the condition ends too early") from None
        rest = text[position : position + 20]
        raise _error(position, f"cannot read {rest!r} here") from None


@dataclass(frozen=True)
class _Name:
    text: str
    position: int


@dataclass(frozen=True)
class _Literal:
    value: Any
    written: str
    position: int


class _Evaluation(Transformer[Token, Any]):
    """Turns the tree into masks, Arrow boolean arrays, with null for unknown."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__()
        self._table = table

    def name(self, parts: list[Token]) -> _Name:
        (token,) = parts
        text = str(token)
        if token.type == "QUOTED_NAME":
            text = text[1:-1].replace("``", "`")
        return _Name(text, token.start_pos or 0)

    def literal(self, parts: list[Token]) -> _Literal:
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
                raise _error(token.start_pos or 0, f"{written} is too long a number") from None
        return _Literal(value, written, token.start_pos or 0)

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
        return _compare(str(operator), name, self._column(name), literal)

    def contained(self, parts: list[Any]) -> Any:
        name, *literals = parts
        column = self._column(name)
        met = _compare("=", name, column, literals[0])
        for literal in literals[1:]:
            met = pc.or_kleene(met, _compare("=", name, column, literal))
        return met

    def not_contained(self, parts: list[Any]) -> Any:
        return pc.invert(self.contained(parts))

    def missing(self, parts: list[Any]) -> Any:
        return pc.is_null(self._column(parts[0]))

    def present(self, parts: list[Any]) -> Any:
        return pc.is_valid(self._column(parts[0]))

    def true(self, parts: list[Any]) -> Any:
        column = self._column(parts[0])
        if not pa.types.is_boolean(column.type):
            kind = _kind(column.type)
            raise _error(
                parts[0].position, f"{parts[0].text} holds {kind}: compare it with something"
            )
        return column

    def _column(self, name: _Name) -> Any:
        if name.text not in self._table.column_names:
            known = ", ".join(self._table.column_names)
            raise _error(name.position, f"there is no attribute {name.text}; there are {known}")
        column = self._table[name.text].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # combined chunks of an empty column stay one
            column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column


def _compare(operator: str, name: _Name, column: Any, literal: _Literal) -> Any:
    """One comparison of an attribute.

    Both sides have one type when Arrow compares them: where they differ, it rounds or fails.
    """
    kind = column.type
    value: Any = literal.value
    wanted = _kind(kind)
    if wanted not in _GIVEN:
        raise _error(name.position, f"{name.text} holds {wanted}, which cannot be compared")
    if not isinstance(value, _GIVEN[wanted]):
        raise _error(
            literal.position, f"{name.text} holds {wanted}, {literal.written} is not of those"
        )
    if wanted in ("dates", "times"):
        try:
            scalar = _moment(value, kind)
        except pa.ArrowInvalid:
            message = f"{literal.written} is no {wanted[:-1]} of type {kind}"
            raise _error(literal.position, message) from None
        return _COMPARE[operator](column, scalar)
    if pa.types.is_floating(kind):
        return _COMPARE[operator](column.cast(pa.float64()), pa.scalar(float(value)))
    if wanted == "numbers":
        return _compare_exactly(operator, column, value)
    return _COMPARE[operator](column, pa.scalar(value, kind))


def _moment(text: str, kind: pa.DataType) -> pa.Scalar:
    """Text as a date, a date with a time, or a time of day."""
    if pa.types.is_time(kind):
        return pa.scalar(f"1970-01-01T{text}").cast(pa.timestamp(kind.unit)).cast(kind)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        with suppress(pa.ArrowInvalid):  # the text may name a zone: read below
            utc = pa.scalar(text).cast(pa.timestamp(kind.unit))
            return utc.cast(pa.timestamp(kind.unit, "UTC"))
    return pa.scalar(text).cast(kind)


def _compare_exactly(operator: str, column: Any, value: Decimal) -> Any:
    """Compare integers or decimals with any number, without rounding."""
    kind = column.type
    if pa.types.is_decimal(kind):
        step = Decimal((0, (1,), -kind.scale))
        high = Decimal((0, (9,) * kind.precision, -kind.scale))
        low = -high
    else:
        signed = pa.types.is_signed_integer(kind)
        step = Decimal(1)
        low = Decimal(-(2 ** (kind.bit_width - 1)) if signed else 0)
        high = Decimal(2 ** (kind.bit_width - signed) - 1)
    clamped = min(max(value, low), high)
    floor = clamped.quantize(step, ROUND_FLOOR, Context(prec=100))
    scalar = pa.scalar(floor if pa.types.is_decimal(kind) else int(floor), kind)
    if floor == value:
        return _COMPARE[operator](column, scalar)
    # The column cannot hold the number: each of its values is below or above.
    below = (pc.less if value < low else pc.less_equal)(column, scalar)
    above = pc.invert(below)
    equal = pc.and_(below, above)  # false, and unknown where a value is missing
    return {"<": below, "<=": below, ">": above, ">=": above, "=": equal}.get(
        operator, pc.invert(equal)
    )


#: What to compare with, for each kind of attribute that can be compared.
_GIVEN: dict[str, type[Any]] = {
    "true or false": bool,
    "text": str,
    "numbers": Decimal,
    "dates": str,
    "times": str,
}


def _kind(kind: pa.DataType) -> str:
    types = pa.types
    checks = {
        "true or false": (types.is_boolean,),
        "text": (types.is_string, types.is_large_string, types.is_string_view),
        "numbers": (types.is_integer, types.is_floating, _is_plain_decimal),
        "dates": (types.is_date, types.is_timestamp),
        "times": (types.is_time,),
    }
    for name, tests in checks.items():
        if any(test(kind) for test in tests):
            return name
    return f"values of type {kind}"


def _is_plain_decimal(kind: pa.DataType) -> bool:
    return bool(pa.types.is_decimal(kind) and kind.scale >= 0)  # Arrow compares no others
