"""The classifier of one repetition: sparse query features to bucket logits.

    logits = W2 · relu(b1 + Σ_f value_f · W1[f]) + b2

What is served are log-probabilities over the B buckets: softmax(logits) or, where each bucket was
trained by itself, sigmoid(logits) divided by their sum. That is the bucket's share of the
products that the model expects, and the order of sums of logarithms is that of log sigmoid(logit).

W1 is nearly all of the model (F × H), and a batch touches a few thousand of its rows, so a
step never does anything to all of it: the rows in use are gathered (:meth:`Classifier.rows`),
get dense gradients, and the optimizer writes them back (:mod:`trainer.optimizer`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mach.features import SparseBatch
from trainer.loss import Loss

__all__ = ["Classifier", "SparseInput", "drop_features"]


@dataclass(frozen=True, eq=False)
class SparseInput:
    """A batch of n sparse rows as tensors on the model's device.

    Attributes:
        used: int64, shape (U,): distinct features of the batch, increasing.
        positions: int64, shape (nnz,): position in ``used`` of each entry.
        values: float32, shape (nnz,).
        offsets: int64, shape (n,): where each row's entries begin.
    """

    used: Tensor
    positions: Tensor
    values: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, batch: SparseBatch, device: torch.device) -> SparseInput:
        """Tensors of ``batch``."""
        used, positions = np.unique(batch.indices, return_inverse=True)
        return cls(
            _tensor(used.astype(np.int64), device),
            _tensor(positions.astype(np.int64), device),
            _tensor(batch.values, device),
            _tensor(batch.splits[:-1].astype(np.int64), device),
        )


def _tensor(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def drop_features(batch: SparseBatch, share: float, rng: np.random.Generator) -> SparseBatch:
    """Leave out each entry with probability ``share`` and scale the rest up to make up for it."""
    if not share:
        return batch
    kept = rng.random(len(batch.indices)) >= share
    before = np.concatenate([[0], np.cumsum(kept)])
    return SparseBatch(
        batch.indices[kept],
        batch.values[kept] / np.float32(1 - share),
        before[batch.splits].astype(np.int32),
    )


class Classifier(torch.nn.Module):
    """One hidden layer between a sum of feature embeddings and B logits.

    Args:
        num_features: F.
        hidden: H.
        num_buckets: B.
        loss: ``one-vs-all`` or ``softmax``, see :mod:`trainer.loss`.
        hidden_dropout: share of hidden units dropped in training.
        output_bias: of every bucket, to begin with.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        num_features: int,
        hidden: int,
        num_buckets: int,
        *,
        loss: Loss = "softmax",
        hidden_dropout: float = 0.0,
        output_bias: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.empty(num_features, hidden), requires_grad=False)
        self.hidden_bias = torch.nn.Parameter(torch.zeros(hidden))
        self.output = torch.nn.Parameter(torch.empty(num_buckets, hidden))
        self.output_bias = torch.nn.Parameter(torch.full((num_buckets,), output_bias))
        self.hidden_dropout = hidden_dropout
        self.loss = loss
        with torch.no_grad():
            # Small: features that are rare stay near 0 rather than add noise.
            self.embedding.normal_(0.0, 0.02, generator=generator)
            self.output.normal_(0.0, 1.0 / math.sqrt(hidden), generator=generator)

    @property
    def dense(self) -> list[torch.nn.Parameter]:
        """The parameters that every step changes as a whole."""
        return [self.hidden_bias, self.output, self.output_bias]

    def rows(self, batch: SparseInput) -> Tensor:
        """Embeddings of the features in use, shape (U, H), a leaf that takes gradients."""
        return self.embedding.detach()[batch.used].requires_grad_(self.training)

    def forward(self, batch: SparseInput, rows: Tensor | None = None) -> Tensor:
        """Logits, shape (n, B)."""
        summed = functional.embedding_bag(
            batch.positions,
            self.rows(batch) if rows is None else rows,
            batch.offsets,
            mode="sum",
            per_sample_weights=batch.values,
        )
        hidden = functional.relu(summed + self.hidden_bias)
        if self.hidden_dropout:
            hidden = functional.dropout(hidden, self.hidden_dropout, self.training)
        return functional.linear(hidden, self.output, self.output_bias)

    @torch.no_grad()
    def log_probabilities(self, batch: SparseBatch) -> NDArray[np.float32]:
        """Bucket log-probabilities, float32, shape (n, B), as in serving."""
        training = self.training
        self.eval()
        logits = self(SparseInput.of(batch, self.embedding.device)).float()
        self.train(training)
        if self.loss == "one-vs-all":
            logits = functional.logsigmoid(logits)
        result: NDArray[np.float32] = functional.log_softmax(logits, dim=1).cpu().numpy()
        return result
