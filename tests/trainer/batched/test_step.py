"""The batched model's step against the plain one, member by member."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.features import SparseBatch
from mach.hashing import UniversalHash
from trainer.batched import batch as module
from trainer.batched.batch import batches_of
from trainer.batched.model import ClassifierGroup
from trainer.batched.stepper import GroupStepper
from trainer.examples import Examples
from trainer.model import Classifier
from trainer.optimizer import Stepper
from trainer.wanted import targets_of

F, H, B, K = 12, 5, 7, 40
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
HASH = UniversalHash.draw(K, B, 6, 0)


def examples_of(rng, n, most=4):
    rows = []
    for _ in range(n):
        indices = np.sort(rng.choice(F, rng.integers(0, most + 1), replace=False))
        rows.append((indices.astype(np.int32), rng.random(len(indices)).astype(np.float32)))
    splits = np.concatenate([[0], np.cumsum(rng.integers(1, 4, n))]).astype(np.int64)
    shares = rng.random(splits[-1]).astype(np.float32)
    shares /= np.add.reduceat(shares, splits[:-1]).repeat(np.diff(splits))
    return Examples(
        SparseBatch.from_rows(rows),
        rng.integers(0, K, splits[-1]).astype(np.int32),
        shares,
        splits,
        rng.random(n).astype(np.float32) + 0.5,
    )


def classifier(repetition, loss="softmax"):
    return Classifier(F, H, B, loss=loss, generator=torch.Generator().manual_seed(repetition))


def group_of(repetitions, device="cpu", dropout=0.0, loss="softmax", **options):
    model = ClassifierGroup(
        len(repetitions), F, H, B, loss=loss, hidden_dropout=dropout, device=torch.device(device)
    )
    model.fill(classifier(r) for r in repetitions)
    return GroupStepper(model, HASH, tuple(repetitions), embedding_rate=2.0, **options)


def run(stepper, batches, rate=0.05):
    """Losses of each step, shape (steps, G)."""
    device = stepper.model.device
    return torch.stack(
        [stepper.step(b.to(device), rate) for b in batches_of(batches, F, stepper.model.loss)]
    ).cpu()


def run_plain(repetition, batches, rate=0.05, smoothing=0.0, loss="softmax"):
    stepper = Stepper(classifier(repetition, loss), label_smoothing=smoothing, embedding_rate=2.0)
    losses = []
    for one in batches:
        targets = targets_of(one, one.weights, HASH, repetition, loss)
        losses.append(float(stepper.step(one.features, targets, rate)))
    return stepper.model, losses


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_entries_by_feature_are_the_entries(seed, n, most):
    """Pieces, and what they add up to, are the transposed matrix."""
    examples = examples_of(np.random.default_rng(seed), n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", most)
        (batch,) = batches_of([examples], F, "softmax")
    matrix = np.zeros((F, n), np.float32)
    used, total = batch.used.numpy(), len(batch.rows)
    bounds = [*batch.pieces.tolist(), total]
    for piece in range(len(batch.pieces)):
        owner = piece if piece < len(used) else int(batch.owners[piece - len(used)])
        assert 1 <= bounds[piece + 1] - bounds[piece] <= most
        for at in range(bounds[piece], bounds[piece + 1]):
            matrix[used[owner], batch.rows[at]] += float(batch.row_values[at])
    expected = np.zeros((F, n), np.float32)
    features = examples.features
    for row in range(n):
        for at in range(features.splits[row], features.splits[row + 1]):
            expected[features.indices[at], row] += features.values[at]
    np.testing.assert_array_equal(matrix, expected)
    assert sorted(used.tolist()) == np.unique(features.indices).tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("loss", "smoothing"), [("softmax", 0.0), ("softmax", 0.1), ("one-vs-all", 0.0)]
)
@pytest.mark.parametrize("piece", [1 << 23, 3 * B, 1])
def test_every_member_is_trained_as_if_alone(device, loss, smoothing, piece):
    """However the members and the rows are cut into pieces."""
    rng = np.random.default_rng(1)
    batches = [examples_of(rng, 9) for _ in range(10)]
    repetitions = [0, 3, 5]
    group = group_of(
        repetitions, device, loss=loss, label_smoothing=smoothing, piece_elements=piece
    )
    losses = run(group, batches)
    for number, repetition in enumerate(repetitions):
        model, expected = run_plain(repetition, batches, smoothing=smoothing, loss=loss)
        np.testing.assert_allclose(losses[:, number], expected, rtol=1e-3)
        member = group.model.copy_of(number)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(
                member.state_dict()[name], value, rtol=1e-2, atol=1e-3, msg=name
            )


@pytest.mark.parametrize("device", DEVICES)
def test_a_member_is_the_same_in_any_group(device):
    """Dropout included, which is drawn for all members at once."""
    rng = np.random.default_rng(2)
    batches = [examples_of(rng, 6) for _ in range(8)]
    alone = group_of([4], device, dropout=0.3)
    others = group_of([2, 4, 1], device, dropout=0.3)
    for group in (alone, others):
        group.seed(11)
    np.testing.assert_allclose(run(alone, batches)[:, 0], run(others, batches)[:, 1], rtol=1e-4)
    for mine, theirs in zip(
        alone.model.copy_of(0).parameters(), others.model.copy_of(1).parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_dropout_drops_and_scales_up():
    """With half of the units dropped the mean gradient stays, and single steps differ."""
    rng = np.random.default_rng(3)
    batch = examples_of(rng, 40)
    gradients = {}
    for dropout in (0.0, 0.5):
        group = group_of([0], dropout=dropout)
        group.seed(1)
        total = 0
        for _ in range(100):
            run(group, [batch], rate=0.0)
            total = total + group.state.gradients["output_bias"]
        gradients[dropout] = total / 100
        last = group.state.gradients["output_bias"]
        assert torch.allclose(last, gradients[dropout], rtol=1e-3) == (dropout == 0)
    torch.testing.assert_close(gradients[0.5], gradients[0.0], rtol=0.1, atol=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_products_train_nearly_the_same(device):
    rng = np.random.default_rng(4)
    batches = [examples_of(rng, 8) for _ in range(12)]
    exact, rounded = (group_of([0, 1], device, bf16=bf16) for bf16 in (False, True))
    expected, losses = run(exact, batches), run(rounded, batches)
    assert not torch.equal(expected, losses)
    np.testing.assert_allclose(losses, expected, rtol=0.05)
    assert all(
        getattr(rounded.model, name).dtype == torch.float32
        for name in ("embedding", "hidden_bias", "output", "output_bias")
    )


@pytest.mark.parametrize("device", DEVICES)
def test_members_continue_exactly_in_another_place(device):
    rng = np.random.default_rng(5)
    batches = [examples_of(rng, 4) for _ in range(8)]
    whole = group_of([1, 2], device)
    run(whole, batches[:5])
    saved = [{n: a.copy() for n, a in whole.state.save(g).items()} for g in range(2)]
    run(whole, batches[5:])
    other = group_of([2, 1], device)
    for place, member in ((0, 1), (1, 0)):
        other.state.load(place, saved[member])
    run(other, batches[5:])
    for place, member in ((0, 1), (1, 0)):
        after = other.state.save(place)
        for name, array in whole.state.save(member).items():
            np.testing.assert_allclose(after[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_state_of_another_shape_is_refused():
    larger = ClassifierGroup(
        1, F, H, B + 1, loss="softmax", hidden_dropout=0.0, device=torch.device("cpu")
    )
    stepper = GroupStepper(larger, HASH, (0,))
    run(stepper, [examples_of(np.random.default_rng(0), 2)])
    with pytest.raises((KeyError, RuntimeError)):
        group_of([0]).state.load(0, stepper.state.save(0))
    fresh = group_of([0])
    with pytest.raises(KeyError):  # nothing was trained: there are no moments
        fresh.state.load(0, group_of([0]).state.save(0))


def test_rows_that_are_not_used_stay():
    group = group_of([0, 1])
    before = group.model.embedding.clone()
    batch = Examples(
        SparseBatch.from_rows([(np.array([3, 5], np.int32), np.ones(2, np.float32))]),
        np.array([1], np.int32), np.ones(1, np.float32), np.array([0, 1]), np.ones(1, np.float32),
    )  # fmt: skip
    run(group, [batch])
    changed = (group.model.embedding != before).any(dim=2)
    assert changed.any(dim=1).nonzero().ravel().tolist() == [3, 5]
    assert changed[3].all()


def test_a_batch_without_any_feature():
    empty = SparseBatch.from_rows([(np.empty(0, np.int32), np.empty(0, np.float32))] * 3)
    one = examples_of(np.random.default_rng(0), 3)
    batch = Examples(empty, one.classes, one.class_weights, one.class_splits, one.weights)
    assert run(group_of([0, 1]), [batch]).isfinite().all()


def test_buckets_are_those_of_the_hash():
    large = UniversalHash.draw(2**31 - 1, 20_000, 3, 7)
    model = ClassifierGroup(
        2, 1, 1, 1, loss="softmax", hidden_dropout=0.0, device=torch.device("cpu")
    )
    stepper = GroupStepper(model, large, (0, 2))
    classes = np.array([0, 1, 12345, 2**31 - 2])
    found = stepper.buckets(torch.from_numpy(classes)).numpy()
    np.testing.assert_array_equal(found, [large.buckets(r, classes) for r in (0, 2)])
