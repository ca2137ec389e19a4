"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aggregator.coverage import Coverage

__all__ = ["RepetitionScore", "SearchAnswer", "SearchResult", "Timings"]

#: A repetition, the product's bucket in it, and that bucket's log-probability.
RepetitionScore = tuple[int, int, float]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Products for one query, best first; the lists run in parallel.

    Attributes:
        product_ids: at most k.
        scores: merged scores, higher is better.
        coverage: the repetitions the scores rest on.
        attributes: the catalog's attributes of each product, where asked for.
        explanations: each product's scores in each repetition, where asked for.
    """

    product_ids: list[str]
    scores: list[float]
    coverage: Coverage
    attributes: list[dict[str, Any]] | None = None
    explanations: list[list[RepetitionScore]] | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds; see ``mach.v1.Timings``."""

    featurize: float = 0.0
    queue: float = 0.0
    shards: float = 0.0
    merge: float = 0.0


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """The answer to one call.

    Attributes:
        results: one a query, in the order asked.
        bundle_version: the version that answered.
        timings: where the time went.
    """

    results: list[SearchResult]
    bundle_version: str
    timings: Timings
