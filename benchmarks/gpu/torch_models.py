"""The stacked classifiers in PyTorch, as a yardstick for what a shard runs in ONNX Runtime."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mach.features import SparseBatch
from mach.inference.stacking import RepetitionWeights

__all__ = ["Stack", "compiled", "eager", "release"]


class Stack(torch.nn.Module):
    """R classifiers as one; answers in 8 bits as ``mach.wire`` writes them.

    Args:
        weights: of a repetition, copied for each.
        repetitions: R.
        dtype: of the weights; sums are the device's, softmax and what follows float32.
    """

    def __init__(self, weights: RepetitionWeights, repetitions: int, dtype: torch.dtype) -> None:
        super().__init__()
        arrays = weights.arrays

        def copy(name: str) -> torch.Tensor:
            return torch.from_numpy(arrays[name].astype(np.float32))

        embedding, output = copy("embedding"), copy("output")
        if weights.quantization == "int8":
            embedding *= copy("embedding_scales")[:, None]
            output *= copy("output_scales")
        self.one_vs_all = weights.loss == "one-vs-all"
        self.features = len(embedding)
        self.repetitions = repetitions
        self.embedding = embedding.to(dtype)
        self.output = output.to(dtype)
        self.hidden_bias = copy("hidden_bias").to(dtype)
        self.output_bias = copy("output_bias")

    def to_device(self, device: str) -> Stack:
        """Copy each repetition's weights side by side, without a copy of all on the host."""

        def repeated(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device)[None].repeat(self.repetitions, *[1] * tensor.ndim)

        self.embedding = repeated(self.embedding).flatten(0, 1)
        self.output = repeated(self.output)
        self.hidden_bias = repeated(self.hidden_bias)[:, None]
        self.output_bias = repeated(self.output_bias)[:, None]
        self.offsets = (torch.arange(self.repetitions, device=device) * self.features)[
            :, None, None
        ]
        return self

    def forward(self, indices: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, width = indices.shape
        at = (indices[None] + self.offsets).view(-1, width)
        scaled = values.to(self.embedding.dtype).repeat(self.repetitions, 1)
        summed = functional.embedding_bag(
            at, self.embedding, per_sample_weights=scaled, mode="sum"
        ).view(self.repetitions, rows, -1)
        hidden = functional.relu(summed + self.hidden_bias)
        logits = torch.bmm(hidden, self.output).float() + self.output_bias
        if self.one_vs_all:
            logits = functional.logsigmoid(logits)
        answer = functional.log_softmax(logits, dim=-1)
        low, high = answer.amin(-1, keepdim=True), answer.amax(-1, keepdim=True)
        step = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
        codes = ((answer - low) * (1 / step) + 0.5).to(torch.uint8)
        return codes, low, step


def _caller(
    module: Callable[..., tuple[torch.Tensor, ...]], device: str
) -> Callable[[SparseBatch], Any]:
    host: dict[int, torch.Tensor] = {}

    @torch.inference_mode()
    def run(batch: SparseBatch) -> Any:
        indices, values = batch.padded()
        codes, low, step = module(
            torch.from_numpy(indices).to(device).long(), torch.from_numpy(values).to(device)
        )
        if len(batch) not in host:
            host[len(batch)] = torch.empty(
                codes.shape, dtype=torch.uint8, pin_memory=device == "cuda"
            )
        host[len(batch)].copy_(codes)
        return host[len(batch)].numpy(), low.cpu().numpy(), step.cpu().numpy()

    return run


def eager(
    weights: RepetitionWeights, repetitions: int, device: str
) -> Callable[[SparseBatch], Any]:
    dtype = torch.float16 if device == "cuda" else torch.float32
    return _caller(Stack(weights, repetitions, dtype).to_device(device), device)


def compiled(
    weights: RepetitionWeights, repetitions: int, device: str, *, graphs: bool = False
) -> Callable[[SparseBatch], Any]:
    dtype = torch.float16 if device == "cuda" else torch.float32
    stack = Stack(weights, repetitions, dtype).to_device(device)
    mode = "reduce-overhead" if graphs else "default"
    return _caller(torch.compile(stack, mode=mode, dynamic=False), device)


def release(device: str) -> None:
    """Give memory back before the next way."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
