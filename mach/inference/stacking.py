"""The weights of several exported models, stacked for a GPU; ``program`` tells what for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mach.errors import BundleError, ConfigError
from mach.inference.session import check_loss

__all__ = [
    "Precision",
    "RepetitionWeights",
    "import_onnx",
    "read_weights",
    "stack",
    "stack_sizes",
    "unpack_rows",
]

Precision = Literal["fp16", "fp32"]

#: The CUDA provider's Gather counts elements in 32 bits.
_MAX_ELEMENTS = 2**31 - 1
_NAMES = {
    "none": {"embedding", "hidden_bias", "output", "output_bias"},
    "fp16": {"embedding", "hidden_bias", "output", "output_bias"},
    "int8": {"embedding", "embedding_scales", "hidden_bias", "output", "output_scales",
             "output_bias"},
}  # fmt: skip
_NAMES["int4"] = _NAMES["int8"]


@dataclass(frozen=True, eq=False)
class RepetitionWeights:
    """The weights of one exported model, as stored, but for 4-bit embeddings: see ``unpack_rows``.

    Attributes:
        quantization: ``none``, ``fp16`` or ``int8``; a model of ``int4`` is ``int8`` once unpacked.
        arrays: by the names of the exported graph; ``embedding`` (F, H), ``output`` (H, B).
        loss: ``softmax`` or ``one-vs-all``, which tells how logits become probabilities.
    """

    quantization: str
    arrays: Mapping[str, NDArray[Any]]
    loss: str = "softmax"

    @property
    def layout(self) -> tuple[str, int, int, int, str]:
        """Quantization, F, H, B and the loss: what repetitions must share to be stacked."""
        (features, hidden), buckets = (
            self.arrays["embedding"].shape,
            len(self.arrays["output_bias"]),
        )
        return self.quantization, features, hidden, buckets, self.loss


def unpack_rows(packed: NDArray[np.int8]) -> NDArray[np.int8]:
    """4-bit codes within ±7, int8 of shape (F, H), from signed bytes of shape (F, H/2).

    Byte j of a row is ``code[j] + 16 * code[j + H/2]``.
    """
    rows, half = packed.shape
    codes = np.empty((rows, 2 * half), np.int8)
    upper = codes[:, half:]
    # Rounded to the nearest: adding 8 makes the remainder 1 to 15.
    np.right_shift(packed + np.int8(8), np.int8(4), out=upper)
    np.subtract(packed, upper * np.int8(16), out=codes[:, :half])
    return codes


def import_onnx() -> Any:
    """The package ``onnx``, which is needed where models are taken apart.

    Raises:
        ConfigError: if it is missing.
    """
    try:
        import onnx  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "provider: cuda needs the package onnx, which is missing; install the extra 'gpu'"
        ) from error
    return onnx


def read_weights(model: bytes) -> RepetitionWeights | None:
    """The weights of a verified model; None if it is not of the kind that the trainer exports.

    Raises:
        ConfigError: if the package ``onnx`` is missing.
        BundleError: if the bytes are no ONNX model, or its quantization or loss is unknown.
    """
    onnx = import_onnx()
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf's type depends on its implementation
        raise BundleError(f"not an ONNX model: {error}") from error
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    quantization = properties.get("mach.quantization", "")
    if quantization and quantization not in _NAMES:
        raise BundleError(
            f"a model says mach.quantization={quantization}, expected one of {', '.join(_NAMES)}"
        )
    loss = check_loss("a model", properties)
    wanted = _NAMES.get(quantization)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    if wanted is None or not wanted <= tensors.keys():
        return None
    arrays = {name: onnx.numpy_helper.to_array(tensors[name]) for name in wanted}
    if quantization == "int4":
        packed = arrays["embedding"]
        if packed.ndim != 2 or packed.dtype != np.int8:
            return None
        quantization, arrays["embedding"] = "int8", unpack_rows(packed)
    embedding, output = arrays["embedding"], arrays["output"]
    if embedding.ndim != 2 or output.shape != (embedding.shape[1], len(arrays["output_bias"])):
        return None
    return RepetitionWeights(quantization, arrays, loss)


def stack_sizes(repetitions: int, num_features: int, hidden: int) -> list[int]:
    """How many repetitions go into each stack: as few stacks as can be, as equal as can be.

    Raises:
        ConfigError: if a single embedding is too large.
    """
    most = _MAX_ELEMENTS // (num_features * hidden)
    if not most:
        raise ConfigError(
            f"an embedding of {num_features:,} x {hidden:,} is too large for the CUDA provider"
        )
    stacks = -(-repetitions // most)
    return [repetitions // stacks + (i < repetitions % stacks) for i in range(stacks)]


def stack(models: Sequence[RepetitionWeights], precision: Precision) -> dict[str, NDArray[Any]]:
    """Inputs of the program but for ``indices`` and ``values``, C-contiguous.

    Args:
        models: of one layout, at least one.
        precision: of the output layer.

    Raises:
        ConfigError: if an output could exceed the range of half precision.
    """
    quantization, features, hidden, buckets, _ = models[0].layout
    count = len(models)
    embedding = np.empty((count * features, hidden), models[0].arrays["embedding"].dtype)
    scales = np.ones(count * features, np.float32)
    kind = np.float16 if precision == "fp16" else np.float32
    output = np.empty((count, hidden, buckets), kind)
    for at, model in enumerate(models):
        rows = slice(at * features, (at + 1) * features)
        embedding[rows] = model.arrays["embedding"]
        weights = model.arrays["output"].astype(np.float32)
        if quantization == "int8":
            scales[rows] = model.arrays["embedding_scales"]
            weights *= model.arrays["output_scales"]
        if kind == np.float16 and not np.abs(weights).sum(axis=0).max() < np.finfo(kind).max:
            raise ConfigError(
                "cuda_precision: this model's output layer exceeds half precision; choose fp32"
            )
        output[at] = weights
    return {
        "offsets": (np.arange(count, dtype=np.int32) * np.int32(features))[:, None, None],
        "embedding": embedding,
        "scales": scales,
        "hidden_bias": np.stack([m.arrays["hidden_bias"] for m in models])[:, None, :],
        "output": output,
        "output_bias": np.stack([m.arrays["output_bias"] for m in models])[:, None, :],
    }
