"""Whole runs in groups: the same models in any grouping, continued from where they were."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mach.bundle import Bundle
from mach.errors import ConfigError
from mach.evaluation import evaluate
from trainer.batched import memory, run
from trainer.batched.memory import Sizes, split_evenly
from trainer.interactions import read_queries
from trainer.run import train, train_one
from trainer.workspace import Workspace


class Killed(BaseException):
    """Like a signal: nothing catches it."""


@pytest.fixture
def grouped(job):
    """Changes of settings to a job of batched repetitions."""

    def make(out=None, **changes):
        changes = {"engine": "batched", "repetitions": 3, "group": 3, **changes}
        settings = job.settings.model_copy(update=changes)
        return replace(job, settings=settings, out=out or job.out)

    return make


@pytest.fixture(scope="module")
def whole():
    """Losses of three repetitions in one group that nothing interrupts; made on first use."""
    return []


@pytest.fixture
def undisturbed(whole, grouped, tmp_path, silent):
    if not whole:
        whole.append(histories(train(grouped(tmp_path / "whole"), silent)))
    return whole[0]


def histories(manifest):
    return [
        [list(epoch.values()) for epoch in record["history"]]
        for record in manifest.training["repetitions"]
    ]


def test_a_group_learns(grouped, store, silent):
    manifest = train(grouped(epochs=8), silent)
    bundle = Bundle.open(grouped().out)
    bundle.verify()
    (result,) = evaluate(bundle, read_queries([store.held_out]))
    assert result.metrics["P@1"] > 0.4
    record = manifest.training["repetitions"][1]
    assert record["group"]["repetitions"] == [0, 1, 2]
    assert record["group"]["precision"] == "float32"
    assert 0 <= record["group"]["waiting_share"] <= 1
    assert record["group"]["queries_per_second"] > 0
    assert "group" not in manifest.training["settings"]


def test_a_repetition_is_the_same_in_any_group(grouped, tmp_path, silent, undisturbed):
    """Up to rounding: in a group of three, in groups of two and one, and by itself."""
    two = train(grouped(group=2), silent)
    np.testing.assert_allclose(histories(two), undisturbed, rtol=1e-3)
    alone = train_one(grouped(tmp_path / "alone"), 1, silent)
    losses = [list(epoch.values()) for epoch in alone["history"]]
    np.testing.assert_allclose(losses, undisturbed[1], rtol=1e-3)
    assert [r["group"]["repetitions"] for r in two.training["repetitions"]] == [[0], [1, 2], [1, 2]]


def test_the_same_seed_gives_the_same_version(grouped, tmp_path, silent):
    few = {"epochs": 1, "repetitions": 2, "feature_dropout": 0.2}
    first = train(grouped(**few), silent)
    again = train(grouped(tmp_path / "again", **few), silent)
    other = train(grouped(tmp_path / "other", seed=1, **few), silent)
    assert first.version == again.version != other.version


@pytest.mark.slow
def test_two_processes_of_groups(grouped, silent):
    manifest = train(grouped(group=2, workers=2, epochs=1), silent)
    assert [r["group"]["repetitions"] for r in manifest.training["repetitions"]] == [
        [0], [1, 2], [1, 2],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"loss": "softmax", "label_smoothing": 0.1, "validation_fraction": 0.0},
        {"engine": "single", "precision": "bf16"},
    ],
)
def test_settings_train(grouped, silent, changes):
    manifest = train(grouped(epochs=1, repetitions=2, group=2, **changes), silent)
    Bundle.open(grouped().out).verify()
    for name, value in changes.items():
        assert manifest.training["settings"][name] == value


@pytest.fixture
def epochs(monkeypatch):
    """(repetitions, epoch) of the epochs that are run."""
    seen = []
    original = run._GroupRun._run_epoch
    monkeypatch.setattr(
        run._GroupRun,
        "_run_epoch",
        lambda self, epoch: seen.append((self._repetitions, epoch)) or original(self, epoch),
    )
    return seen


def kill_at_checkpoint(monkeypatch, at):
    original, calls = run.write_checkpoint, []

    def dying(*args):
        calls.append(1)
        if len(calls) == at:
            raise Killed
        original(*args)

    monkeypatch.setattr(run, "write_checkpoint", dying)


@pytest.mark.parametrize(
    ("at", "continued"),
    [
        (4, [((0, 1, 2), 1), ((0, 1, 2), 2)]),  # after the first epoch's three
        (5, [((0,), 2), ((1, 2), 1), ((1, 2), 2)]),  # between those of the second
    ],
)
def test_a_killed_group_continues(grouped, undisturbed, silent, monkeypatch, epochs, at, continued):
    with monkeypatch.context() as patch:
        kill_at_checkpoint(patch, at)
        with pytest.raises(Killed):
            train(grouped(), silent)
    epochs.clear()
    rest = train(grouped(), silent)
    assert epochs == continued
    np.testing.assert_allclose(histories(rest), undisturbed, rtol=1e-3)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another shape"])
def test_a_damaged_checkpoint_starts_over(
    grouped, undisturbed, silent, monkeypatch, epochs, damage
):
    with monkeypatch.context() as patch:
        kill_at_checkpoint(patch, 4)
        with pytest.raises(Killed):
            train(grouped(), silent)
    (path,) = Workspace(grouped().out).root.glob("model-*/repetition-001.checkpoint.npz")
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        with np.load(path) as file:
            at = data.index(file["model.output"].tobytes())
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    else:
        with np.load(path) as file:
            arrays = dict(file)
        arrays["model.output"] = arrays["model.output"][:, :-1]
        np.savez(path, **arrays)
    epochs.clear()
    np.testing.assert_allclose(histories(train(grouped(), silent)), undisturbed, rtol=1e-3)
    # Where not even its epoch can be read, the others need not wait for it.
    assert epochs[-1] == (((1,) if damage == "truncated" else (0, 1, 2)), 2)
    assert (epochs[-1][0], 0) in epochs


def test_members_stop_early_each_for_itself(grouped, silent):
    manifest = train(grouped(epochs=30, learning_rate=0.3, patience=2, quantization="fp16"), silent)
    records = manifest.training["repetitions"]
    for record in records:
        assert record["epochs"] == min(30, record["best_epoch"] + 2)
    assert min(record["epochs"] for record in records) < 30


def test_divergence_is_named(grouped, silent, monkeypatch):
    monkeypatch.setattr(run, "learning_rate", lambda *_: float("inf"))
    with pytest.raises(ConfigError, match="training of repetition 0 diverged in epoch 1"):
        train(grouped(), silent)


def test_too_little_memory_is_one_sentence(grouped, silent, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.GroupStepper, "step", full)
    with pytest.raises(ConfigError, match="too small for 3 repetitions at once"):
        train(grouped(), silent)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_chooses_groups_and_bf16(grouped, silent):
    manifest = train(grouped(device="cuda", engine="auto", group=None), silent)
    for record in manifest.training["repetitions"]:
        assert record["group"]["repetitions"] == [0, 1, 2]
        assert (record["group"]["device"], record["group"]["precision"]) == ("cuda", "bf16")


# Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [(32, 32, [32]), (32, 20, [16, 16]), (7, 3, [2, 2, 3]), (2, 9, [2]), (0, 3, [])],
)
def test_groups_are_few_and_even(count, most, sizes):
    parts = split_evenly(range(10, 10 + count), most)
    assert [len(part) for part in parts] == sizes
    assert [r for part in parts for r in part] == list(range(10, 10 + count))


def test_what_fits_is_what_the_tensors_take():
    """The reckoning against tensors of these sizes: 0.8 GB of weights at the paper's scale."""
    paper = Sizes(80_000, 2_000, 20_000, 8_192, 60_000, 2)
    weights = 4 * (80_000 * 2_000 + 4 * 20_000 * 2_000)
    assert weights < paper.member_bytes < 2.2 * weights
    assert paper.fitting(0) == 1
    assert paper.fitting(78 << 30) >= 16
    assert paper.fitting(139 << 30) > paper.fitting(78 << 30)


def test_a_group_is_chosen_by_free_memory(grouped, silent, monkeypatch):
    plans = []
    original = memory.groups_of
    monkeypatch.setattr(
        "trainer.workers.groups_of", lambda plan, r: plans.append(plan) or original(plan, r)
    )
    train(grouped(epochs=1), silent)
    (plan,) = plans
    plan = replace(plan, settings=plan.settings.model_copy(update={"group": None}))
    assert memory.largest_group(plan, torch.device("cpu")) == 1
    cuda = torch.device("cuda")
    monkeypatch.setattr(Sizes, "of", lambda *_: Sizes(80_000, 2_000, 20_000, 8_192, 60_000, 2))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (78 << 30, 80 << 30))
    assert 16 <= memory.largest_group(plan, cuda) < 64
    fixed = replace(plan, settings=plan.settings.model_copy(update={"group": 5}))
    assert memory.largest_group(fixed, cuda) == 5
