"""A dashboard against Grafana's own schema, as Grafana's SDK for Python has it.

The SDK's classes are generated from the schema. Reading a dashboard drops what the schema does
not know, and takes values of any type; so what was read is written again and compared, and
every value is checked against its annotation.
"""

from __future__ import annotations

import enum
import json
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()


def problems(dashboard: dict[str, Any]) -> Iterator[str]:
    """What Grafana's schema does not know, or wants otherwise."""
    try:
        read = Dashboard.from_json(dashboard)
    except (KeyError, TypeError, AttributeError) as error:
        yield f"it cannot be read: {type(error).__name__}: {error}"
        return
    yield from _dropped(dashboard, json.loads(JSONEncoder().encode(read)), "dashboard")
    yield from _mistyped(read, Dashboard, "dashboard")


def _dropped(given: Any, kept: Any, where: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            if name in kept:
                yield from _dropped(value, kept[name], f"{where}.{name}")
            elif value is not None:  # the SDK leaves out null
                yield f"{where}.{name} is not in the schema"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _dropped(one, other, f"{where}[{index}]")
    elif given != kept:
        yield f"{where} is {given!r} and comes back as {kept!r}"


def _mistyped(value: Any, hint: Any, where: str) -> Iterator[str]:
    if not _fits(value, hint):
        yield f"{where} is {value!r}, not {hint}"
    elif isinstance(value, list):
        inner = (typing.get_args(_plain(hint)) or (Any,))[0]
        for index, entry in enumerate(value):
            yield from _mistyped(entry, inner, f"{where}[{index}]")
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _mistyped(entry, Any, f"{where}.{name}")
    elif type(value).__module__.startswith("grafana_foundation_sdk"):
        if isinstance(value, enum.Enum):
            return
        hints = typing.get_type_hints(type(value), vars(sys.modules[type(value).__module__]))
        for name, entry in vars(value).items():
            if entry is not None:
                yield from _mistyped(entry, hints.get(name, Any), f"{where}.{name}")


def _plain(hint: Any) -> Any:
    """``hint`` without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [each for each in typing.get_args(hint) if each is not types.NoneType]
        return rest[0] if len(rest) == 1 else hint
    return hint


def _fits(value: Any, hint: Any) -> bool:
    hint = _plain(hint)
    origin = typing.get_origin(hint)
    if hint in (Any, object):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is not None:
        return isinstance(value, origin)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
