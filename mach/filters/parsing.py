"""Text to a condition that can be applied to a catalog."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput
from numpy.typing import NDArray

from mach.errors import InvalidInput
from mach.filters.evaluation import evaluate
from mach.filters.terms import error_at

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

_MAX_NESTING = 100


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", propagate_positions=True)


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
        return evaluate(self._tree, table)


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
            raise error_at(len(text), "the condition ends too early") from None
        rest = text[position : position + 20]
        raise error_at(position, f"cannot read {rest!r} here") from None


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
