"""Training, exporting and checking one repetition, which needs nothing of any other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batched import train_group
from trainer.checkpoint import read_checkpoint, write_checkpoint
from trainer.examples import Examples
from trainer.finish import export_repetition, weights_of
from trainer.judge import held_out_quality
from trainer.loss import TargetRows
from trainer.memory import clear_shortage
from trainer.model import Classifier, drop_features
from trainer.optimizer import Stepper, learning_rate
from trainer.plan import Plan, resolve_device
from trainer.prepare import PreparedData
from trainer.progress import TrainingEvent
from trainer.record import Record
from trainer.sampled import SampledStepper
from trainer.wanted import first_bias, targets_of
from trainer.workspace import Workspace

__all__ = ["train_repetition"]

_EVENT_SECONDS = 0.25
_SMOOTHED_STEPS = 100


@clear_shortage()
def train_repetition(
    plan: Plan, repetition: int, on_event: Callable[[TrainingEvent], None]
) -> dict[str, Any]:
    """Train, export and check one repetition; returns its metrics.

    Continues from the last checkpoint of a run that was interrupted; one that is damaged or of
    another shape is dropped and the repetition starts over.

    Raises:
        ConfigError: if training diverges, the disk is full or memory too small.
        MachError: if the exported model does not agree with the trained one.
    """
    torch.set_num_threads(plan.settings.threads)
    if plan.settings.batches(resolve_device(plan.settings.device).type):
        return train_group(plan, (repetition,), on_event)[0]
    return _Run(plan, repetition, on_event).run()


class _Run:
    def __init__(
        self, plan: Plan, repetition: int, on_event: Callable[[TrainingEvent], None]
    ) -> None:
        settings = plan.settings
        self._plan, self._repetition, self._on_event = plan, repetition, on_event
        self._settings = settings
        self._device = resolve_device(settings.device)
        self._data = PreparedData.open(plan.data)
        self._train, self._held_out = self._data.train, self._data.held_out
        self._hash = plan.hash(self._data.num_classes, repetition + 1)
        self._build()
        self._steps_per_epoch = self._train.num_batches(plan.batch_size)
        self._steps = self._steps_per_epoch * settings.epochs
        self._checkpoint = Workspace.checkpoint_path(plan.models, repetition)
        self._record = Record(repetition, settings, judges=len(self._held_out) > 0)

    def _build(self) -> None:
        """A model that has seen nothing."""
        settings = self._settings
        self._model = Classifier(
            self._data.num_features,
            settings.hidden,
            self._plan.num_buckets,
            loss=settings.loss,
            hidden_dropout=settings.hidden_dropout,
            output_bias=first_bias(settings.loss, self._train, self._plan.num_buckets),
            generator=torch.Generator().manual_seed(self._seed("weights")),
        ).to(self._device)
        self._stepper = self._make_stepper()

    def _make_stepper(self) -> Stepper | SampledStepper:
        settings = self._settings
        rounds = settings.rounds(self._device.type)
        sampled = settings.gradient_threshold and not settings.label_smoothing and not rounds
        if sampled and self._device.type == "cpu":
            return SampledStepper(
                self._model,
                threshold=settings.gradient_threshold,
                embedding_rate=settings.embedding_rate,
            )
        return Stepper(
            self._model,
            label_smoothing=settings.label_smoothing,
            embedding_rate=settings.embedding_rate,
            bf16=rounds,
        )

    def _seed(self, purpose: str, epoch: int = 0) -> int:
        return self._plan.seed(purpose, self._repetition, epoch)

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        self._resume()
        last_saved = started
        self._model.train()
        while not self._record.stops:
            self._run_epoch()
            self._judge()
            if time.monotonic() - last_saved >= self._settings.checkpoint_seconds:
                self._save(time.monotonic() - started)
                last_saved = time.monotonic()
        if (best := self._record.best) is not None:
            self._model.load_state_dict({n: torch.from_numpy(a) for n, a in best.items()})
        parameters = sum(p.numel() for p in self._model.parameters())
        parity = export_repetition(self._plan, self._data, self._repetition, self._model.to("cpu"))
        metrics = self._record.metrics(parameters, parity, time.monotonic() - started)
        Workspace.finish(self._plan.models, self._repetition, metrics)
        self._event(finished=True)
        return metrics

    # One epoch -----------------------------------------------------------------------------

    def _run_epoch(self) -> None:
        settings, epoch = self._settings, self._record.epoch
        self._stepper.seed(self._seed("dropout", epoch))
        rng = np.random.default_rng(self._seed("order", epoch))
        mean_weight = np.float32(self._train.mean_weight)
        recent = torch.zeros((), device=self._device)
        total, last_event, steps_seen = 0.0, 0.0, 0
        for examples in self._train.shuffled(self._plan.batch_size, rng):
            rate = learning_rate(
                settings.learning_rate,
                settings.schedule,
                settings.warmup,
                self._stepper.steps,
                self._steps,
            )
            features = drop_features(examples.features, settings.feature_dropout, rng)
            targets = self._targets(examples, examples.weights / mean_weight)
            loss = self._stepper.step(features, targets, rate)
            recent += loss
            steps_seen += 1
            if time.monotonic() - last_event > _EVENT_SECONDS or steps_seen == _SMOOTHED_STEPS:
                total += self._note(recent, steps_seen)
                recent, steps_seen, last_event = torch.zeros_like(recent), 0, time.monotonic()
        if steps_seen:
            total += self._note(recent, steps_seen)
        self._record.end_epoch(total / self._steps_per_epoch)

    def _note(self, summed: torch.Tensor, steps: int) -> float:
        value = float(summed)
        self._record.note(value / steps)
        self._event()
        return value

    def _targets(self, examples: Examples, weights: NDArray[np.float32]) -> TargetRows:
        return targets_of(examples, weights, self._hash, self._repetition, self._settings.loss)

    def _event(self, **more: Any) -> None:
        self._on_event(self._record.event(self._stepper.steps, self._steps, **more))

    def _judge(self) -> None:
        """Compare this epoch with the best so far, on held-out queries."""
        if not len(self._held_out):
            self._record.accept()
            self._event()
            return
        loss, precision = held_out_quality(
            self._model,
            self._held_out,
            lambda examples: self._targets(examples, np.ones_like(examples.weights)),
            self._plan.batch_size,
        )
        self._record.judge(loss, precision, lambda: weights_of(self._model))
        self._event(held_out_loss=loss)

    # Checkpoints ---------------------------------------------------------------------------

    def _save(self, seconds: float) -> None:
        best, progress = self._record.save(seconds)
        write_checkpoint(self._checkpoint, self._stepper.state() | best, progress)

    def _resume(self) -> None:
        found = read_checkpoint(self._checkpoint)
        if found is None:
            return
        try:
            self._stepper.load_state(self._record.restore(*found))
        except (KeyError, RuntimeError, TypeError, ValueError):  # not of this model after all
            self._build()
            self._record.reset()
