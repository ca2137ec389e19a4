"""Text to products in one process and one thread, with nothing between the parts."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from mach.bundle import Bundle
from mach.features import SparseBatch
from mach.inference import load_groups
from mach.merge import TopK, TopKResult

__all__ = ["LocalPipeline"]


class LocalPipeline:
    """Every repetition of a bundle and the merge, called in turn.

    This is what a fleet costs without the fleet: evaluation uses it, and benchmarks compare
    servers with it.
    """

    def __init__(
        self, bundle: Bundle, *, repetitions: Sequence[int] | None = None, threads: int = 1
    ) -> None:
        """Load ``repetitions`` (all where not given).

        Raises:
            BundleError: if the bundle is corrupt.
            InvalidInput: if it has no such repetition.
        """
        if repetitions is None:
            repetitions = range(bundle.manifest.num_repetitions)
        self.bundle = bundle
        self.repetitions = np.array(repetitions, np.int64)
        self.rule = bundle.merge_rule
        self._groups = load_groups(bundle, list(repetitions), threads=threads)
        self._topk = TopK(bundle.buckets)

    def first(self, num_repetitions: int) -> LocalPipeline:
        """A pipeline of the first repetitions of this one, on one thread.

        Models are loaded again, for they are computed together; the rest is shared.
        """
        if num_repetitions == len(self.repetitions):
            return self
        part = copy(self)
        part.repetitions = self.repetitions[:num_repetitions]
        part._groups = load_groups(self.bundle, part.repetitions.tolist())
        return part

    def log_probabilities(self, batch: SparseBatch) -> NDArray[np.float32]:
        """Bucket log-probabilities, float32, shape (n, R, B)."""
        padded = batch.padded()
        rows = [group.run_padded(*padded) for group in self._groups]
        return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)

    def merge(
        self, log_probabilities: NDArray[np.float32], k: int, num_repetitions: int | None = None
    ) -> list[TopKResult]:
        """The k best classes a query, from the first ``num_repetitions`` repetitions."""
        used = self.repetitions[:num_repetitions]
        scores = self.rule.transform(np.ascontiguousarray(log_probabilities[:, : len(used)]))
        return self._topk.search_batch(scores, k, repetitions=used)

    def search(self, texts: Sequence[str], k: int) -> list[NDArray[np.int64]]:
        """The k best classes a text, best first; none for a text without a known feature."""
        batch = self.bundle.featurizer.batch(texts)
        empty = np.diff(batch.splits) == 0
        found = self.merge(self.log_probabilities(batch), k)
        return [
            np.empty(0, np.int64) if nothing else result.classes
            for nothing, result in zip(empty, found, strict=True)
        ]
