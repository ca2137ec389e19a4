"""A bundle's classifiers in memory, ready to answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mach.bundle import Bundle
from mach.errors import InvalidInput, RepetitionNotFound
from mach.features import Featurizer, SparseBatch
from mach.inference.grouping import RunCost, plan_groups
from mach.inference.session import Provider, RepetitionSession

__all__ = ["LoadedBundle"]

#: Entries of a padded run, which bounds its memory: times the hidden size times 4 bytes.
_MAX_ENTRIES = {"cpu": 8192, "cuda": 131_072}


class LoadedBundle:
    """Some repetitions of one bundle version; immutable, so that it can be swapped as a whole.

    Attributes:
        bundle: the bundle on disk.
        repetitions: those loaded, increasing.
        provider: the execution provider in use, ``cpu`` or ``cuda``.
        cost: what a run of one repetition costs, as measured on loading.
    """

    def __init__(self, bundle: Bundle, sessions: Iterable[RepetitionSession]) -> None:
        """Take sessions of ``bundle``, warm them up and measure them."""
        self.bundle = bundle
        self._sessions = {session.repetition: session for session in sessions}
        self.repetitions = tuple(sorted(self._sessions))
        self.provider = self._sessions[self.repetitions[0]].provider
        self._max_entries = _MAX_ENTRIES[self.provider]
        for session in self._sessions.values():
            session.warm_up()
        self.cost = _measure(self._sessions[self.repetitions[0]])

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        repetitions: Sequence[int],
        *,
        provider: Provider = "cpu",
        threads: int = 1,
    ) -> LoadedBundle:
        """Verify and load ``repetitions`` and the featurizer, warm up, measure.

        Raises:
            InvalidInput: if a repetition is not in the bundle, is named twice, or none is.
            BundleError: if a file differs from the manifest or is not what it should be.
            ConfigError: if the provider asked for cannot be had.
        """
        if not repetitions:
            raise InvalidInput("repetition", "name at least one")
        if len(set(repetitions)) != len(repetitions):
            raise InvalidInput("repetition", f"{list(repetitions)} names one twice")
        sessions = [
            RepetitionSession(bundle, repetition, provider=provider, threads=threads)
            for repetition in repetitions
        ]
        bundle.featurizer  # noqa: B018 - verified and read now rather than by the first request
        return cls(bundle, sessions)

    @property
    def version(self) -> str:
        """The bundle version."""
        return self.bundle.version

    @property
    def num_buckets(self) -> int:
        """B."""
        return self.bundle.manifest.num_buckets

    @property
    def num_features(self) -> int:
        """F."""
        return self.bundle.manifest.num_features

    @property
    def featurizer(self) -> Featurizer:
        """Text to features."""
        return self.bundle.featurizer

    def select(self, repetitions: Sequence[int]) -> tuple[int, ...]:
        """``repetitions`` if they are loaded, all that are where none is named.

        Raises:
            InvalidInput: if one is named twice.
            RepetitionNotFound: if one is not loaded.
        """
        if not repetitions:
            return self.repetitions
        for repetition in repetitions:
            if repetition not in self._sessions:
                raise RepetitionNotFound(
                    f"repetitions: {repetition} is not held here, only "
                    f"{', '.join(map(str, self.repetitions))}"
                )
        if len(set(repetitions)) != len(repetitions):
            raise InvalidInput("repetitions", "one is named twice")
        return tuple(repetitions)

    def seconds(self, rows: int, entries: int, num_repetitions: int) -> float:
        """About what a batch takes on one thread, without padding."""
        return num_repetitions * self.cost.seconds(rows, entries)

    def marginal_seconds(self, rows: int, entries: int, num_repetitions: int) -> float:
        """About what these rows add to a batch that runs anyway."""
        return num_repetitions * (self.cost.seconds(rows, entries) - self.cost.fixed)

    def run(
        self,
        batch: SparseBatch,
        repetitions: Sequence[int],
        observe: Callable[[int, float], None] | None = None,
    ) -> dict[int, NDArray[np.float32]]:
        """Bucket log-probabilities, float32 of shape (n, B) a repetition.

        Safe to call from several threads. Memory is bounded whatever the rows' lengths.

        Args:
            batch: at least one row, checked (:meth:`SparseBatch.check`).
            repetitions: some of those loaded.
            observe: called with each repetition and the seconds it took.
        """
        groups = plan_groups(batch, self.cost, self._max_entries)
        if groups is None:
            whole = batch.padded()
        else:
            parts = [(rows, batch.take(rows).padded()) for rows in groups]
        answers = {}
        for repetition in repetitions:
            start = time.perf_counter()
            session = self._sessions[repetition]
            if groups is None:
                answer = session.run_padded(*whole)
            else:
                answer = np.empty((len(batch), self.num_buckets), np.float32)
                for rows, padded in parts:
                    answer[rows] = session.run_padded(*padded)
            answers[repetition] = answer
            if observe is not None:
                observe(repetition, time.perf_counter() - start)
        return answers


def _measure(session: RepetitionSession) -> RunCost:
    """Time three shapes of padding, which is what grouping saves."""

    def seconds(rows: int, width: int) -> float:
        indices, values = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.float32)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            session.run_padded(indices, values)
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    one, many, wide = seconds(1, 8), seconds(16, 8), seconds(16, 256)
    entry = max(wide - many, 0.0) / (16 * 248)
    row = max(many - one - 15 * 8 * entry, 0.0) / 15
    return RunCost(max(one - row - 8 * entry, 1e-6), row, entry)
