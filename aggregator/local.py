"""Searching a bundle in this process, with the code of the fleet and no servers."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from aggregator.coverage import Coverage
from aggregator.featurizing import featurize
from aggregator.merging import Merger, Wanted, empty_result
from aggregator.policy import Limits
from aggregator.requests import Query, SearchOptions, check_row, check_text
from aggregator.results import SearchAnswer, SearchResult, Timings
from aggregator.scores import PlainScores
from aggregator.served import ServedBundle
from mach.bundle import Bundle
from mach.errors import InvalidInput, VersionNotFound
from mach.features import SparseBatch
from mach.inference import LoadedBundle, Provider

__all__ = ["LocalSearcher"]


class LocalSearcher:
    """All repetitions of a bundle, or some, and the aggregator's merge, called in turn.

    Checks what it is asked, ranks and explains as a fleet does, on the caller's thread.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        repetitions: Sequence[int] | None = None,
        provider: Provider = "cpu",
        threads: int = 1,
        limits: Limits | None = None,
    ) -> None:
        """Load what answers.

        Args:
            bundle: the bundle.
            repetitions: which to use; all where not given.
            provider: where inference runs.
            threads: of ONNX Runtime.
            limits: what may be asked for.

        Raises:
            BundleError: if the bundle is damaged.
            InvalidInput: if it has no such repetition.
            ConfigError: if the provider cannot be had.
        """
        self.limits = limits or Limits()
        self.served = ServedBundle(bundle)
        total = bundle.manifest.num_repetitions
        wanted = range(total) if repetitions is None else repetitions
        self._loaded = LoadedBundle.load(bundle, sorted(wanted), provider=provider, threads=threads)
        self._coverage = Coverage(len(self._loaded.repetitions), total, {})

    def search(
        self, queries: Sequence[Query], options: SearchOptions | None = None
    ) -> SearchAnswer:
        """The best products for each query, text or one row of features.

        Raises:
            InvalidInput: naming the argument that is out of range.
            VersionNotFound: if the options ask for another bundle version.
        """
        options = options or SearchOptions()
        served = self.served
        if options.bundle_version not in ("", served.version):
            raise VersionNotFound(f"bundle version {options.bundle_version} is not loaded")
        options.check(self.limits, served.manifest.num_repetitions)
        self._check(queries)
        allowed = served.restrictions.product_set(options) if options.restricts else None
        started = perf_counter()
        features = featurize(served.featurizer, list(queries))
        featurized = perf_counter()
        known = np.diff(features.splits) > 0
        merged = inferred = featurized
        results: list[SearchResult] = [empty_result(self._coverage, options)] * len(queries)
        if known.any():
            rows = self._loaded.run(features, self._loaded.repetitions)
            inferred = perf_counter()
            merger = Merger(served, PlainScores(rows, served.rule), self._coverage)
            asked = [Wanted(row, options, allowed) for row in np.flatnonzero(known).tolist()]
            for one, result in zip(asked, merger.results(asked), strict=True):
                results[one.row] = result
            merged = perf_counter()
        timings = Timings(
            featurize=featurized - started, shards=inferred - featurized, merge=merged - inferred
        )
        return SearchAnswer(results, served.version, timings)

    def _check(self, queries: Sequence[Query]) -> None:
        if not 1 <= len(queries) <= self.limits.max_batch_size:
            raise InvalidInput(
                "queries", f"must be 1 to {self.limits.max_batch_size}, got {len(queries)}"
            )
        for number, query in enumerate(queries):
            field = "query" if len(queries) == 1 else f"queries[{number}]"
            if isinstance(query, SparseBatch):
                query.check(self.served.manifest.num_features)
                check_row(f"{field}.features", query, self.limits)
            else:
                check_text(f"{field}.text", query, self.limits)
