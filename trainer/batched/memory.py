"""How many repetitions fit a device at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from trainer.plan import Plan, resolve_device
from trainer.prepare import PreparedData

__all__ = ["Sizes", "groups_of", "largest_group", "split_evenly"]

#: Share of the free memory to plan with; the rest is the allocator's and the library's.
_USABLE = 0.9
_FLOAT = 4


@dataclass(frozen=True)
class Sizes:
    """What a batched model's memory depends on.

    Attributes:
        num_features: F.
        hidden: H.
        num_buckets: B.
        batch_size: n.
        used: features in use by a batch, U, such as the first: examples lie in random order.
        item: bytes of a factor in matrix products, 2 or 4.
    """

    num_features: int
    hidden: int
    num_buckets: int
    batch_size: int
    used: int
    item: int

    @classmethod
    def of(cls, plan: Plan, device: torch.device) -> Sizes:
        """Those of a run."""
        data, settings = PreparedData.open(plan.data), plan.settings
        first = data.train.read(0, min(plan.batch_size, len(data.train)))
        return cls(
            num_features=data.num_features,
            hidden=settings.hidden,
            num_buckets=plan.num_buckets,
            batch_size=plan.batch_size,
            used=len(np.unique(first.features.indices)),
            item=2 if settings.rounds(device.type) else 4,
        )

    @property
    def member_bytes(self) -> int:
        """Of each repetition: parameters, moments, gradients, and what a step holds."""
        rows = self.num_features * (self.hidden + 1)
        dense = (self.num_buckets + 1) * (self.hidden + 1)
        units = self.batch_size * self.hidden
        gradients = 1.3 * self.used * self.hidden  # and what is left of long runs
        step = units * (2 * _FLOAT + self.item + 1) + int(gradients) * _FLOAT
        return _FLOAT * (rows + 4 * dense) + step

    @property
    def shared_bytes(self) -> int:
        """Whatever the number: one member's logits and output layer, and judging them."""
        logits = self.batch_size * self.num_buckets
        output = self.num_buckets * self.hidden
        # Judging takes logits, log-probabilities and a copy of either in float32.
        return max(2 * logits * self.item + 2 * output * self.item, 3 * logits * _FLOAT) + 2**28

    def fitting(self, free: int) -> int:
        """How many repetitions fit ``free`` bytes; at least 1, which is worth a try."""
        return max(1, (int(free * _USABLE) - self.shared_bytes) // self.member_bytes)


def largest_group(plan: Plan, device: torch.device) -> int:
    """How many repetitions to train as one model there.

    As many as ``group`` says; else as fit the memory that is free on a CUDA device, or 1.
    """
    if plan.settings.group is not None:
        return plan.settings.group
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return Sizes.of(plan, device).fitting(free // max(1, plan.settings.num_workers("cuda")))


def groups_of(plan: Plan, repetitions: Sequence[int]) -> list[tuple[int, ...]]:
    """``repetitions`` as they are trained together here: one by one, or in groups of like size."""
    device = resolve_device(plan.settings.device)
    if not plan.settings.batches(device.type):
        return [(repetition,) for repetition in repetitions]
    return split_evenly(repetitions, largest_group(plan, device))


def split_evenly(repetitions: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Parts of at most ``most``, as few and as even as possible."""
    count = -(-len(repetitions) // most)
    bounds = [len(repetitions) * part // count for part in range(count + 1)] if count else [0]
    return [tuple(repetitions[start:stop]) for start, stop in pairwise(bounds)]
