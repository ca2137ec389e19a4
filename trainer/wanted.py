"""What a repetition is to answer to training examples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mach.hashing import UniversalHash
from trainer.examples import Examples, ExamplesReader
from trainer.loss import Loss, TargetRows

__all__ = ["first_bias", "targets_of"]


def first_bias(loss: Loss, train: ExamplesReader, num_buckets: int) -> float:
    """Log-odds of any bucket being wanted, so that no time goes into learning that."""
    if loss == "softmax":  # it takes no notice of what all buckets share
        return 0.0
    wanted = train.num_pairs / max(1, len(train)) / num_buckets
    return -math.log(max(1.0, 1 / wanted - 1))


def targets_of(
    examples: Examples,
    weights: NDArray[np.float32],
    hash: UniversalHash,
    repetition: int,
    loss: Loss,
) -> TargetRows:
    """Buckets of the examples' products, and how wanted each is by the loss."""
    buckets = hash.buckets(repetition, examples.classes)
    targets = TargetRows(buckets, examples.class_weights, examples.class_splits, weights)
    return targets if loss == "softmax" else targets.relevance()
