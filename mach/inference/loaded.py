"""A bundle's classifiers in memory, ready to answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mach.bundle import Bundle
from mach.errors import ConfigError, InvalidInput, RepetitionNotFound
from mach.features import Featurizer, SparseBatch
from mach.inference.cuda import CudaSettings, StackedRunner
from mach.inference.grouping import RunCost, plan_groups
from mach.inference.repetition_group import RepetitionGroup, load_groups
from mach.inference.session import Provider, resolve_provider
from mach.v1 import shard_pb2
from mach.wire import EncodedRows, encode_rows

__all__ = ["LoadedBundle"]

_logger = logging.getLogger(__name__)

#: Entries of a padded run, which bounds its memory: times the hidden size times 4 bytes.
_MAX_ENTRIES = {"cpu": 8192, "cuda": 131_072}


class LoadedBundle:
    """Some repetitions of one bundle version; immutable, so that it can be swapped as a whole.

    Attributes:
        bundle: the bundle on disk.
        repetitions: those loaded, increasing.
        provider: the execution provider in use, ``cpu`` or ``cuda``.
        together: whether all repetitions are computed as one, on a GPU, whichever are asked for.
        cost: what a run of one group of repetitions costs, or of all ``together``, as measured on
            loading.
    """

    def __init__(
        self,
        bundle: Bundle,
        groups: Iterable[RepetitionGroup],
        stacked: StackedRunner | None = None,
    ) -> None:
        """Take groups of ``bundle``, warm them up and measure them; or a warm ``stacked``."""
        self.bundle = bundle
        self._groups = list(groups)
        self._stacked = stacked
        self.together = stacked is not None
        if stacked is not None:
            self.repetitions, self.provider = stacked.repetitions, stacked.provider
            self.cost = _measure_stacked(stacked)
            return
        self.repetitions = tuple(sorted(r for group in self._groups for r in group.repetitions))
        self.provider = self._groups[0].provider
        self._group_size = max(len(group.repetitions) for group in self._groups)
        self._max_entries = _MAX_ENTRIES[self.provider]
        for group in self._groups:
            group.warm_up()
        self.cost = _measure(self._groups[0])

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        repetitions: Sequence[int],
        *,
        provider: Provider = "cpu",
        threads: int = 1,
        workers: int = 1,
        cuda: CudaSettings | None = None,
    ) -> LoadedBundle:
        """Verify and load ``repetitions`` and the featurizer, warm up, measure.

        On a CPU repetitions are joined where they can be (:func:`load_groups`), into a group for
        each of the ``workers``. A group is computed as a whole, whichever of its repetitions are
        asked for.

        Args:
            bundle: a bundle.
            repetitions: some of its repetitions.
            provider: where to run them.
            threads: of each run on a CPU.
            workers: threads that compute at the same time, see :meth:`shares`.
            cuda: how a GPU is used.

        Raises:
            InvalidInput: if a repetition is not in the bundle, is named twice, or none is.
            BundleError: if a file differs from the manifest or is not what it should be.
            ConfigError: if the provider asked for cannot be had, or its settings do not fit.
        """
        if not repetitions:
            raise InvalidInput("repetition", "name at least one")
        if len(set(repetitions)) != len(repetitions):
            raise InvalidInput("repetition", f"{list(repetitions)} names one twice")
        bundle.featurizer  # noqa: B018 - verified and read now rather than by the first request
        if resolve_provider(provider) == "cuda":
            try:
                stacked = StackedRunner.load(bundle, repetitions, cuda or CudaSettings())
                if stacked is not None:
                    return cls(bundle, [], stacked)
            except ConfigError as error:
                if provider == "cuda":
                    raise
                _logger.warning("CUDA cannot be used, the CPU is: %s", error)
                provider = "cpu"
        parts = [repetitions[at::workers] for at in range(min(workers, len(repetitions)))]
        return cls(
            bundle,
            [
                group
                for part in parts
                for group in load_groups(bundle, part, provider=provider, threads=threads)
            ],
        )

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
            if repetition not in self.repetitions:
                raise RepetitionNotFound(
                    f"repetitions: {repetition} is not held here, only "
                    f"{', '.join(map(str, self.repetitions))}"
                )
        if len(set(repetitions)) != len(repetitions):
            raise InvalidInput("repetitions", "one is named twice")
        return tuple(repetitions)

    def shares(self, repetitions: Sequence[int], workers: int) -> list[tuple[int, ...]]:
        """Repetitions for each of several threads; what is computed together stays together.

        Args:
            repetitions: some of those loaded.
            workers: the most threads.
        """
        if self.together:
            return [tuple(repetitions)]
        shares: list[list[int]] = [[] for _ in range(workers)]
        asked = set(repetitions)
        groups = [group for group in self._groups if not asked.isdisjoint(group.repetitions)]
        for at, group in enumerate(groups):
            shares[at % workers] += [r for r in group.repetitions if r in asked]
        return [tuple(share) for share in shares if share]

    def seconds(self, rows: int, entries: int, num_repetitions: int) -> float:
        """About what a batch takes on one thread, without padding."""
        runs = 1 if self.together else -(-num_repetitions // self._group_size)
        return runs * self.cost.seconds(rows, entries)

    def marginal_seconds(self, rows: int, entries: int, num_repetitions: int) -> float:
        """About what these rows add to a batch that runs anyway."""
        return self.seconds(rows, entries, num_repetitions) - self.seconds(0, 0, num_repetitions)

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
            observe: called with each repetition and the seconds it took; its share of the time
                where several are computed as one.
        """
        if self._stacked is not None:
            start = time.perf_counter()
            every = self._stacked.run(batch)
            self._observe_shares(start, observe)
            return {r: every[self.repetitions.index(r)] for r in repetitions}
        groups = plan_groups(batch, self.cost, self._max_entries)
        if groups is None:
            whole = batch.padded()
        else:
            parts = [(rows, batch.padded_rows(rows)) for rows in groups]
        answers: dict[int, NDArray[np.float32]] = {}
        asked = set(repetitions)
        for group in self._groups:
            wanted = asked.intersection(group.repetitions)
            if not wanted:
                continue
            start = time.perf_counter()
            if groups is None:
                every = group.run_padded(*whole)
            else:
                shape = (len(batch), len(group.repetitions), self.num_buckets)
                every = np.empty(shape, np.float32)
                for rows, padded in parts:
                    every[rows] = group.run_padded(*padded)
            seconds = (time.perf_counter() - start) / len(wanted)
            for at, repetition in enumerate(group.repetitions):
                if repetition in wanted:
                    answers[repetition] = every[:, at]
                    if observe is not None:
                        observe(repetition, seconds)
        return {repetition: answers[repetition] for repetition in repetitions}

    def run_encoded(
        self,
        batch: SparseBatch,
        repetitions: Sequence[int],
        encoding: int,
        observe: Callable[[int, float], None] | None = None,
    ) -> dict[int, EncodedRows]:
        """:meth:`run`, written as ``encoding`` says; a GPU writes 8 bits itself.

        Raises:
            InvalidInput: if the encoding is unknown.
        """
        if self._stacked is None or encoding != shard_pb2.ENCODING_UINT8:
            answers = self.run(batch, repetitions, observe)
            return {r: encode_rows(rows, encoding) for r, rows in answers.items()}
        start = time.perf_counter()
        every = self._stacked.run_encoded(batch)
        self._observe_shares(start, observe)
        found = {}
        for repetition in repetitions:
            at = self.repetitions.index(repetition)
            found[repetition] = EncodedRows(*(array[at].tobytes() for array in every))
        return found

    def _observe_shares(self, start: float, observe: Callable[[int, float], None] | None) -> None:
        if observe is not None:
            share = (time.perf_counter() - start) / len(self.repetitions)
            for repetition in self.repetitions:
                observe(repetition, share)


def _measure(group: RepetitionGroup) -> RunCost:
    """Time three shapes of padding, which is what grouping saves."""

    def seconds(rows: int, width: int) -> float:
        indices, values = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.float32)
        return _median(lambda: group.run_padded(indices, values))

    one, many, wide = seconds(1, 8), seconds(16, 8), seconds(16, 256)
    entry = max(wide - many, 0.0) / (16 * 248)
    row = max(many - one - 15 * 8 * entry, 0.0) / 15
    return RunCost(max(one - row - 8 * entry, 1e-6), row, entry)


def _measure_stacked(stacked: StackedRunner) -> RunCost:
    """Time one row and the most rows; the width is one of few and costs little."""
    rows = stacked.plan.max_rows
    one = _median(lambda: stacked.run_encoded(_zeros(1)))
    many = _median(lambda: stacked.run_encoded(_zeros(rows)))
    row = max(many - one, 0.0) / max(1, rows - 1)
    return RunCost(max(one - row, 1e-6), row, 0.0)


def _zeros(rows: int) -> SparseBatch:
    return SparseBatch(
        np.zeros(rows, np.int32), np.zeros(rows, np.float32), np.arange(rows + 1, dtype=np.int32)
    )


def _median(run: Callable[[], object]) -> float:
    """Seconds of a call, of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]
