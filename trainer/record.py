"""What the training of one repetition has come to, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import ConfigError
from trainer.progress import TrainingEvent
from trainer.settings import TrainSettings

__all__ = ["Record"]

Arrays = dict[str, NDArray[Any]]


class Record:
    """Losses of a repetition, its best epoch, and when to stop.

    Args:
        repetition: r.
        settings: of the run.
        judges: whether there are held-out queries.

    Attributes:
        epoch: epochs done.
        best: the best epoch's weights, if they are not those of now.
        seconds: spent by runs before this one.
    """

    def __init__(self, repetition: int, settings: TrainSettings, *, judges: bool) -> None:
        self.repetition = repetition
        self._settings = settings
        self._patience = settings.patience if judges else 0
        self.reset()

    def reset(self) -> None:
        """Nothing done yet."""
        self.epoch = self.best_epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: Arrays | None = None
        self.seconds = 0.0
        self._loss = float("nan")

    @property
    def stops(self) -> bool:
        """Whether no better epoch came for as many as ``patience`` says, or all are done."""
        waited = self._patience and self.epoch - self.best_epoch >= self._patience
        return bool(waited) or self.epoch >= self._settings.epochs

    def note(self, mean_loss: float) -> None:
        """Take in the mean loss of the last few steps.

        Raises:
            ConfigError: if it is no number.
        """
        if not np.isfinite(mean_loss):
            raise ConfigError(
                f"training of repetition {self.repetition} diverged in epoch {self.epoch + 1}: "
                "the loss is no number; lower learning_rate"
            )
        self._loss = mean_loss

    def end_epoch(self, train_loss: float) -> None:
        """An epoch is done; the best so far, until :meth:`judge` says otherwise."""
        self.epoch += 1
        self.history.append({"train_loss": round(train_loss, 6)})

    def accept(self) -> None:
        """Keep the epoch just done: there is nothing to judge it by."""
        self.best_epoch = self.epoch

    def judge(self, loss: float, precision: float, weights: Callable[[], Arrays]) -> None:
        """Compare the epoch just done with the best so far.

        Args:
            loss: on the held-out queries, nats.
            precision: share of them whose first bucket is a wanted one.
            weights: gives the weights of now; they are copied.
        """
        best_before = self.history[self.best_epoch - 1] if self.best_epoch else None
        self.history[-1] |= {
            "held_out_loss": round(loss, 6),
            "held_out_bucket_P@1": round(precision, 6),
        }
        if not self._patience or best_before is None or loss < best_before["held_out_loss"]:
            self.best_epoch = self.epoch
            self.best = None
            if self._patience and self.epoch < self._settings.epochs:  # a later one may be worse
                self.best = {name: array.copy() for name, array in weights().items()}

    def event(self, step: int, steps: int, **more: Any) -> TrainingEvent:
        """How far it is."""
        return TrainingEvent(
            repetition=self.repetition,
            epoch=self.epoch,
            epochs=self._settings.epochs,
            step=step,
            steps=steps,
            loss=self._loss,
            **more,
        )

    def metrics(self, parameters: int, parity: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What the manifest tells of the repetition; ``seconds`` are those of this run."""
        return {
            "repetition": self.repetition,
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "parameters": parameters,
            "parity": parity,
            "seconds": round(self.seconds + seconds, 3),
        }

    # Checkpoints ---------------------------------------------------------------------------

    def save(self, seconds: float) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and progress for a checkpoint, after ``seconds`` of this run."""
        best = {f"best.{name}": value for name, value in (self.best or {}).items()}
        return best, {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "seconds": self.seconds + seconds,
        }

    def restore(self, arrays: Arrays, progress: dict[str, Any]) -> Arrays:
        """Continue from what :meth:`save` gave; returns the arrays that are not the record's.

        Raises:
            KeyError, TypeError, ValueError: if it is something else.
        """
        self.epoch, self.best_epoch = int(progress["epoch"]), int(progress["best_epoch"])
        self.history = list(progress["history"])
        self.seconds = float(progress["seconds"])
        best = {n.removeprefix("best."): a for n, a in arrays.items() if n.startswith("best.")}
        self.best = best or None
        return {name: array for name, array in arrays.items() if not name.startswith("best.")}
