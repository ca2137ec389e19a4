"""Repetitions that are run together: one in a session of its own, or several joined in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mach.bundle import Bundle, repetition_file
from mach.errors import BundleError, ConfigError
from mach.inference.joined import OUTPUT, join_models
from mach.inference.session import (
    WARM_UP_SIZES,
    Provider,
    RepetitionSession,
    check_model,
    open_session,
    resolve_provider,
    warm_up,
)
from mach.inference.stacking import import_onnx

__all__ = ["RepetitionGroup", "load_groups"]

#: Above this, models stay apart: while they are joined they are in memory about four times.
_MOST_BYTES = 512 * 2**20
#: Entries of a run, padding included, times repetitions: beyond, intermediate results outgrow the
#: caches. No fewer than the second, whatever the repetitions.
_MOST_ENTRIES, _LEAST_ENTRIES = 8192, 256


class RepetitionGroup:
    """One repetition, or several joined, computed together; safe to call from several threads.

    Attributes:
        repetitions: which, in the order of the answers.
        num_buckets: B.
        provider: the execution provider in use, ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        repetitions: Sequence[int],
        session: Any,
        provider: Literal["cpu", "cuda"],
        num_buckets: int,
    ) -> None:
        """Take an ONNX Runtime session of a repetition's model, or of a joined one.

        :func:`load_groups` makes them.
        """
        self.repetitions = tuple(repetitions)
        self.num_buckets = num_buckets
        self.provider = provider
        self._session = session
        self._most_entries = max(_MOST_ENTRIES // len(self.repetitions), _LEAST_ENTRIES)

    def run_padded(
        self, indices: NDArray[np.int32], values: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Bucket log-probabilities, float32 of shape (n, R, B), from padded rows.

        See :meth:`mach.features.SparseBatch.padded`. A single repetition's rows run at once;
        those of several in parts that bound its memory.
        """
        count = len(self.repetitions)
        rows = max(1, self._most_entries // max(1, indices.shape[1]))
        if count == 1 or len(indices) <= rows:
            return self._run(indices, values)
        answers = np.empty((len(indices), count, self.num_buckets), np.float32)
        for at in range(0, len(indices), rows):
            part = slice(at, at + rows)
            answers[part] = self._run(indices[part], values[part])
        return answers

    def _run(self, indices: NDArray[np.int32], values: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(self.repetitions) == 1:
            answers: NDArray[np.float32] = self._session.run_padded(indices, values)
            return answers[:, None]
        wide = indices.shape[1] > self._most_entries
        (answers,) = self._session.run(
            [OUTPUT], {"indices": indices, "values": values}, _release_memory() if wide else None
        )
        return answers

    def warm_up(self) -> None:
        """Run on made-up rows so that the first real query finds memory and kernels ready.

        Raises:
            BundleError: if the model does not run or its answers are no log-probabilities.
        """
        if len(self.repetitions) == 1:
            self._session.warm_up()
            return
        name = f"the joined model of repetitions {', '.join(map(str, self.repetitions))}"
        for size in WARM_UP_SIZES:
            warm_up(name, self._run, size, (size, len(self.repetitions), self.num_buckets))


def _release_memory() -> Any:
    """Options of a run whose intermediate results are so large that they shall not be kept."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def load_groups(
    bundle: Bundle,
    repetitions: Sequence[int],
    *,
    provider: Provider = "cpu",
    threads: int = 1,
) -> list[RepetitionGroup]:
    """Load repetitions: in one session where that can be done, else in one each.

    Args:
        bundle: the bundle.
        repetitions: which, at least one.
        provider: where to run them; on a GPU they are never joined here.
        threads: of each run, on a CPU.

    Raises:
        InvalidInput: if the bundle has no such repetition.
        BundleError: if a model is corrupt or not one of this bundle's.
        ConfigError: if the provider asked for cannot be had.
    """
    buckets = bundle.manifest.num_buckets
    sizes = [bundle.model_size(repetition) for repetition in repetitions]
    model = None
    if len(sizes) > 1 and sum(sizes) <= _MOST_BYTES and resolve_provider(provider) == "cpu":
        model = _joined_model(bundle, repetitions)
    if model is not None:
        session, _ = open_session(model, "the joined model", "cpu", threads)
        return [RepetitionGroup(repetitions, session, "cpu", buckets)]
    groups = []
    for repetition in repetitions:
        one = RepetitionSession(bundle, repetition, provider=provider, threads=threads)
        groups.append(RepetitionGroup([repetition], one, one.provider, buckets))
    return groups


def _joined_model(bundle: Bundle, repetitions: Sequence[int]) -> bytes | None:
    try:
        onnx = import_onnx()
    except ConfigError:  # it is a speed-up, and no more
        return None
    models = []
    for repetition in repetitions:
        name = repetition_file(repetition)
        try:
            model = onnx.load_model_from_string(bundle.read_model(repetition))
        except BundleError:
            raise
        except Exception as error:  # protobuf's type depends on its implementation
            raise BundleError(f"{name} is not an ONNX model: {error}") from error
        check_model(
            name,
            {entry.name for entry in model.graph.input},
            {entry.name for entry in model.graph.output},
            {entry.key: entry.value for entry in model.metadata_props},
            bundle.manifest,
            repetition,
        )
        models.append(model)
    return join_models(models)
