"""How well a repetition does on the held-out queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.examples import ExamplesReader
from trainer.loss import Targets, cross_entropy
from trainer.model import Classifier, SparseInput

__all__ = ["held_out_quality"]


@torch.no_grad()
def held_out_quality(
    model: Classifier,
    held_out: ExamplesReader,
    bucket_of: Callable[[NDArray[np.int32]], NDArray[np.int64]],
    batch_size: int,
) -> tuple[float, float]:
    """Mean cross-entropy (nats) and share of queries whose first bucket is a wanted one.

    Args:
        model: in training mode, in which it is left.
        held_out: at least one query; each counts alike.
        bucket_of: the repetition's hash.
        batch_size: queries at once.
    """
    device = model.embedding.device
    model.eval()
    loss = hits = 0.0
    for examples in held_out.in_order(batch_size):
        logits = model(SparseInput.of(examples.features, device))
        targets = Targets.of(
            bucket_of(examples.classes),
            examples.class_weights,
            examples.class_splits,
            np.ones_like(examples.weights),
            device,
        )
        loss += float(cross_entropy(logits, targets)) * len(examples)
        first = (logits.argmax(dim=1)[targets.rows] == targets.buckets).float()
        found = torch.zeros(len(examples), device=device).index_add_(0, targets.rows, first)
        hits += float(found.clamp_(max=1).sum())
    model.train()
    return loss / len(held_out), hits / len(held_out)
