"""What a repetition is told: which data, which settings, which device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mach.errors import ConfigError
from mach.hashing import UniversalHash
from trainer.settings import TrainSettings

__all__ = ["Plan", "resolve_device"]


@dataclass(frozen=True)
class Plan:
    """All that training one repetition needs; plain values, so that it can be sent anywhere."""

    data: Path
    """Directory of the prepared data."""
    models: Path
    """Directory of the finished repetitions."""
    num_buckets: int
    """B."""
    batch_size: int
    """Queries a step."""
    settings: TrainSettings

    def hash(self, num_classes: int, num_repetitions: int) -> UniversalHash:
        """The hash functions of the first repetitions."""
        return UniversalHash.draw(
            num_classes, self.num_buckets, num_repetitions, self.settings.seed
        )

    def seed(self, purpose: str, repetition: int | None, epoch: int = 0) -> int:
        """A seed for one purpose, the same whether or not the run was interrupted.

        Args:
            purpose: what is drawn.
            repetition: r, or None for what all repetitions share.
            epoch: epochs done.
        """
        whose = [] if repetition is None else [repetition]
        words = [self.settings.seed, *whose, epoch, *purpose.encode()]
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def resolve_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here.

    Raises:
        ConfigError: if CUDA is asked for and there is none.
    """
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if name == "cuda":
        raise ConfigError("device: cuda was asked for, but PyTorch finds no CUDA device")
    return torch.device("cpu")
