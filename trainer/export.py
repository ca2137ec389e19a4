"""The ONNX file of one repetition, built node by node: small, pinned, nothing traced.

Inputs ``indices`` int32 and ``values`` float32, both (batch, width) with padding of value 0;
output ``log_probabilities`` float32 (batch, B). The graph::

    rows    = Gather(embedding, indices)            (batch, width, H)
    summed  = values (batch, 1, width) × rows       (batch, H)
    hidden  = max(summed + hidden_bias, 1e-30)
    logits  = hidden × output^T + output_bias        (batch, B)
    output  = LogSoftmax(logits)                     trained by the softmax loss
              LogSoftmax(LogSigmoid(logits))         trained one-vs-all

Weights are stored in one of four ways, everything else is float32:

- ``none``: float32.
- ``fp16``: both matrices float16. Gathered rows are widened after the gather, so the
  embedding stays half as large in memory; the output matrix is widened once, at load.
- ``int8``: symmetric, from -127 to 127, a scale per embedding row and per bucket. Embedding
  rows are widened after the gather. The output layer multiplies integers: hidden units,
  which are not negative, become unsigned 7-bit numbers with a scale per query. Per query, so
  that an answer does not depend on what else is in the batch (``DynamicQuantizeLinear`` takes
  one scale for all). 7 bits, because CPUs with AVX2 and without VNNI add pairs of products in
  saturating 16 bits: 2 × 127 × 127 fits, 2 × 255 × 127 does not.
- ``int4``: as ``int8``, but for the embedding: codes from -7 to 7, two a byte. Byte j of a row,
  signed, is ``code[j] + 16 code[j + H/2]``. Its upper part is the nearest multiple of 16, which
  two additions find: beside ``1.5 × 2**27`` a float32 has steps of 16. Sums are taken of bytes and
  of upper parts, and taken apart afterwards: a query sums dozens of rows, and one vector is
  cheaper to unpack than dozens::

      upper  = (bytes + 1.5 × 2**27) - 1.5 × 2**27                    (batch, width, H/2)
      summed = [values × bytes - values × upper, values × upper / 16] (batch, H)

Every node costs a microsecond or so beside what it computes, and a repetition of one query is
computed in some 60: so an operation that a weight can hold is no node.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mach.errors import ConfigError
from mach.hashing import UniversalHash
from trainer.loss import Loss

__all__ = ["Weights", "build_model", "check_size", "pack_rows", "quantize_rows", "write_model"]

OPSET = 17
_IR_VERSION = 8
_FORMAT = 1
#: Bytes of a weight of the embedding.
_ITEM_BYTES = {"none": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}
#: A protobuf message is below 2 GiB; some room is left for the rest of the graph.
_MAX_BYTES = 2**31 - 2**20


@dataclass(frozen=True, eq=False)
class Weights:
    """A trained classifier.

    Attributes:
        embedding: float32, shape (F, H).
        hidden_bias: float32, shape (H,).
        output: float32, shape (B, H).
        output_bias: float32, shape (B,).
    """

    embedding: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    output: NDArray[np.float32]
    output_bias: NDArray[np.float32]


def check_size(num_features: int, hidden: int, num_buckets: int, quantization: str) -> None:
    """Refuse, before any training, a model that no ONNX file can hold.

    Raises:
        ConfigError: if it would not fit in 2 GiB.
    """
    item = _ITEM_BYTES[quantization]
    size = num_features * (hidden * item + 8) + num_buckets * (hidden * max(item, 1.0) + 8)
    if size > _MAX_BYTES:
        raise ConfigError(
            f"a repetition of {num_features:,} features × {hidden} hidden units is "
            f"{size / 2**30:.1f} GiB, and an ONNX file holds less than 2: lower hidden or "
            "max_features, raise min_count, or choose quantization int8 or int4"
        )


def quantize_rows(
    matrix: NDArray[np.float32], bits: int = 8
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows as integers and their scales: ``matrix ≈ codes * scales[:, None]``.

    Codes are within ±127 for 8 bits, ±7 for 4.
    """
    largest = np.float32(2 ** (bits - 1) - 1)
    scales = np.maximum(np.abs(matrix).max(axis=1), np.float32(1e-30)) / largest
    codes = np.rint(matrix / scales[:, None]).astype(np.int8)
    return codes, scales


def pack_rows(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """4-bit codes within ±7, shape (n, H) with H even, as signed bytes, shape (n, H/2)."""
    half = codes.shape[1] // 2
    return codes[:, :half] + np.int8(16) * codes[:, half:]


class _Graph:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output


def _summed(graph: _Graph, weights: Weights, quantization: str) -> str:
    values = "values"
    if quantization in ("int8", "int4"):
        codes, scales = quantize_rows(weights.embedding, 8 if quantization == "int8" else 4)
        graph.constant("embedding", codes if quantization == "int8" else pack_rows(codes))
        graph.constant("embedding_scales", scales)
        gathered = graph.add("Gather", ["embedding_scales", "indices"], "scales")
        values = graph.add("Mul", [values, gathered], "scaled_values")
    elif quantization == "fp16":
        graph.constant("embedding", weights.embedding.astype(np.float16))
    else:
        graph.constant("embedding", weights.embedding)
    rows = graph.add("Gather", ["embedding", "indices"], "rows")
    if quantization == "int4":
        return _unpacked_sum(graph, values, rows)
    if quantization != "none":
        rows = graph.add("Cast", [rows], "wide_rows", to=TensorProto.FLOAT)
    axis = graph.constant("axis_1", np.array([1], np.int64))
    as_row = graph.add("Unsqueeze", [values, axis], "values_row")
    product = graph.add("MatMul", [as_row, rows], "product")
    return graph.add("Squeeze", [product, axis], "summed")


def _unpacked_sum(graph: _Graph, values: str, rows: str) -> str:
    axis = graph.constant("axis_1", np.array([1], np.int64))
    as_row = graph.add("Unsqueeze", [values, axis], "values_row")
    wide = graph.add("Cast", [rows], "wide_rows", to=TensorProto.FLOAT)
    shift = graph.constant("steps_of_16", np.array(1.5 * 2**27, np.float32))
    upper = graph.add("Sub", [graph.add("Add", [wide, shift], "shifted"), shift], "upper_rows")
    both = graph.add("MatMul", [as_row, wide], "both_sum")
    upper = graph.add("MatMul", [as_row, upper], "upper_sum")
    sixteenth = graph.constant("sixteenth", np.array(1 / 16, np.float32))
    parts = [
        graph.add("Sub", [both, upper], "lower"),
        graph.add("Mul", [upper, sixteenth], "upper"),
    ]
    return graph.add("Squeeze", [graph.add("Concat", parts, "product", axis=2), axis], "summed")


def _logits(graph: _Graph, weights: Weights, quantization: str) -> str:
    bias = graph.constant("output_bias", weights.output_bias)
    transposed = weights.output.T
    if quantization not in ("int8", "int4"):
        name = graph.constant(
            "output", transposed if quantization == "none" else transposed.astype(np.float16)
        )
        if quantization == "fp16":
            name = graph.add("Cast", [name], "wide_output", to=TensorProto.FLOAT)
        return graph.add("Add", [graph.add("MatMul", ["hidden", name], "scores"), bias], "logits")
    codes, scales = quantize_rows(weights.output)
    graph.constant("output", codes.T)
    graph.constant("output_scales", scales)
    largest = graph.add("ReduceMax", ["hidden"], "largest", axes=[1], keepdims=1)
    step = graph.constant("step", np.array(1 / 127, np.float32))
    scale = graph.add("Mul", [largest, step], "hidden_scale")
    rounded = graph.add("Round", [graph.add("Div", ["hidden", scale], "in_steps")], "rounded")
    narrow = graph.add("Cast", [rounded], "hidden_codes", to=TensorProto.UINT8)
    whole = graph.add("MatMulInteger", [narrow, "output"], "whole_scores")
    scores = graph.add("Cast", [whole], "code_scores", to=TensorProto.FLOAT)
    scores = graph.add("Mul", [scores, scale], "query_scores")
    scores = graph.add("Mul", [scores, "output_scales"], "scores")
    return graph.add("Add", [scores, bias], "logits")


def _log_sigmoid(graph: _Graph) -> str:
    """``z - log(1 + exp(z))`` with z at most 80: never overflows, of operators that are vectorised.

    ``Softplus`` is one node, but takes twice as long as these five. Above 80 the true value is 0
    but for 1e-35.
    """
    most = graph.constant("most", np.array(80, np.float32))
    one = graph.constant("one", np.array(1, np.float32))
    bounded = graph.add("Min", ["logits", most], "bounded")
    odds = graph.add("Add", [graph.add("Exp", [bounded], "odds"), one], "odds_1")
    return graph.add("Sub", [bounded, graph.add("Log", [odds], "log_odds_1")], "log_sigmoid")


def build_model(
    weights: Weights,
    hash: UniversalHash,
    repetition: int,
    quantization: str,
    loss: Loss = "softmax",
) -> onnx.ModelProto:
    """The model of one repetition.

    Args:
        weights: trained.
        hash: of all repetitions; the model's metadata tell this one's parameters.
        repetition: its number.
        quantization: ``none``, ``fp16``, ``int8`` or ``int4``.
        loss: what the weights were trained by, which tells how logits become probabilities.
    """
    graph = _Graph()
    summed = _summed(graph, weights, quantization)
    bias = graph.constant("hidden_bias", weights.hidden_bias)
    # Not quite zero, so that a row without any unit can be divided by its largest.
    tiny = graph.constant("tiny", np.array(1e-30, np.float32))
    graph.add("Max", [graph.add("Add", [summed, bias], "biased"), tiny], "hidden")
    scores = _logits(graph, weights, quantization)
    if loss == "one-vs-all":
        scores = _log_sigmoid(graph)
    graph.add("LogSoftmax", [scores], "log_probabilities", axis=-1)
    num_buckets = len(weights.output_bias)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            f"mach-repetition-{repetition}",
            [
                helper.make_tensor_value_info("indices", TensorProto.INT32, ["batch", "width"]),
                helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", "width"]),
            ],
            [
                helper.make_tensor_value_info(
                    "log_probabilities", TensorProto.FLOAT, ["batch", num_buckets]
                )
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="mach",
    )
    helper.set_model_props(
        model,
        {
            "mach.format": str(_FORMAT),
            "mach.repetition": str(repetition),
            "mach.num_buckets": str(num_buckets),
            "mach.num_features": str(len(weights.embedding)),
            "mach.num_classes": str(hash.num_classes),
            "mach.quantization": quantization,
            "mach.loss": loss,
            "mach.hash": json.dumps(hash.describe(repetition), sort_keys=True),
        },
    )
    return model


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Check the model and write it to ``path``, which must not matter until this returns."""
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
