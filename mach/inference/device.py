"""The program of ``program`` on a device: weights that stay, fixed buffers, captured graphs.

Inputs, answers and everything between have fixed addresses on the device, so that each shape is
captured as a CUDA graph once and replayed with one launch. Answers are copied to the host alone
as they were asked for. All of it runs on the CPU provider too, which is how it is tested where
there is no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mach.inference.libraries import Readback, cuda_runtime
from mach.inference.session import open_session
from mach.inference.shapes import Part

__all__ = ["OUTPUTS", "DeviceProgram", "output_width"]

#: The program's outputs and their types.
OUTPUTS: dict[str, Any] = {
    "log_probabilities": np.float32, "codes": np.uint8, "minimum": np.float32, "step": np.float32,
}  # fmt: skip
_UNCAPTURED = -1  # ONNX Runtime's mark for a run that is not captured


def output_width(name: str, num_buckets: int) -> int:
    """Length of an output's last axis."""
    return num_buckets if name in ("log_probabilities", "codes") else 1


@dataclass(eq=False)
class _Bound:
    """The buffers of one stack at one shape."""

    binding: Any
    outputs: dict[str, Any]
    options: Any


class DeviceProgram:
    """One session, and any number of stacks of weights for it. Not safe to call from two threads.

    Args:
        program: the graph (:func:`mach.inference.program.build_program`).
        max_repetitions: of the largest stack.
        max_rows: of the largest run.
        num_buckets: B.
        provider: ``cuda``, or ``cpu`` in tests.
        graphs: whether to capture CUDA graphs.
        memory_limit: bytes of device memory, weights included; 0 for no limit.
        weight_bytes: of all stacks that will be added.

    Raises:
        ConfigError: if CUDA does not start.
    """

    def __init__(
        self,
        program: bytes,
        *,
        max_repetitions: int,
        max_rows: int,
        num_buckets: int,
        provider: Literal["cpu", "cuda"],
        graphs: bool,
        memory_limit: int,
        weight_bytes: int,
    ) -> None:
        options = {
            "arena_extend_strategy": "kSameAsRequested",  # one that doubles wastes half a GPU
            "enable_cuda_graph": str(int(graphs)),
            "use_tf32": "0",  # features are summed in full, so that rounding falls as on a CPU
        }
        # Weights lie in the session's own memory where this ONNX Runtime offers that.
        own = hasattr(ort.InferenceSession, "create_ortvalue_from_shape_and_type")
        if memory_limit:
            options["gpu_mem_limit"] = str(memory_limit - (0 if own else weight_bytes))
        self._session, _ = open_session(program, "the GPU's program", provider, 1, options)
        self._provider = provider
        self._graphs = graphs
        self._num_buckets = num_buckets
        self._weights: list[tuple[int, dict[str, Any]]] = []
        self._inputs: dict[tuple[int, int], dict[str, Any]] = {}
        self._bound: dict[tuple[int, int, int], _Bound] = {}
        self._readback = Readback(cuda_runtime() if provider == "cuda" else None)
        rows = max_repetitions * max_rows
        self._buffers, self._host = {}, {}
        for name, dtype in OUTPUTS.items():
            size = rows * output_width(name, num_buckets)
            self._buffers[name] = self._empty((size,), dtype)
            self._host[name] = self._readback.buffer(size * np.dtype(dtype).itemsize)

    def _empty(self, shape: Sequence[int], dtype: Any) -> Any:
        make = getattr(self._session, "create_ortvalue_from_shape_and_type", None)
        make = make or ort.OrtValue.ortvalue_from_shape_and_type
        return make(list(shape), dtype, self._provider, 0)

    def add(self, repetitions: int, weights: Mapping[str, NDArray[Any]]) -> None:
        """Copy a stack's weights (:func:`mach.inference.stacking.stack`) to the device."""
        values = {}
        for name, array in weights.items():
            values[name] = self._empty(array.shape, array.dtype.type)
            values[name].update_inplace(np.ascontiguousarray(array))
        self._weights.append((repetitions, values))

    def run(
        self,
        part: Part,
        indices: NDArray[np.int32],
        values: NDArray[np.float32],
        names: Sequence[str],
        answers: Sequence[NDArray[Any]] = (),
        rows: slice | NDArray[np.int64] = slice(None),
    ) -> None:
        """Run one part on every stack.

        Args:
            part: its shape is that of ``indices`` and ``values``.
            indices: padded features.
            values: padded values.
            names: the outputs to copy.
            answers: where to, each of shape (R, n, width of the output).
            rows: which of their n rows the part's are.
        """
        shape = part.num_rows, part.width
        inputs = self._inputs.get(shape)
        if inputs is None:
            inputs = {
                "indices": self._empty(shape, np.int32), "values": self._empty(shape, np.float32)
            }  # fmt: skip
            if part.captured:
                self._inputs[shape] = inputs
        inputs["indices"].update_inplace(np.ascontiguousarray(indices))
        inputs["values"].update_inplace(np.ascontiguousarray(values))
        start = 0
        for at, (repetitions, _) in enumerate(self._weights):
            bound = self._bound.get((at, *shape))
            if bound is None:
                bound = self._bind(at, part, inputs)
                if part.captured:
                    self._bound[at, *shape] = bound
            self._session.run_with_iobinding(bound.binding, bound.options)
            stop = start + repetitions
            for name, answer in zip(names, answers, strict=False):
                answer[start:stop, rows] = self._readback.read(
                    bound.outputs[name], len(part.rows), self._host[name]
                )
            start = stop

    def _bind(self, at: int, part: Part, inputs: dict[str, Any]) -> _Bound:
        binding = self._session.io_binding()
        repetitions, weights = self._weights[at]
        for name, value in (weights | inputs).items():
            binding.bind_ortvalue_input(name, value)
        for name, buffer in self._buffers.items():
            shape = (repetitions, part.num_rows, output_width(name, self._num_buckets))
            binding.bind_output(name, self._provider, 0, OUTPUTS[name], shape, buffer.data_ptr())
        options = ort.RunOptions()
        if self._graphs:
            number = len(self._bound) + 1 if part.captured else _UNCAPTURED
            options.add_run_config_entry("gpu_graph_id", str(number))
        outputs = dict(zip(self._buffers, binding.get_outputs(), strict=True))
        return _Bound(binding, outputs, options)
