"""Training, exporting and checking one repetition, which needs nothing of any other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mach.errors import ConfigError
from mach.features import SparseBatch
from trainer.checkpoint import read_checkpoint, write_checkpoint
from trainer.examples import Examples, ExamplesReader
from trainer.export import Weights, build_model, write_model
from trainer.judge import held_out_quality
from trainer.loss import TargetRows
from trainer.model import Classifier
from trainer.optimizer import Stepper, learning_rate
from trainer.parity import check_parity, open_session, stored_weights
from trainer.plan import Plan, resolve_device
from trainer.prepare import PreparedData
from trainer.progress import TrainingEvent
from trainer.sampled import SampledStepper
from trainer.workspace import Workspace, atomic_path

__all__ = ["train_repetition"]

_PARITY_QUERIES = 256
_EVENT_SECONDS = 0.25
_SMOOTHED_STEPS = 100


def train_repetition(
    plan: Plan, repetition: int, on_event: Callable[[TrainingEvent], None]
) -> dict[str, Any]:
    """Train, export and check one repetition; returns its metrics.

    Continues from the last checkpoint of a run that was interrupted; one that is damaged or of
    another shape is dropped and the repetition starts over.

    Raises:
        ConfigError: if training diverges or the disk is full.
        MachError: if the exported model does not agree with the trained one.
    """
    torch.set_num_threads(plan.settings.threads)
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
        self._epoch = 0  # epochs done
        self._history: list[dict[str, float]] = []
        self._best: dict[str, NDArray[Any]] | None = None  # weights, if not those of now
        self._best_epoch = 0
        self._seconds = 0.0  # spent by runs before this one
        self._loss = float("nan")

    def _build(self) -> None:
        """A model that has seen nothing."""
        settings = self._settings
        self._model = Classifier(
            self._data.num_features,
            settings.hidden,
            self._plan.num_buckets,
            loss=settings.loss,
            hidden_dropout=settings.hidden_dropout,
            output_bias=self._first_bias(),
            generator=torch.Generator().manual_seed(self._seed("weights")),
        ).to(self._device)
        self._stepper = self._make_stepper()

    def _first_bias(self) -> float:
        """Log-odds of any bucket being wanted, so that no time goes into learning that."""
        if self._settings.loss == "softmax":  # it takes no notice of what all buckets share
            return 0.0
        wanted = self._train.num_pairs / max(1, len(self._train)) / self._plan.num_buckets
        return -math.log(max(1.0, 1 / wanted - 1))

    def _make_stepper(self) -> Stepper | SampledStepper:
        settings = self._settings
        sampled = settings.gradient_threshold and not settings.label_smoothing
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
        )

    def _seed(self, purpose: str, epoch: int = 0) -> int:
        """A seed for one purpose, the same whether or not the run was interrupted."""
        words = [self._settings.seed, self._repetition, epoch, *purpose.encode()]
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        self._resume()
        last_saved = started
        self._model.train()
        while self._epoch < self._settings.epochs and not self._stops():
            self._run_epoch()
            self._judge()
            if time.monotonic() - last_saved >= self._settings.checkpoint_seconds:
                self._save(time.monotonic() - started)
                last_saved = time.monotonic()
        if self._best is not None:
            self._model.load_state_dict({n: torch.from_numpy(a) for n, a in self._best.items()})
        metrics = {
            "repetition": self._repetition,
            "epochs": self._epoch,
            "best_epoch": self._best_epoch,
            "history": self._history,
            "parameters": sum(p.numel() for p in self._model.parameters()),
            "parity": self._export(),
            "seconds": round(self._seconds + time.monotonic() - started, 3),
        }
        Workspace.finish(self._plan.models, self._repetition, metrics)
        self._event(finished=True)
        return metrics

    def _stops(self) -> bool:
        patience = self._settings.patience
        return bool(patience and len(self._held_out)) and self._epoch - self._best_epoch >= patience

    # One epoch -----------------------------------------------------------------------------

    def _run_epoch(self) -> None:
        settings = self._settings
        self._stepper.seed(self._seed("dropout", self._epoch))
        rng = np.random.default_rng(self._seed("order", self._epoch))
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
            features = _drop_features(examples.features, settings.feature_dropout, rng)
            targets = self._targets(examples, examples.weights / mean_weight)
            loss = self._stepper.step(features, targets, rate)
            recent += loss
            steps_seen += 1
            if time.monotonic() - last_event > _EVENT_SECONDS or steps_seen == _SMOOTHED_STEPS:
                total += self._note(recent, steps_seen)
                recent, steps_seen, last_event = torch.zeros_like(recent), 0, time.monotonic()
        if steps_seen:
            total += self._note(recent, steps_seen)
        self._epoch += 1
        self._history.append({"train_loss": round(total / self._steps_per_epoch, 6)})

    def _note(self, summed: torch.Tensor, steps: int) -> float:
        value = float(summed)
        if not np.isfinite(value):
            raise ConfigError(
                f"training of repetition {self._repetition} diverged in epoch {self._epoch + 1}: "
                "the loss is no number; lower learning_rate"
            )
        self._loss = value / steps
        self._event()
        return value

    def _targets(self, examples: Examples, weights: NDArray[np.float32]) -> TargetRows:
        buckets = self._hash.buckets(self._repetition, examples.classes)
        targets = TargetRows(buckets, examples.class_weights, examples.class_splits, weights)
        return targets if self._settings.loss == "softmax" else targets.relevance()

    def _event(self, held_out_loss: float | None = None, *, finished: bool = False) -> None:
        self._on_event(
            TrainingEvent(
                repetition=self._repetition,
                epoch=self._epoch,
                epochs=self._settings.epochs,
                step=self._stepper.steps,
                steps=self._steps,
                loss=self._loss,
                held_out_loss=held_out_loss,
                finished=finished,
            )
        )

    # Held-out queries ----------------------------------------------------------------------

    def _judge(self) -> None:
        """Compare this epoch with the best so far, on held-out queries."""
        if not len(self._held_out):
            self._best_epoch = self._epoch
            self._event()
            return
        loss, precision = held_out_quality(
            self._model,
            self._held_out,
            lambda examples: self._targets(examples, np.ones_like(examples.weights)),
            self._plan.batch_size,
        )
        best_before = self._history[self._best_epoch - 1] if self._best_epoch else None
        self._history[-1] |= {
            "held_out_loss": round(loss, 6),
            "held_out_bucket_P@1": round(precision, 6),
        }
        stops_early = bool(self._settings.patience)
        if not stops_early or best_before is None or loss < best_before["held_out_loss"]:
            self._best_epoch = self._epoch
            self._best = None
            if stops_early and self._epoch < self._settings.epochs:  # a later one may be worse
                self._best = {n: array.copy() for n, array in self._weights().items()}
        self._event(loss)

    def _weights(self) -> dict[str, NDArray[Any]]:
        """The model's arrays; on a CPU they share its memory."""
        return {n: v.detach().cpu().numpy() for n, v in self._model.state_dict().items()}

    # Checkpoints ---------------------------------------------------------------------------

    def _save(self, seconds: float) -> None:
        arrays = self._stepper.state()
        if self._best is not None:
            arrays |= {f"best.{name}": value for name, value in self._best.items()}
        progress = {
            "epoch": self._epoch,
            "best_epoch": self._best_epoch,
            "history": self._history,
            "seconds": self._seconds + seconds,
        }
        write_checkpoint(self._checkpoint, arrays, progress)

    def _resume(self) -> None:
        found = read_checkpoint(self._checkpoint)
        if found is None:
            return
        arrays, progress = found
        best = {n.removeprefix("best."): a for n, a in arrays.items() if n.startswith("best.")}
        try:
            self._stepper.load_state({n: a for n, a in arrays.items() if not n.startswith("best.")})
            self._epoch, self._best_epoch = int(progress["epoch"]), int(progress["best_epoch"])
            self._history = list(progress["history"])
            self._seconds = float(progress["seconds"])
            self._best = best or None
        except (KeyError, RuntimeError, TypeError, ValueError):  # not of this model after all
            self._build()
            self._epoch = self._best_epoch = 0
            self._history, self._seconds, self._best = [], 0.0, None

    # Export --------------------------------------------------------------------------------

    def _export(self) -> dict[str, Any]:
        quantization = self._settings.quantization
        reference = self._model.to("cpu")
        weights = Weights(**{n: array.copy() for n, array in self._weights().items()})
        stored = stored_weights(weights, quantization)
        batch = _sample(self._held_out, self._train)
        trained = reference.log_probabilities(batch)
        reference.load_state_dict(
            {name: torch.from_numpy(array) for name, array in vars(stored).items()}
        )
        kept = reference.log_probabilities(batch)
        path = Workspace.model_path(self._plan.models, self._repetition)
        with atomic_path(path) as draft:
            model = build_model(
                weights, self._hash, self._repetition, quantization, self._settings.loss
            )
            write_model(model, draft)
            parity = check_parity(open_session(str(draft)), batch, trained, kept, quantization)
        return {
            "queries": parity.queries,
            "max_difference": parity.max_difference,
            "mean_divergence": parity.mean_divergence,
        }


def _sample(held_out: ExamplesReader, train: ExamplesReader) -> SparseBatch:
    source = held_out if len(held_out) else train
    return source.read(0, min(len(source), _PARITY_QUERIES)).features


def _drop_features(batch: SparseBatch, share: float, rng: np.random.Generator) -> SparseBatch:
    """Leave out each entry with probability ``share`` and scale the rest up to make up for it."""
    if not share:
        return batch
    kept = rng.random(len(batch.indices)) >= share
    before = np.concatenate([[0], np.cumsum(kept)])
    return SparseBatch(
        batch.indices[kept],
        batch.values[kept] / np.float32(1 - share),
        before[batch.splits].astype(np.int32),
    )
