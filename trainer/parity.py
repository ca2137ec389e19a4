"""Checking an exported model against the trained one, on real queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mach.errors import MachError
from mach.features import SparseBatch
from trainer.export import Weights, quantize_rows

__all__ = ["TOLERANCES", "Parity", "Tolerance", "check_parity", "open_session", "stored_weights"]


@dataclass(frozen=True)
class Tolerance:
    """How far an exported model may be from the trained one, in nats."""

    graph: float
    """Largest difference of any log-probability from PyTorch with the weights as stored, for a
    query whose log-probabilities lie within 25 of each other; in proportion where they spread
    wider, for an activation's rounding moves a logit in proportion to its size."""
    divergence: float
    """Mean over queries of KL(trained || exported), which is what storing weights costs."""


TOLERANCES = {
    "none": Tolerance(graph=1e-3, divergence=1e-5),
    "fp16": Tolerance(graph=1e-3, divergence=1e-4),
    # Activations are rounded as well, which moves improbable buckets the most.
    "int8": Tolerance(graph=0.5, divergence=1e-2),
    "int4": Tolerance(graph=0.5, divergence=5e-2),
}
#: Of a query's log-probabilities, see :attr:`Tolerance.graph`.
_SPREAD = 25.0


@dataclass(frozen=True)
class Parity:
    """What was found."""

    queries: int
    max_difference: float
    """Of log-probabilities, against the weights as stored; see :attr:`Tolerance.graph`."""
    mean_divergence: float
    """KL(trained || exported)."""


def open_session(model: bytes | str, threads: int = 1) -> ort.InferenceSession:
    """A CPU session with a fixed number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def stored_weights(weights: Weights, quantization: str) -> Weights:
    """What the weights are after they were stored and read."""
    if quantization == "none":
        return weights
    matrices = []
    for matrix, bits in (
        (weights.embedding, 4 if quantization == "int4" else 8),
        (weights.output, 8),
    ):
        if quantization == "fp16":
            matrices.append(matrix.astype(np.float16).astype(np.float32))
        else:
            codes, scales = quantize_rows(matrix, bits)
            matrices.append(codes.astype(np.float32) * scales[:, None])
    return Weights(matrices[0], weights.hidden_bias, matrices[1], weights.output_bias)


def check_parity(
    session: ort.InferenceSession,
    batch: SparseBatch,
    trained: NDArray[np.float32],
    stored: NDArray[np.float32],
    quantization: str,
) -> Parity:
    """Compare an exported model with PyTorch.

    Args:
        session: of the exported model.
        batch: n queries.
        trained: PyTorch's log-probabilities, shape (n, B).
        stored: the same from :func:`stored_weights`.
        quantization: whose tolerance applies.

    Raises:
        MachError: if a difference is above the tolerance.
    """
    indices, values = batch.padded()
    (exported,) = session.run(["log_probabilities"], {"indices": indices, "values": values})
    widening = np.maximum(1.0, (stored.max(axis=1) - stored.min(axis=1)) / _SPREAD)
    difference = float((np.abs(exported - stored).max(axis=1) / widening).max())
    divergence = float((np.exp(trained) * (trained - exported)).sum(axis=1).mean())
    tolerance = TOLERANCES[quantization]
    if not (difference <= tolerance.graph and divergence <= tolerance.divergence):  # NaN fails
        raise MachError(
            f"the exported model does not agree with the trained one: log-probabilities differ by "
            f"up to {difference:.2g} (allowed {tolerance.graph:g}), divergence {divergence:.2g} "
            f"(allowed {tolerance.divergence:g}) with quantization {quantization}"
        )
    return Parity(len(batch), difference, divergence)
