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
attribute holds floating-point numbers of 32 or 64 bits the given one is rounded to these first. As
in SQL, a comparison with a missing value is neither true nor false, and a product is kept only
where the whole is true. What is not a number (NaN) is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal, InvalidOperation
from functools import lru_cache, partial, reduce
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
_MOST_SHOWN, _MOST_NAMES = 80, 20  # characters of what a message quotes; attributes it lists


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
            if isinstance(error.orig_exc, pa.ArrowException):
                message = f"cannot be applied: {error.orig_exc}"
                raise InvalidInput("filter", message) from error.orig_exc
            raise error.orig_exc from None
        mask: NDArray[np.bool_] = pc.fill_null(met, False).to_numpy(zero_copy_only=False)
        return mask


def parse_filter(text: str) -> Filter:
    """Read a condition.

    Raises:
        InvalidInput: if it cannot be read; the message names the character where it ends to
            make sense.
    """
    if _depth(text) > _MAX_NESTING:
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


def _depth(text: str) -> int:
    """How deep parentheses and NOTs lie in each other, about: IS NOT and NOT IN count too."""
    deepest = depth = nots = 0
    opened: list[int] = []  # what each open parenthesis adds
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r"\"[^\"]*\"|'[^']*'|`[^`]*`", "x", text)):
        if token == "(":
            opened.append(nots + 1)
            depth += nots + 1
        elif token == ")" and opened:
            depth -= opened.pop()
        nots = nots + 1 if token.lower() == "not" else 0
        deepest = max(deepest, depth + nots)
    return deepest


def _shown(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


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
        self._columns: dict[str, Any] = {}

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
                message = f"{_shown(written)} is too long a number"
                raise _error(token.start_pos or 0, message) from None
        return _Literal(value, _shown(written), token.start_pos or 0)

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
        return self._of_values(name, partial(_compare, str(operator), name, literal))

    def contained(self, parts: list[Any]) -> Any:
        name, *literals = parts
        return self._of_values(name, partial(_is_one_of, name, literals))

    def not_contained(self, parts: list[Any]) -> Any:
        return pc.invert(self.contained(parts))

    def missing(self, parts: list[Any]) -> Any:
        return pc.invert(self.present(parts))

    def present(self, parts: list[Any]) -> Any:
        return pc.fill_null(self._of_values(parts[0], pc.is_valid), False)

    def true(self, parts: list[Any]) -> Any:
        return self._of_values(parts[0], partial(_is_true, parts[0]))

    def _of_values(self, name: _Name, function: Callable[[Any], Any]) -> Any:
        """``function`` of an attribute's values; where few occur again and again, of each once."""
        column = self._column(name)
        if pa.types.is_dictionary(column.type):
            return function(_comparable(column.dictionary)).take(column.indices)
        return function(column)

    def _column(self, name: _Name) -> Any:
        column = self._columns.get(name.text)
        if column is not None:
            return column
        if name.text not in self._table.column_names:
            names = self._table.column_names
            known = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
            message = f"there is no attribute {_shown(name.text)}; there are {known}"
            raise _error(name.position, message)
        column = self._table[name.text].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # combined chunks of an empty column stay one
            column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
        self._columns[name.text] = column = _comparable(column)
        return column


def _comparable(column: Any) -> Any:
    """Floating-point numbers without NaN, of a width that Arrow compares; others as they are."""
    if not pa.types.is_floating(column.type):
        return column
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _is_true(name: _Name, column: Any) -> Any:
    if not pa.types.is_boolean(column.type):
        kind = _kind(column.type)
        raise _error(name.position, f"{name.text} holds {kind}: compare it with something")
    return column


def _checked_kind(name: _Name, kind: pa.DataType, literal: _Literal) -> str:
    """What an attribute holds, which the literal is of."""
    wanted = _kind(kind)
    if wanted not in _GIVEN:
        raise _error(name.position, f"{name.text} holds {wanted}, which cannot be compared")
    if not isinstance(literal.value, _GIVEN[wanted]):
        raise _error(
            literal.position, f"{name.text} holds {wanted}, {literal.written} is not of those"
        )
    return wanted


def _scalar(name: _Name, kind: pa.DataType, literal: _Literal) -> pa.Scalar:
    """The literal, as the attribute's type; not for whole numbers and decimals."""
    wanted = _checked_kind(name, kind, literal)
    if wanted in ("dates", "times"):
        try:
            return _moment(literal.value, kind)
        except pa.ArrowInvalid:
            message = f"{literal.written} is no {wanted[:-1]} of type {kind}"
            raise _error(literal.position, message) from None
    if pa.types.is_floating(kind):
        return pa.scalar(float(literal.value)).cast(kind)
    return pa.scalar(literal.value, kind)


def _compare(operator: str, name: _Name, literal: _Literal, column: Any) -> Any:
    """One comparison of an attribute.

    Both sides have one type when Arrow compares them: where they differ, it rounds or fails.
    """
    kind = column.type
    wanted = _checked_kind(name, kind, literal)
    if wanted == "numbers" and not pa.types.is_floating(kind):
        return _compare_exactly(operator, column, literal.value)
    return _COMPARE[operator](column, _scalar(name, kind, literal))


def _is_one_of(name: _Name, literals: list[_Literal], column: Any) -> Any:
    """Whether values are among those given: one look at each, however many are given."""
    kind = column.type
    scalars = []
    for literal in literals:
        if _checked_kind(name, kind, literal) == "numbers" and not pa.types.is_floating(kind):
            held, clamped = _clamped(kind, literal.value)
            if held == literal.value:  # or no value is equal
                scalars.append(clamped)
        else:
            scalars.append(_scalar(name, kind, literal))
    try:
        found = pc.is_in(column, pa.array([scalar.cast(kind) for scalar in scalars], kind))
    except pa.ArrowNotImplementedError:  # of some rare types
        equal = (pc.equal(column, scalar) for scalar in scalars)
        found = reduce(pc.or_kleene, equal, pa.scalar(False))
    return pc.if_else(pc.is_valid(column), found, pa.scalar(None, pa.bool_()))


def _moment(text: str, kind: pa.DataType) -> pa.Scalar:
    """Text as a date, a date with a time, or a time of day."""
    if pa.types.is_time(kind):
        return pa.scalar(f"1970-01-01T{text}").cast(pa.timestamp(kind.unit)).cast(kind)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        with suppress(pa.ArrowInvalid):  # the text may name a zone: read below
            utc = pa.scalar(text).cast(pa.timestamp(kind.unit))
            return utc.cast(pa.timestamp(kind.unit, "UTC"))
    return pa.scalar(text).cast(kind)


def _clamped(kind: pa.DataType, value: Decimal) -> tuple[Decimal, pa.Scalar]:
    """The largest number of a type of integers or decimals that is no larger, or its least."""
    if pa.types.is_decimal(kind):
        step = Decimal((0, (1,), -kind.scale))
        high = Decimal((0, (9,) * kind.precision, -kind.scale))
        low = high.copy_negate()  # arithmetic would round it
    else:
        signed = pa.types.is_signed_integer(kind)
        step = Decimal(1)
        low = Decimal(-(2 ** (kind.bit_width - 1)) if signed else 0)
        high = Decimal(2 ** (kind.bit_width - signed) - 1)
    floor = min(max(value, low), high).quantize(step, ROUND_FLOOR, Context(prec=100))
    return floor, pa.scalar(floor if pa.types.is_decimal(kind) else int(floor), kind)


def _compare_exactly(operator: str, column: Any, value: Decimal) -> Any:
    """Compare integers or decimals with any number, without rounding."""
    floor, scalar = _clamped(column.type, value)
    if floor == value:
        return _COMPARE[operator](column, scalar)
    # The column cannot hold the number: each of its values is below or above.
    below = (pc.less if value < floor else pc.less_equal)(column, scalar)
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
