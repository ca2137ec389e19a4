"""Repetitions that run together on a GPU: loading, shapes, and one thread for the device.

ONNX Runtime captures CUDA graphs by thread, and no other thread may use the device meanwhile: one
thread of the process does all GPU work, and copying weights waits for captures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mach.bundle import Bundle, repetition_file
from mach.errors import BundleError, ConfigError, InvalidInput
from mach.features import SparseBatch
from mach.inference.device import OUTPUTS, DeviceProgram, output_width
from mach.inference.program import ENCODED, build_program
from mach.inference.session import RepetitionSession
from mach.inference.shapes import Part, ShapePlan
from mach.inference.stacking import Precision, RepetitionWeights, read_weights, stack, stack_sizes

__all__ = ["CudaSettings", "StackedRunner"]

_T = TypeVar("_T")
_MIB = 2**20
_MAX_ELEMENTS = 2**31 - 1  # the CUDA provider's Gather counts in 32 bits
_exclusive = threading.Lock()


@cache
def _gpu_thread() -> ThreadPoolExecutor:
    """The one thread that runs programs on GPUs in this process."""
    return ThreadPoolExecutor(1, thread_name_prefix="gpu")


def _on_gpu(function: Callable[..., _T], *arguments: Any) -> _T:
    return _gpu_thread().submit(function, *arguments).result()


@dataclass(frozen=True)
class CudaSettings:
    """How a GPU is used.

    Attributes:
        memory_mib: device memory for weights and work, in MiB; 0 for no limit. CUDA's own
            context, a few hundred MiB, and the captured graphs come on top.
        max_rows: most queries in a run; rounded up to a power of two. Every power of two up to
            it is a shape.
        widths: features of a query, padded: each is a shape; a query with more runs uncaptured.
        graphs: whether shapes are captured as CUDA graphs.
        precision: of the output layer, see ``program``.
    """

    memory_mib: int = 0
    max_rows: int = 64
    widths: tuple[int, ...] = (16, 32, 64, 128)
    graphs: bool = True
    precision: Precision = "fp16"


class StackedRunner:
    """Some repetitions of a bundle on one device; safe to call from threads.

    Attributes:
        repetitions: those loaded, increasing.
        provider: ``cuda``, or ``cpu`` in tests.
        num_buckets: B.
        stacks: how many repetitions run as one, stack by stack.
        plan: the shapes kept ready.
    """

    def __init__(
        self,
        repetitions: Sequence[int],
        layout: tuple[str, int, int, int, str],
        settings: CudaSettings,
        provider: Literal["cpu", "cuda"] = "cuda",
    ) -> None:
        """Prepare for repetitions of one layout (:attr:`RepetitionWeights.layout`); then `add`.

        Raises:
            ConfigError: if the settings do not fit the layout.
        """
        self.repetitions = tuple(sorted(repetitions))
        self.provider: Literal["cpu", "cuda"] = provider
        self.num_buckets = layout[3]
        self._quantization, features, hidden, _, self._loss = layout
        self._settings = settings
        self.stacks = stack_sizes(len(self.repetitions), features, hidden)
        self._per_entry = self.stacks[0] * hidden  # elements for each entry of a padded batch
        most = settings.max_rows * max(settings.widths, default=0)
        self.plan = ShapePlan.create(settings.max_rows, settings.widths, most)
        if self.plan.max_rows * self.plan.widths[-1] * self._per_entry > _MAX_ELEMENTS:
            raise ConfigError(
                f"cuda_rows and cuda_widths: {self.plan.max_rows} queries of "
                f"{self.plan.widths[-1]} features are too much for this model on a GPU"
            )
        self._device: DeviceProgram | None = None

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        repetitions: Sequence[int],
        settings: CudaSettings,
        provider: Literal["cpu", "cuda"] = "cuda",
    ) -> StackedRunner | None:
        """Stack repetitions of a bundle, capture all shapes, and hold the answers against a CPU's.

        None if the models are not of the kind that the trainer exports.

        Raises:
            InvalidInput: if the bundle has no such repetition.
            BundleError: if a model is corrupt, or the device's answers differ from the model's.
            ConfigError: if CUDA does not start, or memory or shapes do not suffice.
        """
        runner: StackedRunner | None = None
        models: list[RepetitionWeights] = []
        added = 0
        for repetition in sorted(repetitions):
            model = read_weights(bundle.read_model(repetition))
            if model is None:
                return None
            if runner is None:
                runner = cls(repetitions, model.layout, settings, provider)
            models.append(model)
            if model.layout != models[0].layout:
                raise BundleError(
                    f"{repetition_file(repetition)} is of another size, quantization or loss than "
                    "the repetitions before it"
                )
            if len(models) == runner.stacks[added]:
                runner.add(models)
                models, added = [], added + 1
        assert runner is not None
        runner.warm_up()
        for repetition in runner.repetitions:
            runner.compare(RepetitionSession(bundle, repetition, provider="cpu"))
        return runner

    def add(self, models: Sequence[RepetitionWeights]) -> None:
        """Copy the next stack's weights to the device; the first opens it.

        Raises:
            ConfigError: if CUDA does not start, or weights exceed the memory allowed.
        """
        weights = stack(models, self._settings.precision)
        if self._device is None:
            self._device = self._open(weights)
        with _exclusive:
            self._device.add(len(models), weights)

    def _open(self, weights: dict[str, NDArray[Any]]) -> DeviceProgram:
        size = sum(array.nbytes for array in weights.values())
        size = size * len(self.repetitions) // self.stacks[0]
        limit = self._settings.memory_mib * _MIB
        if 0 < limit <= size:
            raise ConfigError(
                f"cuda_memory_mib: the weights of {len(self.repetitions)} repetitions take "
                f"{size // _MIB + 1:,} MiB, and {self._settings.memory_mib:,} are allowed"
            )
        return DeviceProgram(
            build_program(weights, self._quantization, self._loss),
            max_repetitions=self.stacks[0],
            max_rows=self.plan.max_rows,
            num_buckets=self.num_buckets,
            provider=self.provider,
            graphs=self._settings.graphs,
            memory_limit=limit,
            weight_bytes=size,
        )

    def warm_up(self) -> None:
        """Run and capture every shape.

        Raises:
            ConfigError: if the device's memory does not suffice.
        """
        for num_rows, width in self.plan.shapes():
            part = Part(np.arange(num_rows), num_rows, width, True)
            indices, values = np.zeros((2, num_rows, width), np.int32)
            try:
                _on_gpu(self._capture, part, indices, values.astype(np.float32))
            except Exception as error:  # ONNX Runtime raises many types with no common base
                raise ConfigError(
                    f"the GPU cannot run {num_rows} queries of {width} features; if memory is "
                    f"short, hold fewer repetitions or lower cuda_rows: {error}"
                ) from error

    def _capture(self, part: Part, indices: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        assert self._device is not None
        with _exclusive:
            for _ in range(2):
                self._device.run(part, indices, values, [])

    def run(self, batch: SparseBatch) -> NDArray[np.float32]:
        """Bucket log-probabilities of every repetition, float32 of shape (R, n, B).

        Args:
            batch: at least one row, checked (:meth:`SparseBatch.check`).

        Raises:
            InvalidInput: if a row is too long for the device.
        """
        return self._run(batch, ["log_probabilities"])[0]

    def run_encoded(
        self, batch: SparseBatch
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """The same in 8 bits: codes (R, n, B), minimum (R, n) and step (R, n); see ``mach.wire``.

        Raises:
            InvalidInput: see :meth:`run`.
        """
        codes, minimum, step = self._run(batch, ENCODED)
        return codes, minimum[..., 0], step[..., 0]

    def _run(self, batch: SparseBatch, names: Sequence[str]) -> list[NDArray[Any]]:
        assert self._device is not None
        if max(1, batch.longest) * self._per_entry > _MAX_ELEMENTS:
            raise InvalidInput("features.splits", f"{batch.longest} features are too many here")
        shape = len(self.repetitions), len(batch)
        answers: list[NDArray[Any]] = [
            np.empty((*shape, output_width(name, self.num_buckets)), OUTPUTS[name])
            for name in names
        ]
        for part in self.plan.parts(batch):
            whole = len(part.rows) == len(batch) and part.captured
            indices, values = (batch if whole else batch.take(part.rows)).padded(part.width)
            missing = part.num_rows - len(indices)
            if missing:
                indices = np.pad(indices, ((0, missing), (0, 0)))
                values = np.pad(values, ((0, missing), (0, 0)))
            rows = slice(None) if whole else part.rows
            _on_gpu(self._device.run, part, indices, values, names, answers, rows)
        return answers

    def compare(self, session: RepetitionSession) -> None:
        """Refuse a device whose answers are not those of the verified model on a CPU.

        Raises:
            BundleError: naming the repetition.
        """
        session.warm_up((1,))
        rng = np.random.default_rng(session.repetition)
        batch = SparseBatch.from_rows(
            (rng.integers(0, session.num_features, n).astype(np.int32),
             np.full(n, n**-0.5, np.float32)) for n in (1, 4, 16)
        )  # fmt: skip
        expected = session.run(batch)
        found = self.run(batch)[self.repetitions.index(session.repetition)]
        # Half precision has 11 bits, and 8-bit models may round a hidden unit the other way.
        allowed = 0.05 + float(np.abs(expected).max()) * 2.0**-8
        difference = float(np.abs(found - expected).max())
        if not difference <= allowed:
            raise BundleError(
                f"{repetition_file(session.repetition)}: the GPU's log-probabilities differ from "
                f"the CPU's by {difference:.3g}, more than rounding explains ({allowed:.3g})"
            )
