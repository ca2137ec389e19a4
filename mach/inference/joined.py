"""Several repetitions in one ONNX Runtime session on a CPU.

A run has a fixed cost, and a session has buffers of its own: with a session a repetition, each
finds the caches full of another's. Exported models are therefore put side by side into one graph,
node for node, so that answers are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mach.bundle import Bundle, repetition_file
from mach.errors import BundleError, ConfigError
from mach.inference.session import RepetitionSession, check_model, open_session
from mach.inference.stacking import import_onnx

__all__ = ["RepetitionGroup", "join_models"]

#: Above this, models stay apart: while they are joined they are in memory about four times.
_MOST_BYTES = 512 * 2**20
_INPUTS = ("indices", "values")
_OUTPUT = "log_probabilities"


class RepetitionGroup:
    """Repetitions that are always computed together; safe to call from several threads.

    Attributes:
        repetitions: which, in the order of the answers.
    """

    def __init__(self, bundle: Bundle, repetitions: Sequence[int], *, threads: int = 1) -> None:
        """Load them: in one session where that can be done, else in one each.

        Raises:
            InvalidInput: if the bundle has no such repetition.
            BundleError: if a model is corrupt or not one of this bundle's.
        """
        self.repetitions = tuple(repetitions)
        self._num_buckets = bundle.manifest.num_buckets
        self._joined: Any = None
        self._apart: list[RepetitionSession] = []
        sizes = [bundle.model_size(repetition) for repetition in self.repetitions]
        model = None
        if len(sizes) > 1 and sum(sizes) <= _MOST_BYTES:
            model = _joined_model(bundle, self.repetitions)
        if model is None:
            self._apart = [RepetitionSession(bundle, r, threads=threads) for r in self.repetitions]
        else:
            self._joined, _ = open_session(model, "the joined model", "cpu", threads)

    def run_padded(
        self, indices: NDArray[np.int32], values: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Bucket log-probabilities, float32 of shape (n, R, B), from padded rows.

        See :meth:`mach.features.SparseBatch.padded`.
        """
        if self._joined is not None:
            (rows,) = self._joined.run([_OUTPUT], {"indices": indices, "values": values})
            return cast("NDArray[np.float32]", rows)
        answers = np.empty((len(indices), len(self._apart), self._num_buckets), np.float32)
        for at, session in enumerate(self._apart):
            answers[:, at] = session.run_padded(indices, values)
        return answers


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


def join_models(models: Sequence[Any]) -> bytes | None:
    """One model with the inputs of each of ``models``; its answers have shape (n, R, B).

    Args:
        models: of type ``onnx.ModelProto``, at least one; they are changed.

    Returns:
        Its bytes; None if the models have parts that the trainer never writes, or differ in the
        operators they ask for.
    """
    onnx = import_onnx()
    first = models[0]
    asked = sorted((entry.domain, entry.version) for entry in first.opset_import)
    nodes, constants, answers = [], [], []
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "axis")
    for at, model in enumerate(models):
        graph = model.graph
        opsets = sorted((entry.domain, entry.version) for entry in model.opset_import)
        has_more = len(model.functions) + len(graph.sparse_initializer)
        if opsets != asked or has_more or any(_has_graph(node) for node in graph.node):
            return None
        for node in graph.node:
            node.name = _renamed(node.name, at)
            node.input[:] = [_renamed(name, at) for name in node.input]
            node.output[:] = [_renamed(name, at) for name in node.output]
            nodes.append(node)
        for tensor in graph.initializer:
            tensor.name = _renamed(tensor.name, at)
            constants.append(tensor)
        answer = f"{at}/answer"
        nodes.append(onnx.helper.make_node("Unsqueeze", [_renamed(_OUTPUT, at), "axis"], [answer]))
        answers.append(answer)
    nodes.append(onnx.helper.make_node("Concat", answers, [_OUTPUT], axis=1))
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    joined = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "mach-joined",
            [
                value("indices", kinds.INT32, ["batch", "width"]),
                value("values", kinds.FLOAT, ["batch", "width"]),
            ],
            [value(_OUTPUT, kinds.FLOAT, ["batch", len(models), "buckets"])],
            [*constants, axis],
        ),
        opset_imports=first.opset_import,
        ir_version=first.ir_version,
    )
    return cast("bytes", joined.SerializeToString())


def _renamed(name: str, at: int) -> str:
    return name if not name or name in _INPUTS else f"{at}/{name}"


def _has_graph(node: Any) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
