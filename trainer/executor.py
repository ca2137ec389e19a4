"""Who trains the repetitions that are left: the seam between a run and the machines it uses.

An executor is given repetitions, and trains each by :func:`train_unit` in whatever process it
likes. Nothing passes between repetitions, and nothing comes back but progress: the results lie
in the work directory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from trainer.batched import train_group
from trainer.plan import Plan
from trainer.progress import TrainingEvent
from trainer.repetition import train_repetition
from trainer.settings import TrainSettings

__all__ = ["Executor", "OnEvent", "train_unit"]

OnEvent = Callable[[TrainingEvent], None]


class Executor(ABC):
    """Trains repetitions somewhere."""

    @abstractmethod
    def check(self, settings: TrainSettings) -> None:
        """Refuse what cannot work, before any data are read.

        Raises:
            ConfigError: saying what is missing.
        """

    @abstractmethod
    def train(self, plan: Plan, repetitions: Sequence[int], on_event: OnEvent) -> None:
        """Train all of ``repetitions``, which are not finished, into ``plan.models``.

        Args:
            plan: what to train on, and where to.
            repetitions: which.
            on_event: told about progress, in the thread that called.

        Raises:
            MachError: why one of them could not be trained; those finished stay.
        """


def train_unit(plan: Plan, repetitions: tuple[int, ...], on_event: OnEvent) -> None:
    """Train one repetition, or several as one batched model; whatever the executor."""
    if len(repetitions) == 1:
        train_repetition(plan, repetitions[0], on_event)
    else:
        train_group(plan, repetitions, on_event)
