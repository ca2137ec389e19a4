"""One training step of a batched model, with gradients written out by hand.

For each member, with x_i the summed embeddings of example i, h_i = relu(x_i + b₁) (with
dropout), z_i = W₂ h_i + b₂, p_i = softmax(z_i) or, one-vs-all, sigmoid(z_i), t_i how wanted each
bucket is and s_i = weight_i / n::

    ∂z_i = s_i (p_i − t_i)        ∂W₂ = Σ_i ∂z_i h_iᵀ        ∂b₂ = Σ_i ∂z_i
    ∂x_i = (W₂ᵀ ∂z_i) ∘ relu'     ∂W₁[f] = Σ_i value_if ∂x_i

These are :class:`trainer.optimizer.Stepper`'s, as are the updates; only the order of additions
differs. The three products with W₂ are 6·H·B floating-point operations an example and all but
everything; they take bf16 factors if so asked. Probabilities and losses are taken in float32, some
rows at a time, so that float32 probabilities never fill n × B.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mach.hashing import UniversalHash
from trainer.batched.batch import GroupBatch
from trainer.batched.model import ClassifierGroup
from trainer.batched.state import GroupState
from trainer.optimizer import BETA2, EPSILON

__all__ = ["PIECE_ELEMENTS", "GroupStepper"]

#: float32 probabilities held at once, 32 MB; members whose logits are no more go together.
PIECE_ELEMENTS = 1 << 23


class GroupStepper:
    """Trains G repetitions step by step, on any device.

    Args:
        model: G members; it tells the loss.
        hash: of all repetitions up to the last of them.
        repetitions: which G these are.
        bf16: whether matrix products take bfloat16 factors; sums are float32 either way.
        label_smoothing: see :func:`trainer.loss.cross_entropy`.
        embedding_rate: step size of the embedding, as a multiple of that of the rest.
        piece_elements: float32 probabilities to hold at once.
    """

    def __init__(
        self,
        model: ClassifierGroup,
        hash: UniversalHash,
        repetitions: tuple[int, ...],
        *,
        bf16: bool = False,
        label_smoothing: float = 0.0,
        embedding_rate: float = 1.0,
        piece_elements: int = PIECE_ELEMENTS,
    ) -> None:
        self.model = model
        self.state = GroupState(model)
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._smoothing = label_smoothing
        self._embedding_rate = embedding_rate
        self._elements = piece_elements
        self._generator = torch.Generator(model.device)
        blocks = np.arange(hash.num_blocks)
        self._starts = torch.from_numpy(
            np.stack([hash.starts(repetition, blocks) for repetition in repetitions])
        ).to(model.device)
        self._width, self._num_buckets = hash.width, hash.num_buckets

    def seed(self, value: int) -> None:
        """Seed dropout, whose mask all members share: which unit is which means nothing."""
        self._generator.manual_seed(value)

    def buckets(self, classes: Tensor) -> Tensor:
        """Buckets of ``classes`` (int64, shape (m,)) in each repetition, int64, shape (G, m)."""
        starts = self._starts[:, classes // self._width]
        return (starts + classes % self._width) % self._num_buckets

    def wanted(self, batch: GroupBatch, buckets: Tensor) -> Tensor:
        """How wanted each entry of ``buckets`` (G, m) is, float32, the same shape.

        For the softmax, entries of one bucket add up. One-vs-all, a bucket is as wanted as its
        most wanted product (:meth:`trainer.loss.TargetRows.relevance`): the other entries are 0.
        """
        shares = batch.shares.expand(buckets.shape)
        if self.model.loss == "softmax" or len(batch.shares) == len(batch):  # one product each
            return shares
        keys = batch.class_rows * self._num_buckets + buckets
        ordered, order = torch.sort(keys, dim=1, stable=True)  # a row's most wanted come first
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        return shares * torch.empty_like(first).scatter_(1, order, first)

    @torch.no_grad()
    def step(self, batch: GroupBatch, rate: float) -> Tensor:
        """One step; returns each member's mean loss in nats, shape (G,), still on the device.

        Args:
            batch: on the model's device.
            rate: step size.
        """
        model, n = self.model, len(batch)
        size, hidden = model.hidden_bias.shape
        units = functional.embedding_bag(
            batch.features,
            model.embedding.view(-1, size * hidden),
            batch.offsets,
            mode="sum",
            per_sample_weights=batch.values,
        )
        units = units.view(n, size, hidden).add_(model.hidden_bias).relu_()
        scale = 1.0 / (1.0 - model.hidden_dropout)
        if model.hidden_dropout:
            drawn = torch.rand(n, 1, hidden, generator=self._generator, device=model.device)
            units.mul_((drawn >= model.hidden_dropout) * scale)
        inputs = units.to(self._dtype).transpose(0, 1)
        buckets = self.buckets(batch.classes)
        wanted = self.wanted(batch, buckets)
        slope = torch.empty_like(units)
        together = max(1, min(size, self._elements // (n * self._num_buckets)))
        losses = []
        for first in range(0, size, together):
            members = slice(first, first + together)
            losses.append(self._output_layer(batch, inputs, (buckets, wanted), slope, members))
        slope.mul_(units > 0).mul_(scale)
        del units, inputs  # room for the rows' gradients
        torch.sum(slope, 0, out=self.state.gradients["hidden_bias"])
        self.state.step(rate)
        if len(batch.used):
            self._update_rows(batch, slope.view(n, -1), rate * self._embedding_rate)
        return torch.cat(losses)

    def _output_layer(
        self,
        batch: GroupBatch,
        inputs: Tensor,
        targets: tuple[Tensor, Tensor],
        slope: Tensor,
        members: slice,
    ) -> Tensor:
        """Losses of some members, and gradients of their output layers and hidden units."""
        weight = self.model.output[members].to(self._dtype)
        bias = self.model.output_bias[members].to(self._dtype)
        inputs = inputs[members]
        if len(weight) == 1:  # the bias is added within the product
            logits = functional.linear(inputs[0], weight[0], bias[0])[None]
        else:
            logits = torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))
        losses = self._to_gradient(logits, batch, *(part[members] for part in targets))
        gradients = self.state.gradients
        gradients["output"][members] = _product(logits.transpose(1, 2), inputs)
        torch.sum(logits, 1, dtype=torch.float32, out=gradients["output_bias"][members])
        slope[:, members] = _product(logits, weight).transpose(0, 1)
        return losses

    def _to_gradient(
        self, logits: Tensor, batch: GroupBatch, buckets: Tensor, wanted: Tensor
    ) -> Tensor:
        """Put the loss's gradient in place of ``logits`` (C, n, B); losses, shape (C,)."""
        size, n, num_buckets = logits.shape
        losses = torch.zeros(size, device=logits.device)
        members = torch.arange(size, device=logits.device)[:, None]
        rows = max(1, self._elements // (size * num_buckets))
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            pairs = slice(int(batch.class_splits[start]), int(batch.class_splits[stop]))
            own = batch.class_rows[pairs] - start
            scale = batch.scale[start:stop]
            flat = (members * (stop - start) + own) * num_buckets + buckets[:, pairs]
            amount = wanted[:, pairs] * scale[own] * (1 - self._smoothing)
            part = logits[:, start:stop]
            gradient = (
                self._softmax(part, flat, amount, scale, losses)
                if self.model.loss == "softmax"
                else self._sigmoid(part, flat, amount, scale, losses)
            )
            gradient *= scale[:, None]
            # Atomic on CUDA, where two products of one example share a bucket.
            gradient.view(-1).scatter_add_(0, flat.view(-1), -amount.view(-1))
            logits[:, start:stop] = gradient
        return losses

    def _softmax(
        self, logits: Tensor, flat: Tensor, amount: Tensor, scale: Tensor, losses: Tensor
    ) -> Tensor:
        """Probabilities in float32, less what smoothing wants; adds to ``losses``."""
        log_p = torch.log_softmax(logits, 2, dtype=torch.float32)
        losses -= (log_p.view(-1)[flat] * amount).sum(1)
        if not self._smoothing:
            return log_p.exp_()
        losses -= self._smoothing * (log_p.mean(2) * scale).sum(1)
        return log_p.exp_().sub_(self._smoothing / logits.shape[2])

    @staticmethod
    def _sigmoid(
        logits: Tensor, flat: Tensor, amount: Tensor, scale: Tensor, losses: Tensor
    ) -> Tensor:
        """The same one-vs-all."""
        values = logits.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        losses -= (values.view(-1)[flat] * amount).sum(1)
        losses += (functional.softplus(values).sum(2) * scale).sum(1)
        return values.sigmoid_()

    def _update_rows(self, batch: GroupBatch, slope: Tensor, rate: float) -> None:
        """Row-wise RMS, as :class:`trainer.optimizer.Stepper` does it."""
        size, hidden = self.model.hidden_bias.shape
        used = len(batch.used)
        pieces = functional.embedding_bag(
            batch.rows, slope, batch.pieces, mode="sum", per_sample_weights=batch.row_values
        )
        gradient = pieces[:used]
        if len(batch.owners):
            gradient.index_add_(0, batch.owners, pieces[used:])
        gradient = gradient.view(used, size, hidden)
        mean_square = self.state.mean_square
        square = mean_square[batch.used].mul_(BETA2)
        square.add_(torch.linalg.vector_norm(gradient, dim=2).square_(), alpha=(1 - BETA2) / hidden)
        mean_square[batch.used] = square
        root = square.div_(1 - BETA2**self.state.steps).sqrt_().add_(EPSILON)
        self.model.embedding.index_add_(0, batch.used, gradient.mul_((-rate / root)[:, :, None]))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Batched matrix product; of one pair, a plain one, for which kernels are better chosen."""
    return (left[0] @ right[0])[None] if len(left) == 1 else torch.bmm(left, right)
