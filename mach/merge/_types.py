"""Names for the scalars of compiled code, which a type checker would not tell from each other."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["Bool", "Float", "Int"]

Int: TypeAlias = Any
Float: TypeAlias = Any
Bool: TypeAlias = Any
