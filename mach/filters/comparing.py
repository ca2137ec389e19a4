"""Comparisons of one attribute's values, exact whatever the types."""

from __future__ import annotations

from contextlib import suppress
from decimal import ROUND_FLOOR, Context, Decimal
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mach.filters.terms import Literal, Name, error_at

__all__ = ["comparable", "compare", "is_one_of", "is_true"]

_COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def comparable(column: Any) -> Any:
    """Floating-point numbers without NaN, of a width that Arrow compares; others as they are."""
    if not pa.types.is_floating(column.type):
        return column
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def is_true(name: Name, column: Any) -> Any:
    """An attribute that is true or false, as it is."""
    if not pa.types.is_boolean(column.type):
        kind = _kind(column.type)
        raise error_at(name.position, f"{name.text} holds {kind}: compare it with something")
    return column


def _checked_kind(name: Name, kind: pa.DataType, literal: Literal) -> str:
    """What an attribute holds, which the literal is of."""
    wanted = _kind(kind)
    if wanted not in _GIVEN:
        raise error_at(name.position, f"{name.text} holds {wanted}, which cannot be compared")
    if not isinstance(literal.value, _GIVEN[wanted]):
        raise error_at(
            literal.position, f"{name.text} holds {wanted}, {literal.written} is not of those"
        )
    return wanted


def _scalar(name: Name, kind: pa.DataType, literal: Literal) -> pa.Scalar:
    """The literal, as the attribute's type; not for whole numbers and decimals."""
    wanted = _checked_kind(name, kind, literal)
    if wanted in ("dates", "times"):
        try:
            return _moment(literal.value, kind)
        except pa.ArrowInvalid:
            message = f"{literal.written} is no {wanted[:-1]} of type {kind}"
            raise error_at(literal.position, message) from None
    if pa.types.is_floating(kind):
        return pa.scalar(float(literal.value)).cast(kind)
    return pa.scalar(literal.value, kind)


def compare(operator: str, name: Name, literal: Literal, column: Any) -> Any:
    """One comparison of an attribute.

    Both sides have one type when Arrow compares them: where they differ, it rounds or fails.
    """
    kind = column.type
    wanted = _checked_kind(name, kind, literal)
    if wanted == "numbers" and not pa.types.is_floating(kind):
        return _compare_exactly(operator, column, literal.value)
    return _COMPARE[operator](column, _scalar(name, kind, literal))


def is_one_of(name: Name, literals: list[Literal], column: Any) -> Any:
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
