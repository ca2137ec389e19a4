"""Repetitions joined into one session answer what each answers alone, to the last bit."""

import numpy as np
import onnx
import pytest

from mach.errors import BundleError
from mach.features import SparseBatch
from mach.inference import LoadedBundle, RepetitionSession, load_groups, repetition_group
from mach.inference.joined import join_models
from mach.v1 import shard_pb2
from mach.wire import encode_rows
from tests.mach.inference.exported import exported_bundle


@pytest.fixture
def bundle(tmp_path):
    return exported_bundle(tmp_path / "bundle", "int4", "one-vs-all")


def rows(bundle):
    rng = np.random.default_rng(0)
    lengths = (1, 7, 3)
    return SparseBatch.from_rows(
        (
            rng.integers(0, bundle.manifest.num_features, n).astype(np.int32),
            rng.normal(size=n).astype(np.float32),
        )
        for n in lengths
    )


def alone(bundle, repetitions):
    batch = rows(bundle)
    return np.stack([RepetitionSession(bundle, r).run(batch) for r in repetitions], axis=1)


def groups_answer(groups, batch):
    return np.concatenate([group.run_padded(*batch.padded()) for group in groups], axis=1)


@pytest.mark.parametrize("repetitions", [[0, 1, 2], [2, 0], [1]])
def test_joined_is_each_alone(bundle, repetitions):
    (group,) = load_groups(bundle, repetitions)
    assert group.repetitions == tuple(repetitions)
    group.warm_up()
    found = group.run_padded(*rows(bundle).padded())
    np.testing.assert_array_equal(found, alone(bundle, repetitions))


@pytest.mark.parametrize("loss", ["softmax", "one-vs-all"])
@pytest.mark.parametrize("quantization", ["none", "fp16", "int8", "int4"])
def test_every_kind_of_model_can_be_joined(quantization, loss, tmp_path):
    bundle = exported_bundle(tmp_path / "bundle", quantization, loss, hidden=64)
    (group,) = load_groups(bundle, [0, 1, 2])
    found = group.run_padded(*rows(bundle).padded())
    np.testing.assert_array_equal(found, alone(bundle, [0, 1, 2]))


def test_long_batches_run_in_parts_and_long_rows_leave_no_memory(bundle, monkeypatch):
    (group,) = load_groups(bundle, [0, 1])
    whole = group.run_padded(*rows(bundle).padded())
    group._most_entries = 14  # two rows of seven
    np.testing.assert_array_equal(group.run_padded(*rows(bundle).padded()), whole)
    group._most_entries = 6
    np.testing.assert_array_equal(group.run_padded(*rows(bundle).padded()), whole)


def test_models_of_two_kinds_stay_apart(tmp_path):
    bundle = exported_bundle(tmp_path / "bundle", "int4", "one-vs-all", "softmax")
    assert len(load_groups(bundle, [0, 2])) == 1
    groups = load_groups(bundle, [0, 1])
    assert [group.repetitions for group in groups] == [(0,), (1,)]
    found = groups_answer(groups, rows(bundle))
    np.testing.assert_array_equal(found, alone(bundle, [0, 1]))


def test_large_models_stay_apart(bundle, monkeypatch):
    monkeypatch.setattr(repetition_group, "_MOST_BYTES", 10)
    groups = load_groups(bundle, [0, 2])
    assert len(groups) == 2
    found = groups_answer(groups, rows(bundle))
    np.testing.assert_array_equal(found, alone(bundle, [0, 2]))


def test_without_onnx_they_stay_apart(bundle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert len(load_groups(bundle, [0, 1])) == 2


@pytest.mark.parametrize("encoding", [shard_pb2.ENCODING_UINT8, shard_pb2.ENCODING_FLOAT32])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_shard_answers_the_same_from_groups(bundle, workers, encoding):
    loaded = LoadedBundle.load(bundle, [0, 1, 2], workers=workers)
    assert len(loaded._groups) == min(workers, 3)
    batch, seen = rows(bundle), []
    for asked in ([0, 1, 2], [2, 0], [1]):
        found = loaded.run_encoded(batch, asked, encoding, lambda r, s: seen.append(r))
        assert list(found) == asked
        for repetition in asked:
            expected = encode_rows(alone(bundle, [repetition])[:, 0], encoding)
            assert found[repetition].data == expected.data
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]


def test_what_is_computed_together_is_one_threads_share(bundle):
    loaded = LoadedBundle.load(bundle, [0, 1, 2], workers=2)
    assert loaded.shares([0, 1, 2], 2) == [(0, 2), (1,)]
    assert loaded.shares([2], 2) == [(2,)]
    assert loaded.shares([0, 1, 2], 1) == [(0, 2, 1)]


def test_models_that_ask_for_other_operators_are_not_joined(bundle):
    models = [onnx.load_model_from_string(bundle.read_model(r)) for r in (0, 1)]
    models[1].opset_import[0].version += 1
    assert join_models(models) is None


def test_a_model_in_the_place_of_another_is_refused(bundle, monkeypatch):
    first = bundle.read_model(0)
    monkeypatch.setattr(type(bundle), "read_model", lambda self, repetition: first)
    with pytest.raises(BundleError, match=r"repetition-001.onnx says mach.repetition=0"):
        load_groups(bundle, [0, 1])


def test_models_with_other_nodes_are_not_joined(bundle):
    models = [onnx.load_model_from_string(bundle.read_model(r)) for r in (0, 1)]
    assert join_models(models) is not None
    models[1].graph.node[-1].op_type = "Softmax"
    assert join_models(models) is None
