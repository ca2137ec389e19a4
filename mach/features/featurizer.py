"""From slots to the model's features: what training keeps, and how queries are weighted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput
from mach.features.ngrams import FeatureSettings, slots_of
from mach.features.sparse import SparseBatch

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Featurizer", "SlotCounter"]

#: Texts counted together.
_COUNTED = 4096


class SlotCounter:
    """Counts in how many texts each slot occurs, in memory that does not grow with the log.

    It holds ``4 * 2**hash_bits`` bytes (64 MiB for 24 bits), however many texts it sees.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        self.settings = settings
        self.num_texts = 0
        self._counts = np.zeros(1 << settings.hash_bits, np.uint32)

    def add(self, texts: Iterable[str]) -> None:
        """Count the slots of each text once."""
        remaining = iter(texts)
        while chunk := [slots_of(text, self.settings) for text in islice(remaining, _COUNTED)]:
            self.num_texts += len(chunk)
            rows = np.repeat(np.arange(len(chunk)), [len(slots) for slots in chunk])
            slots = np.fromiter(chain.from_iterable(chunk), np.int64, len(rows))
            once = np.unique(rows << self.settings.hash_bits | slots)  # a slot once a text
            found, counts = np.unique(once & (len(self._counts) - 1), return_counts=True)
            self._counts[found] += counts.astype(np.uint32)

    def featurizer(
        self,
        *,
        min_count: int = 1,
        max_features: int | None = None,
        min_subword_count: int | None = None,
        max_subwords: int | None = None,
    ) -> Featurizer:
        """Keep the slots seen often enough, the most frequent first.

        The weight of a slot is its smoothed inverse document frequency,
        ``log((1 + n) / (1 + count)) + 1``.

        Args:
            min_count: texts in which an n-gram of words must occur.
            max_features: how many of these to keep at most.
            min_subword_count: the same for parts of words; ``min_count`` where not given.
            max_subwords: how many of these to keep at most.

        Raises:
            InvalidInput: if no slot qualifies.
        """
        half = self.settings.first_subword
        words = self._keep(0, half, min_count, max_features)
        least = min_count if min_subword_count is None else min_subword_count
        subwords = self._keep(half, 2 * half, least, max_subwords)
        slots = np.concatenate([words, subwords])
        if not len(slots):
            raise InvalidInput("min_count", f"no n-gram occurs in {min_count} or more queries")
        idf = np.log((1.0 + self.num_texts) / (1.0 + self._counts[slots])) + 1.0
        return Featurizer(self.settings, slots.astype(np.uint32), idf.astype(np.float32))

    def _keep(self, first: int, last: int, least: int, most: int | None) -> NDArray[np.int64]:
        counts = self._counts[first:last]
        kept: NDArray[np.int64] = np.flatnonzero(counts >= max(1, least))
        if most is not None and len(kept) > most:
            order = np.argsort(-counts[kept].astype(np.int64), kind="stable")
            kept = np.sort(kept[order[:most]])
        return kept + first


@dataclass(frozen=True, eq=False)
class Featurizer:
    """Turns query text into TF-IDF vectors over the kept slots.

    A slot seen n times in a text has the value ``(1 + log n) * weight``. The words of a text,
    and the parts of its words, are each scaled to Euclidean length 1, so that the many parts
    of long words do not drown the words.

    Attributes:
        settings: how text becomes slots.
        slots: uint32, shape (F,), strictly increasing; feature f is slot ``slots[f]``.
        weights: float32, shape (F,): inverse document frequencies.
    """

    settings: FeatureSettings
    slots: NDArray[np.uint32]
    weights: NDArray[np.float32]

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.slots)

    def batch(self, texts: Iterable[str]) -> SparseBatch:
        """Features of many texts, a row each, indices increasing within a row.

        A row is empty where no n-gram of its text is a known feature.
        """
        from mach.features._kernel import weigh  # noqa: PLC0415 - clients never need a compiler

        by_row = [slots_of(text, self.settings) for text in texts]
        lengths = np.array([len(slots) for slots in by_row], np.int64)
        found = np.array(list(chain.from_iterable(by_row)), np.uint32)
        return SparseBatch(
            *weigh(found, lengths, self.slots, self.weights, self.settings.first_subword)
        )

    def to_arrow(self) -> pa.Table:
        """Columns ``slot`` (uint32) and ``weight`` (float32), one row a feature."""
        import pyarrow as pa  # noqa: PLC0415 - only files need it, not the hot path

        return pa.table({"slot": self.slots, "weight": self.weights})

    @classmethod
    def from_arrow(cls, settings: FeatureSettings, table: pa.Table) -> Featurizer:
        """Read what :meth:`to_arrow` wrote.

        Raises:
            InvalidInput: if the columns are not as described or the slots not increasing.
        """
        if table.column_names != ["slot", "weight"] or table.num_rows == 0:
            raise InvalidInput("features", "needs the columns slot and weight, and a row")
        slots = table["slot"].to_numpy().astype(np.uint32, copy=False)
        weights = table["weight"].to_numpy().astype(np.float32, copy=False)
        if (np.diff(slots.astype(np.int64)) <= 0).any() or slots[-1] >> settings.hash_bits:
            raise InvalidInput("features", f"slots must increase and fit {settings.hash_bits} bits")
        if not np.isfinite(weights).all():
            raise InvalidInput("features", "weights must be finite numbers")
        return cls(settings, slots, weights)
