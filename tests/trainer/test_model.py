"""The classifier, its loss and its optimizer against PyTorch's own, done the plain way."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mach.features import SparseBatch
from trainer import _kernels as kernels
from trainer.loss import TargetRows, binary_cross_entropy, cross_entropy
from trainer.model import Classifier, SparseInput
from trainer.optimizer import Stepper, learning_rate
from trainer.sampled import SampledStepper

CPU = torch.device("cpu")
F, H, B = 12, 5, 7


def batch_of(rng, n, most=4):
    rows = []
    for _ in range(n):
        indices = np.sort(rng.choice(F, rng.integers(0, most + 1), replace=False))
        rows.append((indices.astype(np.int32), rng.random(len(indices)).astype(np.float32)))
    return SparseBatch.from_rows(rows)


def dense(batch):
    matrix = torch.zeros(len(batch), F)
    for row in range(len(batch)):
        for at in range(batch.splits[row], batch.splits[row + 1]):
            matrix[row, batch.indices[at]] += float(batch.values[at])
    return matrix


def targets_of(rng, n):
    splits = np.concatenate([[0], np.cumsum(rng.integers(1, 4, n))]).astype(np.int64)
    shares = rng.random(splits[-1]).astype(np.float32)
    shares /= np.add.reduceat(shares, splits[:-1]).repeat(np.diff(splits))
    weights = rng.random(n).astype(np.float32) + 0.5
    return TargetRows(rng.integers(0, B, splits[-1]), shares, splits, weights)


def model_of(seed=0, loss="softmax"):
    return Classifier(F, H, B, loss=loss, generator=torch.Generator().manual_seed(seed))


LOSSES = ["softmax", "one-vs-all"]


def both(seed=0, loss="softmax", threshold=0.05):
    """Either stepper, over models that are alike."""
    return [
        Stepper(model_of(seed, loss), embedding_rate=2.0),
        SampledStepper(model_of(seed, loss), threshold=threshold, embedding_rate=2.0),
    ]


def plain_loss(logits, targets, loss):
    """By the definitions, in PyTorch's words."""
    rows = torch.from_numpy(np.repeat(np.arange(len(targets.weights)), np.diff(targets.splits)))
    at = (rows, torch.from_numpy(targets.buckets))
    shares = torch.from_numpy(targets.shares)
    wanted = torch.zeros_like(logits).index_put_(at, shares, accumulate=loss == "softmax")
    if loss == "softmax":
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    else:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, wanted, reduction="none"
        ).sum(dim=1)
    return (losses * torch.from_numpy(targets.weights)).mean()


def plain_logits(model, matrix, embedding):
    hidden = torch.relu(matrix @ embedding + model.hidden_bias)
    return hidden @ model.output.T + model.output_bias


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_forward_is_the_formula(seed, n):
    batch = batch_of(np.random.default_rng(seed), n)
    model = model_of(seed)
    expected = plain_logits(model, dense(batch), model.embedding)
    torch.testing.assert_close(model(SparseInput.of(batch, CPU)), expected)
    torch.testing.assert_close(
        torch.from_numpy(model.log_probabilities(batch)), torch.log_softmax(expected, 1)
    )
    one_vs_all = torch.from_numpy(model_of(seed, "one-vs-all").log_probabilities(batch)).exp()
    each = torch.sigmoid(expected)
    torch.testing.assert_close(one_vs_all, each / each.sum(dim=1, keepdim=True))


def test_a_batch_without_any_feature():
    batch = SparseBatch.from_rows([(np.empty(0, np.int32), np.empty(0, np.float32))] * 3)
    for stepper in both():
        loss = stepper.step(batch, targets_of(np.random.default_rng(0), 3), rate=0.1)
        assert np.isfinite(float(loss))


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.9]))
def test_loss_and_gradient_are_those_of_pytorch(seed, n, smoothing):
    rng = np.random.default_rng(seed)
    targets = targets_of(rng, n).to(CPU)
    wanted = torch.zeros(n, B).index_put_(
        (targets.rows, targets.buckets), targets.shares, accumulate=True
    )
    logits = torch.tensor(rng.normal(size=(n, B)), dtype=torch.float32, requires_grad=True)
    plain = logits.detach().clone().requires_grad_()
    loss = cross_entropy(logits, targets, smoothing)
    losses = torch.nn.functional.cross_entropy(
        plain, wanted, reduction="none", label_smoothing=smoothing
    )
    expected = (losses * targets.weights).mean()
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(logits.grad, plain.grad)


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_one_vs_all_loss_and_gradient_are_those_of_pytorch(seed, n):
    rng = np.random.default_rng(seed)
    targets = targets_of(rng, n).relevance()
    logits = torch.tensor(rng.normal(size=(n, B)), dtype=torch.float32, requires_grad=True)
    plain = logits.detach().clone().requires_grad_()
    loss = binary_cross_entropy(logits, targets.to(CPU))
    expected = plain_loss(plain, targets, "one-vs-all")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad, plain.grad)


def test_relevance_is_relative_to_the_most_wanted_and_lists_a_bucket_once():
    targets = TargetRows(
        np.array([4, 1, 4, 6, 0, 0], np.int64),
        np.array([0.25, 0.5, 0.25, 1, 0.2, 0.8], np.float32),
        np.array([0, 3, 4, 6], np.int64),
        np.array([1, 2, 3], np.float32),
    )
    found = targets.relevance()
    assert found.buckets.tolist() == [1, 4, 6, 0]
    assert found.shares.tolist() == [1, 0.5, 1, 1]
    assert found.splits.tolist() == [0, 2, 3, 4]
    assert found.weights.tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", LOSSES)
def test_steps_are_adam_and_row_wise_rms(kind):
    """Both steppers against PyTorch's Adam, and the formula for rows in NumPy's terms.

    Without sampling (a threshold that no probability is below) the two do the same.
    """
    rng = np.random.default_rng(0)
    plain = model_of()
    exact, sparse = both(loss=kind, threshold=1e-9)
    embedding = plain.embedding.detach().clone().requires_grad_()
    adam = torch.optim.Adam(plain.dense, lr=0.05, betas=(0.9, 0.99))
    mean_square = torch.zeros(F)
    for step in range(1, 13):
        batch, targets = batch_of(rng, 4), targets_of(rng, 4)
        if kind == "one-vs-all":
            targets = targets.relevance()
        losses = [float(stepper.step(batch, targets, 0.05)) for stepper in (exact, sparse)]
        expected = plain_loss(plain_logits(plain, dense(batch), embedding), targets, kind)
        assert losses == pytest.approx([float(expected.detach())] * 2, rel=1e-3)
        expected.backward()
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            for row in np.unique(batch.indices).tolist():
                gradient = embedding.grad[row]
                mean_square[row] = 0.99 * mean_square[row] + 0.01 * gradient.square().mean()
                root = (mean_square[row] / (1 - 0.99**step)).sqrt() + 1e-8
                embedding[row] -= 0.1 * gradient / root
        embedding.grad = None
    for stepper in (exact, sparse):
        torch.testing.assert_close(
            stepper.model.embedding, embedding.detach(), rtol=1e-2, atol=1e-3, check_stride=False
        )
        for mine, theirs in zip(stepper.model.dense, plain.dense, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", LOSSES)
def test_sampled_gradient_is_unbiased_and_its_large_entries_exact(kind):
    rng = np.random.default_rng(4)
    n, num_buckets, threshold = 3, 200, 0.05
    logits = torch.from_numpy(rng.normal(scale=2, size=(n, num_buckets)).astype(np.float32))
    one_vs_all = kind == "one-vs-all"
    probabilities = torch.softmax(logits, 1).numpy()
    if one_vs_all:
        probabilities = torch.sigmoid(logits - 4).numpy()
    buckets = np.array([5, 9, 9, 7], np.int64)
    shares = np.array([1, 0.25, 0.25, 0.5], np.float32)
    splits = np.array([0, 1, 3, 4], np.int64)
    weights = np.array([1, 2, 0.5], np.float32)
    targets = TargetRows(buckets, shares, splits, weights)
    if one_vs_all:
        targets = targets.relevance()
    buckets, shares, splits = targets.buckets, targets.shares, targets.splits
    wanted = np.zeros((n, num_buckets))
    np.add.at(wanted, (np.repeat(np.arange(n), np.diff(splits)), buckets), shares)
    exact = weights[:, None] * (probabilities - wanted)
    kernels.seed(1)
    rounds, total = 4000, np.zeros_like(exact)
    most = len(buckets) + n + int(2 * probabilities.sum() / threshold)
    columns, values = np.full(most + 1, -1, np.int32), np.empty(most + 1, np.float32)
    starts = np.empty(n + 1, np.int64)
    for _ in range(rounds):
        loss = kernels.sample_gradient(
            probabilities.copy(), buckets, shares, splits, weights, threshold, one_vs_all,
            columns, values, starts,
        )  # fmt: skip
        estimate = np.zeros_like(exact)
        rows = np.repeat(np.arange(n), np.diff(starts))
        np.add.at(estimate, (rows, columns[: starts[-1]]), values[: starts[-1]])
        large = (probabilities >= threshold) | (wanted > 0)
        np.testing.assert_allclose(estimate[large], exact[large], rtol=1e-4, atol=1e-6)
        total += estimate
    assert columns[-1] == -1  # the bound on their number holds
    losses = wanted * np.log(probabilities)
    if one_vs_all:  # small ones by their first-order term
        losses += (1 - wanted) * np.where(large, np.log1p(-probabilities), -probabilities)
    assert loss == pytest.approx(-(weights[:, None] * losses).sum(), rel=1e-4)
    # A small entry is kept with probability p / threshold: its mean has this standard error.
    error = weights[:, None] * np.sqrt(probabilities * threshold / rounds)
    assert (np.abs(total / rounds - exact) < 5 * error + 1e-6).all()


@pytest.mark.parametrize("kind", [0, 1])
def test_a_step_leaves_other_rows_alone(kind):
    stepper = both()[kind]
    before = stepper.model.embedding.clone()
    batch = SparseBatch.from_rows([(np.array([3, 5], np.int32), np.ones(2, np.float32))])
    stepper.step(batch, targets_of(np.random.default_rng(1), 1), rate=0.1)
    changed = (stepper.model.embedding != before).any(dim=1).nonzero().ravel().tolist()
    assert set(changed) <= {3, 5}
    assert changed


@pytest.mark.parametrize("kind", [0, 1])
def test_state_continues_exactly(kind):
    rng = np.random.default_rng(3)
    steps = [(batch_of(rng, 4), targets_of(rng, 4)) for _ in range(8)]

    def run(stepper, part):
        stepper.seed(7)
        for batch, targets in part:
            stepper.step(batch, targets, 0.05)

    whole = both()[kind]
    run(whole, steps[:5])
    state = {name: array.copy() for name, array in whole.state().items()}
    run(whole, steps[5:])
    other = both(seed=9)[kind]
    other.load_state(state)
    run(other, steps[5:])
    for name, array in whole.state().items():
        np.testing.assert_array_equal(array, other.state()[name], err_msg=name)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_state_of_another_shape_is_refused(kind):
    larger = Classifier(F + 1, H, B)
    state = (
        Stepper(larger) if kind == 0 else SampledStepper(larger, threshold=0.05, embedding_rate=1.0)
    ).state()
    with pytest.raises((RuntimeError, ValueError)):
        both()[kind].load_state(state)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate(schedule):
    rates = [learning_rate(0.5, schedule, 0.1, step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[10] == 0.5
    assert min(rates) > 0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[-1] < 0.02) == (schedule != "constant")
