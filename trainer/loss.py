"""What training minimises, against few wanted buckets a query.

- ``softmax``: cross-entropy of softmax(logits) and the distribution over the wanted buckets.
- ``one-vs-all``: the sum over all buckets of the binary cross-entropy of sigmoid(logit) and how
  wanted the bucket is (:meth:`TargetRows.relevance`). It ranks several wanted buckets of one
  query better: they do not compete (Menon et al., "Multilabel reductions: what is my loss
  optimising?", NeurIPS 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["Loss", "TargetRows", "Targets", "binary_cross_entropy", "cross_entropy"]

Loss = Literal["one-vs-all", "softmax"]


@dataclass(frozen=True, eq=False)
class TargetRows:
    """Wanted buckets of n examples, row by row, at least one each.

    Attributes:
        buckets: int64, shape (m,).
        shares: float32, shape (m,): a row's sum to 1 and entries of one bucket add up, but for
            :meth:`relevance`.
        splits: int64, shape (n + 1,): row i owns entries ``splits[i]:splits[i + 1]``.
        weights: float32, shape (n,): of each example.
    """

    buckets: NDArray[np.int64]
    shares: NDArray[np.float32]
    splits: NDArray[np.int64]
    weights: NDArray[np.float32]

    def relevance(self) -> TargetRows:
        """How wanted each bucket is by itself, from 0 to 1, as the one-vs-all loss wants it.

        A product counts in proportion to the most wanted product of its row: 1 for all of a
        list, the share of the most frequent for what was clicked one by one. A bucket is as
        wanted as its most wanted product, and is listed once a row.
        """
        rows = np.repeat(np.arange(len(self.weights)), np.diff(self.splits))
        largest: NDArray[np.float32] = np.maximum.reduceat(self.shares, self.splits[:-1])
        wanted = self.shares / largest[rows]
        order = np.lexsort((-wanted, self.buckets, rows))
        rows, buckets = rows[order], self.buckets[order]
        first = np.ones(len(order), bool)
        first[1:] = (rows[1:] != rows[:-1]) | (buckets[1:] != buckets[:-1])
        splits = np.searchsorted(rows[first], np.arange(len(self.weights) + 1))
        return TargetRows(buckets[first], wanted[order][first], splits, self.weights)

    def to(self, device: torch.device) -> Targets:
        """The same as tensors."""
        return Targets.of(self.buckets, self.shares, self.splits, self.weights, device)


@dataclass(frozen=True, eq=False)
class Targets:
    """Wanted buckets of n examples.

    Attributes:
        rows: int64, shape (m,): the example of each entry.
        buckets: int64, shape (m,).
        shares: float32, shape (m,), as of :class:`TargetRows`.
        weights: float32, shape (n,): of each example.
    """

    rows: Tensor
    buckets: Tensor
    shares: Tensor
    weights: Tensor

    @classmethod
    def of(
        cls,
        buckets: NDArray[np.int64],
        shares: NDArray[np.float32],
        splits: NDArray[np.int64],
        weights: NDArray[np.float32],
        device: torch.device,
    ) -> Targets:
        """Tensors of CSR arrays."""
        rows = np.repeat(np.arange(len(weights)), np.diff(splits))
        arrays: tuple[NDArray[Any], ...] = (rows, buckets, shares, weights)
        return cls(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


class _CrossEntropy(torch.autograd.Function):
    """The gradient is written in place of the logits' copy: one n × B buffer, not five."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        rows: Tensor,
        buckets: Tensor,
        shares: Tensor,
        weights: Tensor,
        smoothing: float,
    ) -> Tensor:
        log_p = torch.log_softmax(logits.float(), dim=1)
        ctx.save_for_backward(log_p, rows, buckets, shares, weights)
        ctx.smoothing, ctx.dtype = smoothing, logits.dtype
        entries = log_p[rows, buckets] * shares
        losses = -(1 - smoothing) * torch.zeros_like(weights).index_add_(0, rows, entries)
        if smoothing:
            losses -= smoothing * log_p.mean(dim=1)
        return (losses * weights).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        log_p, rows, buckets, shares, weights = ctx.saved_tensors
        scale = weights * (gradients[0] / len(weights))
        gradient = log_p.exp_()
        if ctx.smoothing:
            gradient -= ctx.smoothing / gradient.shape[1]
        gradient *= scale[:, None]
        entries = shares * scale[rows] * (1 - ctx.smoothing)
        gradient.index_put_((rows, buckets), -entries, accumulate=True)
        return gradient.to(ctx.dtype), None, None, None, None, None


def cross_entropy(logits: Tensor, targets: Targets, smoothing: float = 0.0) -> Tensor:
    """Mean over examples of weight × cross-entropy, in nats.

    The target distribution is ``(1 - smoothing) × targets + smoothing / B`` (label smoothing:
    Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, §7).

    Args:
        logits: shape (n, B). Gradients flow to these only, once.
        targets: of the n examples.
        smoothing: from 0 to below 1.
    """
    result: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, targets.rows, targets.buckets, targets.shares, targets.weights, smoothing
    )
    return result


def binary_cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """Mean over examples of weight × summed binary cross-entropy of all buckets, in nats.

    Args:
        logits: shape (n, B).
        targets: of the n examples, from :meth:`TargetRows.relevance`.
    """
    logits = logits.float()
    entries = logits[targets.rows, targets.buckets] * targets.shares
    losses = functional.softplus(logits).sum(dim=1).index_add(0, targets.rows, -entries)
    return (losses * targets.weights).mean()
