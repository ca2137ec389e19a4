"""What a group takes from a run's plan: the loss, the first bias, the size of a batch."""

from dataclasses import replace

import numpy as np
import pytest

from mach.bundle import Bundle
from trainer.batched import run
from trainer.run import train


@pytest.fixture
def groups(monkeypatch):
    """Groups of the runs, output biases before the first step, and sizes of batches."""
    seen = []
    original = run._GroupRun._run_epoch

    def watched(self, epoch):
        sizes = [len(batch) for batch in self._batches(epoch)]
        seen.append((self, self._model.output_bias.clone(), sizes))
        original(self, epoch)

    monkeypatch.setattr(run._GroupRun, "_run_epoch", watched)
    return seen


@pytest.mark.parametrize("loss", ["one-vs-all", "softmax"])
def test_a_group_has_the_plans_batches_and_the_losss_bias(job, silent, groups, monkeypatch, loss):
    monkeypatch.setattr("trainer.run.default_batch", lambda num_queries: 48)
    changes = {"engine": "batched", "group": 2, "epochs": 1, "loss": loss, "batch_size": None}
    job = replace(job, settings=job.settings.model_copy(update=changes))
    train(job, silent)
    ((group, bias, sizes),) = groups
    assert sizes[0] == max(sizes) == 48
    assert sum(sizes) == len(group._train)
    wanted = group._train.num_pairs / len(group._train) / 32
    expected = np.log(wanted / (1 - wanted)) if loss == "one-vs-all" else 0.0
    np.testing.assert_allclose(bias.numpy(), expected, rtol=1e-5)
    assert group._model.member(1).loss == loss
    Bundle.open(job.out).verify()


@pytest.mark.parametrize("loss", ["one-vs-all", "softmax"])
def test_a_group_begins_where_single_repetitions_do(job, silent, tmp_path, loss):
    """Hardly moved, the same weights have the same loss in either engine, whatever the order."""
    still = {"learning_rate": 1e-7, "hidden_dropout": 0.0, "gradient_threshold": 0.0}
    losses = {}
    for engine in ("single", "batched"):
        changes = {"engine": engine, "group": 2, "epochs": 1, "loss": loss, **still}
        settings = job.settings.model_copy(update=changes)
        manifest = train(replace(job, settings=settings, out=tmp_path / engine), silent)
        losses[engine] = [
            [record["history"][0][name] for name in ("train_loss", "held_out_loss")]
            for record in manifest.training["repetitions"]
        ]
    held_out = {engine: [pair[1] for pair in pairs] for engine, pairs in losses.items()}
    np.testing.assert_allclose(held_out["batched"], held_out["single"], rtol=1e-5)
    # Batches differ, and the last one, which is smaller, counts as much as the others.
    np.testing.assert_allclose(losses["batched"], losses["single"], rtol=5e-3)
