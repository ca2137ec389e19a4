"""How well a repetition does on the held-out queries."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.examples import Examples, ExamplesReader
from trainer.loss import TargetRows, binary_cross_entropy, cross_entropy
from trainer.model import Classifier, SparseInput

__all__ = ["held_out_quality"]


@torch.no_grad()
def held_out_quality(
    model: Classifier,
    held_out: ExamplesReader,
    targets_of: Callable[[Examples], TargetRows],
    batch_size: int,
) -> tuple[float, float]:
    """Mean loss (nats) and share of queries whose first bucket is a wanted one.

    Args:
        model: in training mode, in which it is left.
        held_out: at least one query.
        targets_of: what training wants of such examples, each of weight 1.
        batch_size: queries at once.
    """
    device = model.embedding.device
    model.eval()
    loss = hits = 0.0
    for examples in held_out.in_order(batch_size):
        logits = model(SparseInput.of(examples.features, device))
        targets = targets_of(examples).to(device)
        function = binary_cross_entropy if model.loss == "one-vs-all" else cross_entropy
        loss += float(function(logits, targets)) * len(examples)
        first = (logits.argmax(dim=1)[targets.rows] == targets.buckets).float()
        found = torch.zeros(len(examples), device=device).index_add_(0, targets.rows, first)
        hits += float(found.clamp_(max=1).sum())
    model.train()
    return loss / len(held_out), hits / len(held_out)
