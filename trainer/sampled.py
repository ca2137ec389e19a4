"""The step of :mod:`trainer.optimizer` for CPUs, at a fraction of its cost.

Only the logits need a dense product. Their gradient is sampled (see
:func:`trainer._kernels.sample_gradient`): unbiased, exact where it is large, and some hundred
entries a row where B are thousands, so both backward products become sparse. The embedding
rows in use are updated where they lie.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mach.features import SparseBatch
from trainer import _kernels as kernels
from trainer.loss import TargetRows
from trainer.model import Classifier
from trainer.optimizer import BETA1, BETA2, EPSILON

__all__ = ["SampledStepper"]


class SampledStepper:
    """Trains a model on the CPU, step by step.

    Args:
        model: on the CPU; its parameters are changed in place. It tells the loss.
        threshold: probabilities below are sampled; above 0.
        embedding_rate: step size of the embedding, as a multiple of that of the rest.
    """

    def __init__(self, model: Classifier, *, threshold: float, embedding_rate: float) -> None:
        self.model = model
        self.steps = 0
        self._threshold = threshold
        self._embedding_rate = embedding_rate
        self._parameters = {
            name: value.detach().numpy() for name, value in model.named_parameters()
        }
        self._mean_square = np.zeros(len(model.embedding), np.float32)
        self._dense = {
            name: [np.zeros_like(value) for _ in range(3)]  # gradient, first, second moment
            for name, value in self._parameters.items()
            if name != "embedding"
        }
        self._head = np.full(len(model.embedding), -1, np.int32)
        self._room: dict[str, NDArray[Any]] = {}

    def seed(self, value: int) -> None:
        """Seed dropout and sampling."""
        kernels.seed(value & 0xFFFFFFFF)

    def _buffer(self, name: str, size: int, dtype: Any = np.float32) -> NDArray[Any]:
        room = self._room.get(name)
        if room is None or len(room) < size:
            room = self._room[name] = np.empty(size + size // 4, dtype)
        return room[:size]

    def _matrix(self, name: str, rows: int, columns: int) -> NDArray[np.float32]:
        return self._buffer(name, rows * columns).reshape(rows, columns)

    def step(self, features: SparseBatch, targets: TargetRows, rate: float) -> float:
        """One step; returns the mean loss, in nats; NaN, and nothing done, once it diverged."""
        self.steps += 1
        one_vs_all = self.model.loss == "one-vs-all"
        parameters, n = self._parameters, len(features)
        num_buckets, hidden = parameters["output"].shape
        units = self._matrix("units", n, hidden)
        slope = self._matrix("slope", n, hidden)
        entries = (features.indices, features.values, features.splits)
        kernels.bag(*entries, parameters["embedding"], parameters["hidden_bias"], units)
        kernels.relu_dropout(units, slope, self.model.hidden_dropout)
        logits = torch.from_numpy(self._matrix("logits", n, num_buckets))
        with torch.no_grad():
            torch.addmm(
                self.model.output_bias, torch.from_numpy(units), self.model.output.t(), out=logits
            )
            if one_vs_all:
                torch.sigmoid(logits, out=logits)
            else:
                torch.softmax(logits, 1, out=logits)
            # Not in float64: that would copy the matrix, which took a third of a step.
            total = float(logits.sum())
            if not math.isfinite(total):  # compiled code below trusts that these are numbers
                return math.nan
        # Per threshold of the sum at most one probability of that size and a point of the sample;
        # a thousandth more for the rounding of the sum.
        sampled = int(2.002 * total / self._threshold) + 2 * n
        most = len(targets.buckets) + min(n * num_buckets, sampled)
        columns = self._buffer("columns", most, np.int32)
        values = self._buffer("values", most)
        starts = self._buffer("starts", n + 1, np.int64)
        loss = kernels.sample_gradient(
            logits.numpy(),
            targets.buckets,
            targets.shares,
            targets.splits,
            targets.weights,
            self._threshold,
            one_vs_all,
            columns,
            values,
            starts,
        )
        gradient = self._matrix("unit gradient", n, hidden)
        kernels.backward(
            columns,
            values,
            starts,
            parameters["output"],
            units,
            slope,
            self._dense["output"][0],
            self._dense["output_bias"][0],
            gradient,
        )
        self._dense["hidden_bias"][0][:] = gradient.sum(axis=0)
        self._update(entries, gradient, rate)
        return float(loss) / n

    def _update(
        self,
        entries: tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]],
        gradient: NDArray[np.float32],
        rate: float,
    ) -> None:
        for name, (slope, first, second) in self._dense.items():
            kernels.adam(
                self._parameters[name].reshape(-1),
                slope.reshape(-1),
                first.reshape(-1),
                second.reshape(-1),
                rate,
                BETA1,
                BETA2,
                EPSILON,
                self.steps,
            )
        indices, values, splits = entries
        kernels.update_rows(
            indices,
            values,
            splits,
            gradient,
            self._parameters["embedding"],
            self._mean_square,
            self._head,
            self._buffer("following", len(indices), np.int32),
            self._buffer("row", len(indices), np.int32),
            self._buffer("touched", len(indices), np.int32),
            rate * self._embedding_rate,
            BETA2,
            EPSILON,
            self.steps,
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that the next step depends on, as arrays that share memory."""
        state: dict[str, NDArray[Any]] = {
            "steps": np.array(self.steps),
            "mean_square": self._mean_square,
        }
        state |= {f"model.{name}": value for name, value in self._parameters.items()}
        for name, (_, first, second) in self._dense.items():
            state |= {f"first.{name}": first, f"second.{name}": second}
        return state

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            KeyError, ValueError: if the state is not of this model.
        """
        own = self.state()
        if {name: array.shape for name, array in own.items()} != {
            name: np.shape(array) for name, array in state.items()
        }:
            raise ValueError("the state is of another model")
        self.steps = int(state["steps"])
        for name, array in own.items():
            if name != "steps":
                array[...] = state[name]
