"""From rows of bucket log-probabilities to products. Runs in worker threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aggregator.coverage import Coverage
from aggregator.requests import SearchOptions
from aggregator.results import RepetitionScore, SearchResult
from aggregator.scores import Scores, read_scores
from aggregator.served import ServedBundle
from mach.features import SparseBatch
from mach.merge import ProductSet
from mach.wire import EncodedRows, encode_rows

if TYPE_CHECKING:
    from aggregator.fanout import Job

__all__ = ["MergeStats", "Merger", "empty_result", "merge_jobs", "warm_up"]


@dataclass(slots=True)
class MergeStats:
    """What merging a batch took, added up.

    Attributes:
        queries: queries merged.
        candidates: products looked at.
        unproven: answers that may not be the exact top k.
    """

    queries: int = 0
    candidates: int = 0
    unproven: int = 0


def empty_result(coverage: Coverage, options: SearchOptions) -> SearchResult:
    """The answer to a query of which nothing is known."""
    return SearchResult(
        [],
        [],
        coverage,
        [] if options.include_attributes else None,
        [] if options.explain else None,
    )


class Merger:
    """Merges the answers to one batch, query by query."""

    def __init__(self, served: ServedBundle, scores: Scores, coverage: Coverage) -> None:
        self.stats = MergeStats()
        self._served = served
        self._rows = scores
        self._coverage = coverage
        num_repetitions = served.manifest.num_repetitions
        self._all = len(scores.repetitions) == num_repetitions
        shape = (len(scores.repetitions), served.manifest.num_buckets)
        self._buffer = np.empty(shape, np.float32)

    def result(
        self, query: int, options: SearchOptions, allowed: ProductSet | None
    ) -> SearchResult:
        """Products for the query in row ``query`` of the batch."""
        served, rows = self._served, self._rows
        found = served.top_k.search(
            rows.scores(query, self._buffer),
            options.k,
            repetitions=None if self._all else rows.repetitions,
            allowed=allowed,
        )
        self.stats.queries += 1
        self.stats.candidates += found.candidates
        self.stats.unproven += not found.proven
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
    results = [
        [
            merger.result(row, job.options, job.allowed)
            if known[row]
            else empty_result(coverage, job.options)
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
    Merger(served, scores, coverage).result(0, options, None)
    served.featurizer.batch(["warm up"])
