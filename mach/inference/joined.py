"""Several repetitions in one ONNX graph, for a CPU.

A run has a fixed cost, so has every node, and a session has buffers of its own: with a session a
repetition, each finds the caches full of another's. Where models are those that the trainer exports
(``trainer/export.py``), their weights are therefore put side by side into one graph that does with
all repetitions at once what each does with one. Only the output layers are multiplied one by one,
because ONNX Runtime prepares a constant matrix for its kernels, but no stack of them. Every number
is computed by the same operations in the same order, so that answers are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.inference.program import Graph
from mach.inference.stacking import import_onnx

__all__ = ["OUTPUT", "join_models"]

#: The name of the answer.
OUTPUT = "log_probabilities"

# The operators of an exported model, in order; what has others is not joined.
_INTEGER_LOGITS = "ReduceMax Mul Div Round Cast MatMulInteger Cast Mul Mul Add"
_SUM_AND_LOGITS = {
    "none": ("Gather Unsqueeze MatMul Squeeze", "MatMul Add"),
    "fp16": ("Gather Cast Unsqueeze MatMul Squeeze", "Cast MatMul Add"),
    "int8": ("Gather Mul Gather Cast Unsqueeze MatMul Squeeze", _INTEGER_LOGITS),
    "int4": (
        "Gather Mul Gather Unsqueeze Cast Add Sub MatMul MatMul Sub Mul Concat Squeeze",
        _INTEGER_LOGITS,
    ),
}
_PROBABILITIES = {"softmax": "LogSoftmax", "one-vs-all": "Min Exp Add Log Sub LogSoftmax"}


def join_models(models: Sequence[Any]) -> bytes | None:
    """One model with the inputs of each of ``models``; its answers have shape (n, R, B).

    Args:
        models: of type ``onnx.ModelProto``, at least one.

    Returns:
        Its bytes; None if the models are not what the trainer exports, or differ in kind.
    """
    onnx = import_onnx()
    properties = [{e.key: e.value for e in model.metadata_props} for model in models]
    kinds = {(p.get("mach.quantization", ""), p.get("mach.loss", "softmax")) for p in properties}
    opsets = {
        (model.ir_version, *sorted((e.domain, e.version) for e in model.opset_import))
        for model in models
    }
    if len(kinds) > 1 or len(opsets) > 1:
        return None
    ((quantization, loss),) = kinds
    if quantization not in _SUM_AND_LOGITS or loss not in _PROBABILITIES:
        return None
    sums, logits = _SUM_AND_LOGITS[quantization]
    operators = f"{sums} Add Max {logits} {_PROBABILITIES[loss]}".split()
    if any([node.op_type for node in model.graph.node] != operators for model in models):
        return None
    weights = [
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for model in models
    ]
    if len({tuple(sorted((name, a.shape) for name, a in w.items())) for w in weights}) > 1:
        return None
    joined = _Joined(weights, quantization)
    joined.add_probabilities(joined.add_logits(joined.add_hidden()), loss)
    return joined.model(models[0])


class _Joined:
    """Builds the graph; names are those of ``trainer/export.py``."""

    def __init__(self, weights: Sequence[Mapping[str, NDArray[Any]]], quantization: str) -> None:
        self._graph = Graph()
        self._weights = weights
        self._quantization = quantization
        self._has_scales = quantization in ("int8", "int4")

    def _stacked(self, name: str, axis: int = 0) -> str:
        arrays = [weights[name] for weights in self._weights]
        return self._graph.constant(name, np.stack(arrays, axis=axis))

    def _shared(self, name: str) -> str:
        return self._graph.constant(name, self._weights[0][name])

    def _integers(self, name: str, *values: int) -> str:
        return self._graph.constant(name, np.array(values, np.int64))

    def add_hidden(self) -> str:
        """Hidden units, shape (n, R, H). A feature's rows of all repetitions lie together."""
        graph, count = self._graph, len(self._weights)
        features, width = self._weights[0]["embedding"].shape
        last = self._integers("last", 2)
        if self._has_scales:
            scales = graph.add(
                "Gather", [self._stacked("embedding_scales", 1), "indices"], "scales"
            )
            values = graph.add("Unsqueeze", ["values", last], "values_column")
            values = graph.add("Mul", [values, scales], "scaled_values")
            values = graph.add("Transpose", [values], "values_by_repetition", perm=[0, 2, 1])
            values = graph.add("Unsqueeze", [values, last], "values_row")
        else:
            axes = self._integers("first_two", 1, 2)
            values = graph.add("Unsqueeze", ["values", axes], "values_row")
        embedding = np.stack([w["embedding"] for w in self._weights], axis=1)
        graph.constant("embedding", embedding.reshape(features, count * width))
        rows = graph.add("Gather", ["embedding", "indices"], "rows_by_feature")
        shape = self._integers("rows_shape", 0, 0, count, width)
        rows = graph.add("Reshape", [rows, shape], "rows_apart")
        rows = graph.add("Transpose", [rows], "rows", perm=[0, 2, 1, 3])
        if self._quantization != "none":
            rows = graph.add("Cast", [rows], "wide_rows", to=graph.types.FLOAT)
        if self._quantization == "int4":
            shift = self._shared("steps_of_16")
            upper = graph.add(
                "Sub", [graph.add("Add", [rows, shift], "shifted"), shift], "upper_rows"
            )
            both = graph.add("MatMul", [values, rows], "both_sum")
            upper = graph.add("MatMul", [values, upper], "upper_sum")
            lower = graph.add("Sub", [both, upper], "lower")
            upper = graph.add("Mul", [upper, self._shared("sixteenth")], "upper")
            product = graph.add("Concat", [lower, upper], "product", axis=3)
        else:
            product = graph.add("MatMul", [values, rows], "product")
        summed = graph.add("Squeeze", [product, last], "summed")
        biased = graph.add("Add", [summed, self._stacked("hidden_bias")], "biased")
        return graph.add("Max", [biased, self._shared("tiny")], "hidden")

    def add_logits(self, hidden: str) -> str:
        """Logits, shape (n, R, B)."""
        graph = self._graph
        if not self._has_scales:
            scores = self._scores("MatMul", hidden, np.float32)
            return graph.add("Add", [scores, self._stacked("output_bias")], "logits")
        largest = graph.add("ReduceMax", [hidden], "largest", axes=[2], keepdims=1)
        scale = graph.add("Mul", [largest, self._shared("step")], "hidden_scale")
        rounded = graph.add("Round", [graph.add("Div", [hidden, scale], "in_steps")], "rounded")
        codes = graph.add("Cast", [rounded], "hidden_codes", to=graph.types.UINT8)
        whole = self._scores("MatMulInteger", codes, np.int8)
        scores = graph.add("Cast", [whole], "code_scores", to=graph.types.FLOAT)
        scores = graph.add("Mul", [scores, scale], "query_scores")
        scores = graph.add("Mul", [scores, self._stacked("output_scales")], "scores_in_scale")
        return graph.add("Add", [scores, self._stacked("output_bias")], "logits")

    def _scores(self, operator: str, hidden: str, kind: Any) -> str:
        graph, count = self._graph, len(self._weights)
        units = [f"hidden_{at}" for at in range(count)]
        graph.split(hidden, units, axis=1)
        scores = []
        for at, weights in enumerate(self._weights):
            name = graph.constant(f"output_{at}", weights["output"].astype(kind))
            scores.append(graph.add(operator, [units[at], name], f"scores_{at}"))
        return graph.add("Concat", scores, "scores", axis=1)

    def add_probabilities(self, logits: str, loss: str) -> None:
        """The answer."""
        graph = self._graph
        if loss == "one-vs-all":
            bounded = graph.add("Min", [logits, self._shared("most")], "bounded")
            odds = graph.add("Exp", [bounded], "odds")
            odds = graph.add("Add", [odds, self._shared("one")], "odds_1")
            logits = graph.add("Sub", [bounded, graph.add("Log", [odds], "log_odds_1")], "sigmoid")
        graph.add("LogSoftmax", [logits], OUTPUT, axis=-1)

    def model(self, first: Any) -> bytes:
        """The bytes of it all, of the opset of ``first``."""
        graph = self._graph
        helper, types = graph.onnx.helper, graph.types
        value = helper.make_tensor_value_info
        buckets = len(self._weights[0]["output_bias"])
        joined = helper.make_model(
            helper.make_graph(
                graph.nodes,
                "mach-joined",
                [
                    value("indices", types.INT32, ["batch", "width"]),
                    value("values", types.FLOAT, ["batch", "width"]),
                ],
                [value(OUTPUT, types.FLOAT, ["batch", len(self._weights), buckets])],
                graph.constants,
            ),
            opset_imports=first.opset_import,
            ir_version=first.ir_version,
        )
        return bytes(joined.SerializeToString())
