"""Training, exporting and checking a group of repetitions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mach.errors import ConfigError
from trainer.batched.batch import GroupBatch, batches_of
from trainer.batched.model import ClassifierGroup
from trainer.batched.prefetch import Prefetcher, StepClock
from trainer.batched.stepper import GroupStepper
from trainer.checkpoint import read_checkpoint, read_progress, write_checkpoint
from trainer.examples import Examples
from trainer.finish import export_repetition, weights_of
from trainer.judge import held_out_quality
from trainer.loss import TargetRows
from trainer.memory import clear_shortage
from trainer.model import Classifier, drop_features
from trainer.optimizer import learning_rate
from trainer.plan import Plan, resolve_device
from trainer.prepare import PreparedData
from trainer.progress import TrainingEvent
from trainer.record import Record
from trainer.wanted import first_bias, targets_of
from trainer.workspace import Workspace

__all__ = ["train_group"]

_EVENT_SECONDS = 0.25
_SMOOTHED_STEPS = 100

OnEvent = Callable[[TrainingEvent], None]


@clear_shortage()
def train_group(plan: Plan, repetitions: Sequence[int], on_event: OnEvent) -> list[dict[str, Any]]:
    """Train, export and check some repetitions as one batched model; returns their metrics.

    Each continues from its own checkpoint. Those that are not at the same epoch, as after a
    crash between two checkpoints, are trained one part after the other.

    Raises:
        ConfigError: if training diverges, the disk is full or memory too small.
        MachError: if an exported model does not agree with the trained one.
    """
    torch.set_num_threads(plan.settings.threads)
    parts: dict[int, list[int]] = {}
    for repetition in repetitions:
        progress = read_progress(Workspace.checkpoint_path(plan.models, repetition)) or {}
        parts.setdefault(int(progress.get("epoch", 0)), []).append(repetition)
    metrics: dict[int, dict[str, Any]] = {}
    for _, part in sorted(parts.items(), reverse=True):
        try:
            metrics |= _GroupRun(plan, tuple(part), on_event).run()
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"the device's memory is too small for {len(part)} repetitions at once: give a "
                "smaller group or batch_size; the same command continues"
            ) from None
    return [metrics[repetition] for repetition in repetitions]


class _GroupRun:
    def __init__(self, plan: Plan, repetitions: tuple[int, ...], on_event: OnEvent) -> None:
        settings = plan.settings
        self._plan, self._repetitions, self._on_event = plan, repetitions, on_event
        self._settings = settings
        self._device = resolve_device(settings.device)
        self._data = PreparedData.open(plan.data)
        self._train, self._held_out = self._data.train, self._data.held_out
        self._hash = plan.hash(self._data.num_classes, max(repetitions) + 1)
        self._steps_per_epoch = self._train.num_batches(plan.batch_size)
        self._steps = self._steps_per_epoch * settings.epochs
        judges = len(self._held_out) > 0
        self._records = [Record(r, settings, judges=judges) for r in repetitions]
        self._metrics: dict[int, dict[str, Any]] = {}
        self._clock = StepClock(self._device)
        self._examples_seen = 0
        self._build()

    def _build(self) -> None:
        """A model that has seen nothing."""
        settings = self._settings
        shape = self._data.num_features, settings.hidden, self._plan.num_buckets
        self._model = ClassifierGroup(
            len(self._repetitions),
            *shape,
            loss=settings.loss,
            hidden_dropout=settings.hidden_dropout,
            device=self._device,
        )
        self._model.fill(
            Classifier(
                *shape,
                output_bias=first_bias(settings.loss, self._train, self._plan.num_buckets),
                generator=torch.Generator().manual_seed(self._plan.seed("weights", repetition)),
            )
            for repetition in self._repetitions
        )
        self._stepper = GroupStepper(
            self._model,
            self._hash,
            self._repetitions,
            bf16=settings.rounds(self._device.type),
            label_smoothing=settings.label_smoothing,
            embedding_rate=settings.embedding_rate,
        )

    @property
    def _active(self) -> list[tuple[int, Record]]:
        """Members that are not finished. The others are carried along, and no longer looked at."""
        return [
            (number, record)
            for number, record in enumerate(self._records)
            if record.repetition not in self._metrics
        ]

    def run(self) -> dict[int, dict[str, Any]]:
        started = last_saved = time.monotonic()
        self._resume()
        self._finish(started)
        while active := self._active:
            self._run_epoch(active[0][1].epoch)
            self._judge()
            self._finish(started)
            if time.monotonic() - last_saved >= self._settings.checkpoint_seconds:
                self._save(started)
                last_saved = time.monotonic()
        return self._metrics

    # One epoch -----------------------------------------------------------------------------

    def _batches(self, epoch: int) -> Iterator[GroupBatch]:
        """The order and the features left out are drawn from the seed alone."""
        settings = self._settings
        rng = np.random.default_rng(self._plan.seed("shared order", None, epoch))

        def examples() -> Iterator[Examples]:
            for batch in self._train.shuffled(self._plan.batch_size, rng):
                kept = drop_features(batch.features, settings.feature_dropout, rng)
                yield replace(batch, features=kept)

        return batches_of(
            examples(), self._data.num_features, settings.loss, self._train.mean_weight
        )

    def _run_epoch(self, epoch: int) -> None:
        settings = self._settings
        self._stepper.seed(self._plan.seed("shared dropout", None, epoch))
        recent = torch.zeros(len(self._records), device=self._device)
        total = np.zeros(len(self._records))
        last_event, steps_seen = 0.0, 0
        with Prefetcher(self._batches(epoch), self._device) as batches:
            self._clock.start()
            for batch in batches:
                self._clock.mark()
                rate = learning_rate(
                    settings.learning_rate,
                    settings.schedule,
                    settings.warmup,
                    self._stepper.state.steps,
                    self._steps,
                )
                recent += self._stepper.step(batch, rate)
                self._clock.mark()
                steps_seen += 1
                self._examples_seen += len(batch)
                due = time.monotonic() - last_event > _EVENT_SECONDS
                if due or steps_seen == _SMOOTHED_STEPS:
                    total += self._note(recent, steps_seen)
                    recent, steps_seen = torch.zeros_like(recent), 0
                    last_event = time.monotonic()
        if steps_seen:
            total += self._note(recent, steps_seen)
        for number, record in self._active:
            record.end_epoch(float(total[number]) / self._steps_per_epoch)

    def _note(self, summed: torch.Tensor, steps: int) -> Any:
        values = summed.double().cpu().numpy()
        self._clock.read()
        for number, record in self._active:
            record.note(float(values[number]) / steps)
            self._event(record)
        return values

    def _event(self, record: Record, **more: Any) -> None:
        self._on_event(record.event(self._stepper.state.steps, self._steps, **more))

    def _judge(self) -> None:
        """Compare this epoch with the best so far, on held-out queries."""
        for number, record in self._active:
            if not len(self._held_out):
                record.accept()
                self._event(record)
                continue
            member = self._model.member(number)
            loss, precision = held_out_quality(
                member,
                self._held_out,
                partial(self._targets, record.repetition),
                self._plan.batch_size,
            )
            record.judge(loss, precision, partial(weights_of, member))
            self._event(record, held_out_loss=loss)

    def _targets(self, repetition: int, examples: Examples) -> TargetRows:
        weights = np.ones_like(examples.weights)
        return targets_of(examples, weights, self._hash, repetition, self._settings.loss)

    def _finish(self, started: float) -> None:
        """Export the members whose training is over."""
        for number, record in self._active:
            if not record.stops:
                continue
            model = self._model.copy_of(number)
            if record.best is not None:
                model.load_state_dict({n: torch.from_numpy(a) for n, a in record.best.items()})
            parity = export_repetition(self._plan, self._data, record.repetition, model)
            parameters = sum(p.numel() for p in model.parameters())
            metrics = record.metrics(parameters, parity, self._seconds(started))
            metrics["group"] = self._throughput()
            Workspace.finish(self._plan.models, record.repetition, metrics)
            self._metrics[record.repetition] = metrics
            self._event(record, finished=True, waiting=self._clock.waiting_share)

    def _seconds(self, started: float) -> float:
        """A member's share of the time since ``started``."""
        return (time.monotonic() - started) / len(self._records)

    def _throughput(self) -> dict[str, Any]:
        """How the group was trained by this run, and how well its device was used."""
        seconds = self._clock.working + self._clock.waiting
        return {
            "repetitions": list(self._repetitions),
            "device": self._device.type,
            "precision": "bf16" if self._settings.rounds(self._device.type) else "float32",
            "queries_per_second": round(self._examples_seen / seconds, 1) if seconds else None,
            "waiting_share": round(self._clock.waiting_share, 4),
        }

    # Checkpoints ---------------------------------------------------------------------------

    def _save(self, started: float) -> None:
        for number, record in self._active:
            best, progress = record.save(self._seconds(started))
            path = Workspace.checkpoint_path(self._plan.models, record.repetition)
            write_checkpoint(path, self._stepper.state.save(number) | best, progress)

    def _resume(self) -> None:
        """Continue all members, or start all over if one of them cannot."""
        try:
            for number, record in enumerate(self._records):
                path = Workspace.checkpoint_path(self._plan.models, record.repetition)
                if (found := read_checkpoint(path)) is None:
                    continue
                self._stepper.state.load(number, record.restore(*found))
            if len({record.epoch for record in self._records}) > 1:
                raise ValueError("a checkpoint was damaged")
        except (KeyError, RuntimeError, TypeError, ValueError):  # not of this model after all
            del self._model, self._stepper  # two of them may not fit
            self._build()
            for record in self._records:
                record.reset()
