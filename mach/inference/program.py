"""Several repetitions as one program for a GPU.

An exported model (``trainer/export.py``) is written for CPUs: 8-bit weights are multiplied by an
operator that the CUDA provider lacks for these types, 16-bit ones are widened when it is loaded,
and every repetition is a session of its own, whose kernels are too small to fill a GPU. Here the
weights are taken out of the verified models and stacked (``stacking``), and one small graph
computes all stacked repetitions at once. The weights are its inputs, bound where they lie on the
device: no ONNX file of 2 GiB limits them, and one session serves any number of stacks::

    at      = indices + offsets                          (S, n, w)   offsets: s × F
    rows    = float(Gather(embedding, at))               (S, n, w, H)
    hidden  = Relu((values × Gather(scales, at)) · rows + hidden_bias)
    scale   = max(hidden)                                (S, n, 1)
    scores  = float(half(hidden / scale) · output)       (S, n, B)
    logits  = scores × scale + output_bias
    log_probabilities = LogSoftmax(logits), or LogSoftmax(LogSigmoid(logits)) if one-vs-all

for S repetitions and n rows of width w, and then the answer in 8 bits just as ``mach/wire.py``
writes it, so that a quarter of the bytes leave the device. ``output`` is half precision, with the
scales of 8-bit weights multiplied in. 8-bit models round hidden units to 7 bits exactly as on a
CPU, so that both devices give the same answers; dividing by the largest unit keeps any query within
the range of half precision. 4-bit embeddings are unpacked to 8 bits when they are loaded. With
``fp32`` the output layer is single precision: twice the bytes, no tensor cores, and a CPU's answers
but for the order of sums.

Every product of matrices has as many on the left as on the right, which the CUDA provider
multiplies in one call that a CUDA graph can hold; there is no operator that runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.inference.stacking import import_onnx

__all__ = ["ENCODED", "Graph", "build_program"]

#: Outputs of the 8-bit answer: codes uint8 (S, n, B), minimum and step float32 (S, n, 1).
ENCODED = ("codes", "minimum", "step")

_OPSET = 17
_IR_VERSION = 8


class Graph:
    """Collects the nodes and constants of an ONNX graph."""

    def __init__(self) -> None:
        self.onnx = import_onnx()
        self.types = self.onnx.TensorProto
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant; returns its name, as all of these do."""
        self.constants.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def number(self, name: str, value: float) -> str:
        """Add a float32 of no dimension."""
        return self.constant(name, np.array(value, np.float32))

    def add(self, op: str, arguments: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node of one output."""
        node = self.onnx.helper.make_node(op, list(arguments), [output], output, **attributes)
        self.nodes.append(node)
        return output

    def split(self, argument: str, outputs: Sequence[str], *, axis: int) -> None:
        """Into as many equal parts as there are ``outputs``."""
        self.nodes.append(self.onnx.helper.make_node("Split", [argument], list(outputs), axis=axis))


def _hidden(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> str:
    first = graph.constant("axis_0", np.array([0], np.int64))
    third = graph.constant("axis_2", np.array([2], np.int64))
    at = graph.add("Add", [graph.add("Unsqueeze", ["indices", first], "one_at"), "offsets"], "at")
    rows = graph.add("Gather", ["embedding", at], "rows")
    if inputs["embedding"].dtype != np.float32:
        rows = graph.add("Cast", [rows], "wide_rows", to=graph.types.FLOAT)
    scales = graph.add("Gather", ["scales", at], "row_scales")
    values = graph.add("Unsqueeze", ["values", first], "one_values")
    values = graph.add("Mul", [values, scales], "scaled_values")
    as_row = graph.add("Unsqueeze", [values, third], "values_row")
    product = graph.add("MatMul", [as_row, rows], "product")
    summed = graph.add("Squeeze", [product, third], "summed")
    return graph.add("Relu", [graph.add("Add", [summed, "hidden_bias"], "biased")], "hidden")


def _log_sigmoid(graph: Graph, logits: str) -> str:
    """``min(z, 0) - log(1 + exp(-|z|))``: never overflows."""
    negative = graph.add("Neg", [graph.add("Abs", [logits], "size")], "negative_size")
    ratio = graph.add("Exp", [negative], "ratio")
    ratio = graph.add("Add", [ratio, graph.number("unit", 1)], "ratio_1")
    least = graph.add("Min", [logits, graph.number("zero", 0)], "at_most_0")
    return graph.add("Sub", [least, graph.add("Log", [ratio], "log_ratio")], "log_sigmoid")


def _answer(
    graph: Graph, hidden: str, inputs: Mapping[str, NDArray[Any]], quantization: str, loss: str
) -> str:
    largest = graph.add("ReduceMax", [hidden], "largest", axes=[-1], keepdims=1)
    scale = graph.add("Max", [largest, graph.number("tiny", 1e-30)], "positive")
    if quantization == "int8":
        scale = graph.add("Div", [scale, graph.number("levels", 127)], "hidden_step")
        codes = graph.add("Round", [graph.add("Div", [hidden, scale], "in_steps")], "hidden_codes")
        # By a power of two, which costs no precision.
        units = graph.add("Mul", [codes, graph.number("shrink", 1 / 128)], "units")
        scale = graph.add("Mul", [scale, graph.number("grow", 128)], "scale")
    else:
        units = graph.add("Div", [hidden, scale], "units")
    half = inputs["output"].dtype == np.float16
    if half:
        units = graph.add("Cast", [units], "half_units", to=graph.types.FLOAT16)
    scores = graph.add("MatMul", [units, "output"], "scores")
    if half:
        scores = graph.add("Cast", [scores], "wide_scores", to=graph.types.FLOAT)
    scores = graph.add("Mul", [scores, scale], "scaled_scores")
    logits = graph.add("Add", [scores, "output_bias"], "logits")
    if loss == "one-vs-all":
        logits = _log_sigmoid(graph, logits)
    return graph.add("LogSoftmax", [logits], "log_probabilities", axis=-1)


def _encode(graph: Graph, answer: str) -> None:
    """``mach.wire.encode_rows``, operation by operation."""
    low = graph.add("ReduceMin", [answer], "minimum", axes=[-1], keepdims=1)
    high = graph.add("ReduceMax", [answer], "maximum", axes=[-1], keepdims=1)
    spread = graph.add("Sub", [high, low], "range")
    step = graph.add("Div", [spread, graph.number("steps", 255)], "raw_step")
    smallest = graph.number("smallest_step", float(np.finfo(np.float32).tiny))
    step = graph.add("Max", [step, smallest], "step")
    inverse = graph.add("Div", [graph.number("one", 1), step], "inverse")
    above = graph.add("Sub", [answer, low], "above")
    codes = graph.add("Mul", [above, inverse], "above_steps")
    codes = graph.add("Add", [codes, graph.number("a_half", 0.5)], "rounded")
    graph.add("Cast", [codes], "codes", to=graph.types.UINT8)


def build_program(
    inputs: Mapping[str, NDArray[Any]], quantization: str, loss: str = "softmax"
) -> bytes:
    """The graph, as bytes of an ONNX model without weights.

    Args:
        inputs: of any stack (:func:`mach.inference.stacking.stack`); their types and sizes are
            the graph's.
        quantization: of the models, unpacked (:class:`RepetitionWeights`).
        loss: of the models.

    Raises:
        ConfigError: if the package ``onnx`` is missing.
    """
    graph = Graph()
    _encode(graph, _answer(graph, _hidden(graph, inputs), inputs, quantization, loss))
    helper, types, buckets = graph.onnx.helper, graph.types, inputs["output"].shape[2]
    value = helper.make_tensor_value_info
    weights = [
        # The first axis of each has the repetitions in it, however many.
        value(name, helper.np_dtype_to_tensor_dtype(a.dtype), [f"{name}_rows", *a.shape[1:]])
        for name, a in inputs.items()
    ]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "mach-stack",
            [
                value("indices", types.INT32, ["rows", "width"]),
                value("values", types.FLOAT, ["rows", "width"]),
                *weights,
            ],
            [
                value("log_probabilities", types.FLOAT, ["stack", "rows", buckets]),
                value("codes", types.UINT8, ["stack", "rows", buckets]),
                value("minimum", types.FLOAT, ["stack", "rows", 1]),
                value("step", types.FLOAT, ["stack", "rows", 1]),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="mach",
    )
    graph.onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
