"""One training step: gradients of a batch, and updates of what the batch touched.

The output layer is trained by Adam. An embedding row moves by its gradient over the root of a
running mean of its mean square, one number a row ("row-wise RMS"), and only in steps that use
it: so a step costs the rows in use, not the F × H matrix, and on long-tailed text it trains
better than Adam with lazy moments (``docs/experiments.md``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach.features import SparseBatch
from trainer.loss import TargetRows, binary_cross_entropy, cross_entropy
from trainer.model import Classifier, SparseInput

__all__ = ["BETA1", "BETA2", "EPSILON", "Stepper", "learning_rate"]

BETA1, BETA2 = 0.9, 0.99
EPSILON = 1e-8


def learning_rate(peak: float, schedule: str, warmup: float, step: int, steps: int) -> float:
    """Step size of step ``step`` (from 0) of ``steps``.

    It rises linearly over the first ``warmup`` share of steps, then falls towards 0.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    if schedule == "constant":
        return peak
    progress = (step - rising) / max(1, steps - rising)
    return peak * (
        1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    )


class Stepper:
    """Trains a model step by step, on any device.

    Args:
        model: on its device, in training mode; it tells the loss.
        label_smoothing: see :func:`trainer.loss.cross_entropy`.
        embedding_rate: step size of the embedding, as a multiple of that of the rest.
        bf16: whether matrix products take bfloat16 factors (autocast).
    """

    def __init__(
        self,
        model: Classifier,
        *,
        label_smoothing: float = 0.0,
        embedding_rate: float = 1.0,
        bf16: bool = False,
    ) -> None:
        self.model = model
        self.steps = 0
        self._smoothing = label_smoothing
        self._embedding_rate = embedding_rate
        self._device = model.embedding.device
        self._bf16 = bf16
        self._mean_square = torch.zeros(len(model.embedding), device=self._device)
        # torch's fused Adam exists on CPU and CUDA and is one kernel a parameter.
        self._dense = torch.optim.Adam(
            model.dense, lr=1.0, betas=(BETA1, BETA2), eps=EPSILON, fused=True
        )

    def seed(self, value: int) -> None:
        """Seed dropout."""
        torch.manual_seed(value)

    def step(self, features: SparseBatch, targets: TargetRows, rate: float) -> Tensor:
        """One step; returns the mean loss, a scalar still on the device.

        Args:
            features: n rows.
            targets: of the n rows; where the loss is one-vs-all, their ``relevance()``.
            rate: step size.
        """
        batch = SparseInput.of(features, self._device)
        rows = self.model.rows(batch)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            logits = self.model(batch, rows)
        wanted = targets.to(self._device)
        if self.model.loss == "one-vs-all":
            loss = binary_cross_entropy(logits, wanted)
        else:
            loss = cross_entropy(logits, wanted, self._smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.steps += 1
        for group in self._dense.param_groups:
            group["lr"] = rate
        self._dense.step()
        self._dense.zero_grad(set_to_none=True)
        assert rows.grad is not None
        self._update_rows(batch.used, rows.grad, rate * self._embedding_rate)
        return loss.detach()

    @torch.no_grad()
    def _update_rows(self, used: Tensor, gradient: Tensor, rate: float) -> None:
        square = self._mean_square[used].mul_(BETA2)
        square.add_(gradient.square().mean(dim=1), alpha=1 - BETA2)
        self._mean_square[used] = square
        root = square.div_(1 - BETA2**self.steps).sqrt_().add_(EPSILON)
        self.model.embedding.index_add_(0, used, gradient.mul_(-rate).div_(root[:, None]))

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that the next step depends on, as arrays that share memory on a CPU."""
        state = {"steps": np.array(self.steps)}
        named = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        named["mean_square"] = self._mean_square
        for index, parameter in enumerate(self.model.dense):
            for name, value in self._dense.state[parameter].items():
                named[f"dense.{index}.{name}"] = value
        return state | {name: value.detach().cpu().numpy() for name, value in named.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            KeyError, RuntimeError: if the state is not of this model.
        """
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        self.steps = int(tensors.pop("steps"))
        self.model.load_state_dict(
            {name: tensors.pop(f"model.{name}") for name in self.model.state_dict()}
        )
        self._mean_square.copy_(tensors.pop("mean_square"))
        for index, parameter in enumerate(self.model.dense):
            prefix = f"dense.{index}."
            self._dense.state[parameter] = {
                name.removeprefix(prefix): value.to(self._device)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
