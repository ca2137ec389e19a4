"""From rows of bucket log-probabilities to products. Runs in worker threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aggregator.coverage import Coverage
from aggregator.requests import SearchOptions
from aggregator.results import RepetitionScore, SearchResult
from aggregator.scores import Scores, read_scores
from aggregator.served import ServedBundle
from mach.features import SparseBatch
from mach.merge import ProductSet, TopKResult
from mach.wire import EncodedRows, encode_rows

if TYPE_CHECKING:
    from aggregator.fanout import Job

__all__ = ["MergeStats", "Merger", "Wanted", "empty_result", "merge_jobs", "warm_up"]

_TOGETHER = 16  # queries searched together: their scores stay in the caches


@dataclass(slots=True)
class MergeStats:
    """What merging a batch took, added up.

    Attributes:
        queries: queries merged.
        candidates: products looked at.
    """

    queries: int = 0
    candidates: int = 0


def empty_result(coverage: Coverage, options: SearchOptions) -> SearchResult:
    """The answer to a query of which nothing is known."""
    return SearchResult(
        [],
        [],
        coverage,
        [] if options.include_attributes else None,
        [] if options.explain else None,
    )


class Wanted(NamedTuple):
    """One query of a batch."""

    row: int
    """Which row of the batch it is."""
    options: SearchOptions
    allowed: ProductSet | None


class Merger:
    """Merges the answers to one batch."""

    def __init__(self, served: ServedBundle, scores: Scores, coverage: Coverage) -> None:
        self.stats = MergeStats()
        self._served = served
        self._rows = scores
        self._coverage = coverage
        num_repetitions = served.manifest.num_repetitions
        self._all = len(scores.repetitions) == num_repetitions
        self._shape = (len(scores.repetitions), served.manifest.num_buckets)
        self._buffer = np.empty((0, *self._shape), np.float32)

    def results(self, wanted: Sequence[Wanted]) -> list[SearchResult]:
        """Products for each of some queries; those that ask alike are searched together."""
        alike: dict[tuple[int, int], list[int]] = {}
        for at, one in enumerate(wanted):
            alike.setdefault((one.options.k, id(one.allowed)), []).append(at)
        results: list[SearchResult | None] = [None] * len(wanted)
        for places in alike.values():
            for start in range(0, len(places), _TOGETHER):
                part = places[start : start + _TOGETHER]
                for at, found in zip(part, self._search([wanted[i] for i in part]), strict=True):
                    results[at] = self._result(wanted[at], found)
        return [result for result in results if result is not None]

    def _search(self, wanted: Sequence[Wanted]) -> list[TopKResult]:
        rows = self._rows
        if len(self._buffer) < len(wanted):
            self._buffer = np.empty((len(wanted), *self._shape), np.float32)
        scores = self._buffer[: len(wanted)]
        for one, out in zip(wanted, scores, strict=True):
            rows.scores(one.row, out)
        return self._served.top_k.search_batch(
            scores,
            wanted[0].options.k,
            repetitions=None if self._all else rows.repetitions,
            allowed=wanted[0].allowed,
        )

    def _result(self, wanted: Wanted, found: TopKResult) -> SearchResult:
        served, rows, options, query = self._served, self._rows, wanted.options, wanted.row
        self.stats.queries += 1
        self.stats.candidates += found.candidates
        classes = found.classes
        return SearchResult(
            served.catalog.product_ids(classes.tolist()),
            served.rule.final(found.scores, len(rows.repetitions)).tolist(),
            self._coverage,
            served.catalog.rows(classes) if options.include_attributes else None,
            self._explain(query, classes) if options.explain else None,
        )

    def _explain(self, query: int, classes: NDArray[np.int64]) -> list[list[RepetitionScore]]:
        repetitions = self._rows.repetitions
        buckets = self._served.top_k.table.rows(classes)[:, repetitions].astype(np.int64)
        values = self._rows.log_probabilities(query, buckets)
        numbers = repetitions.tolist()
        return [
            list(zip(numbers, row, scores, strict=True))
            for row, scores in zip(buckets.tolist(), values.tolist(), strict=True)
        ]


def merge_jobs(
    jobs: list[Job],
    features: SparseBatch,
    rows: dict[int, EncodedRows],
    encoding: int,
    coverage: Coverage,
) -> tuple[list[list[SearchResult]], MergeStats]:
    """The results of some jobs of one batch.

    Args:
        jobs: which; all of one bundle.
        features: the whole batch's queries.
        rows: the whole batch's rows, by repetition, at least one.
        encoding: how they are written.
        coverage: which repetitions these are.
    """
    served = jobs[0].served
    num_buckets = served.manifest.num_buckets
    scores = read_scores(rows, encoding, len(features), num_buckets, served.rule)
    merger = Merger(served, scores, coverage)
    known = np.diff(features.splits) > 0
    wanted = [
        Wanted(row, job.options, job.allowed)
        for job in jobs
        for row in range(job.first_row, job.first_row + len(job))
        if known[row]
    ]
    found = iter(merger.results(wanted))
    results = [
        [
            next(found) if known[row] else empty_result(coverage, job.options)
            for row in range(job.first_row, job.first_row + len(job))
        ]
        for job in jobs
    ]
    return results, merger.stats


def warm_up(served: ServedBundle, encoding: int) -> None:
    """Compile and touch what merging needs, so that the first query does not wait for it."""
    manifest = served.manifest
    flat = np.full((1, manifest.num_buckets), -np.log(manifest.num_buckets), np.float32)
    rows = dict.fromkeys(range(manifest.num_repetitions), encode_rows(flat, encoding))
    scores = read_scores(rows, encoding, 1, manifest.num_buckets, served.rule)
    coverage = Coverage(manifest.num_repetitions, manifest.num_repetitions, {})
    options = SearchOptions(k=min(10, manifest.num_classes), include_attributes=True, explain=True)
    Merger(served, scores, coverage).results([Wanted(0, options, None)])
    served.featurizer.batch(["warm up"])
