"""Which endpoints can answer for which repetitions of a bundle version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aggregator.coverage import MissingReason
from aggregator.fanout.endpoint import Endpoint, State
from aggregator.served import Expected

__all__ = ["Route", "Routes", "find_routes"]


@dataclass(frozen=True)
class Route:
    """Repetitions that the same endpoints hold, so that one message asks for all of them.

    Attributes:
        repetitions: which, increasing.
        endpoints: the replicas, any of which can answer.
    """

    repetitions: tuple[int, ...]
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True)
class Routes:
    """What can be asked at the moment.

    Attributes:
        ready: routes over endpoints in use.
        fallback: routes for the other repetitions, over endpoints ejected or silent.
        missing: why there is neither, by repetition.
        num_ready: repetitions that ``ready`` covers.
        has_replicas: whether some repetition in ``ready`` has more than one endpoint.
    """

    ready: tuple[Route, ...]
    fallback: tuple[Route, ...]
    missing: dict[int, MissingReason]
    num_ready: int
    has_replicas: bool


def find_routes(endpoints: Iterable[Endpoint], expected: Expected) -> Routes:
    """Group the repetitions of a bundle by who holds them."""
    endpoints = list(endpoints)
    in_use = _holders(e for e in endpoints if e.state is State.READY and not e.misfit(expected))
    ejected = _holders(
        e for e in endpoints if e.state in (State.EJECTED, State.SILENT) and not e.misfit(expected)
    )
    other = _holders(
        e
        for e in endpoints
        if e.state is State.READY and expected.bundle_version not in e.bundle_versions
    )
    ready: dict[tuple[Endpoint, ...], list[int]] = {}
    fallback: dict[tuple[Endpoint, ...], list[int]] = {}
    missing: dict[int, MissingReason] = {}
    for repetition in range(expected.num_repetitions):
        if found := in_use.get(repetition):
            ready.setdefault(found, []).append(repetition)
        elif found := ejected.get(repetition):
            fallback.setdefault(found, []).append(repetition)
        elif repetition in other:
            missing[repetition] = MissingReason.VERSION_MISMATCH
        else:
            missing[repetition] = MissingReason.UNAVAILABLE
    return Routes(
        _routes(ready),
        _routes(fallback),
        missing,
        sum(map(len, ready.values())),
        any(len(found) > 1 for found in ready),
    )


def _routes(held: dict[tuple[Endpoint, ...], list[int]]) -> tuple[Route, ...]:
    return tuple(Route(tuple(repetitions), found) for found, repetitions in held.items())


def _holders(endpoints: Iterable[Endpoint]) -> dict[int, tuple[Endpoint, ...]]:
    holders: dict[int, tuple[Endpoint, ...]] = {}
    for endpoint in endpoints:
        for repetition in endpoint.repetitions:
            holders[repetition] = (*holders.get(repetition, ()), endpoint)
    return holders
