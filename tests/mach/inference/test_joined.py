"""Repetitions joined into one session answer what each answers alone, to the last bit."""

import numpy as np
import onnx
import pytest

from mach.errors import BundleError
from mach.features import SparseBatch
from mach.inference import RepetitionGroup, RepetitionSession, joined
from mach.inference.joined import join_models
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


@pytest.mark.parametrize("repetitions", [[0, 1, 2], [2, 0], [1]])
def test_joined_is_each_alone(bundle, repetitions):
    group = RepetitionGroup(bundle, repetitions)
    assert (group._joined is None) == (len(repetitions) == 1)
    found = group.run_padded(*rows(bundle).padded())
    np.testing.assert_array_equal(found, alone(bundle, repetitions))


@pytest.mark.parametrize("loss", ["softmax", "one-vs-all"])
@pytest.mark.parametrize("quantization", ["none", "fp16", "int8", "int4"])
def test_every_kind_of_model_can_be_joined(quantization, loss, tmp_path):
    bundle = exported_bundle(tmp_path / "bundle", quantization, loss, hidden=64)
    group = RepetitionGroup(bundle, [0, 1, 2])
    assert group._joined is not None
    found = group.run_padded(*rows(bundle).padded())
    np.testing.assert_array_equal(found, alone(bundle, [0, 1, 2]))


def test_long_batches_run_in_parts(bundle, monkeypatch):
    whole = RepetitionGroup(bundle, [0, 1]).run_padded(*rows(bundle).padded())
    monkeypatch.setattr(joined, "_MOST_ENTRIES", 14)  # two rows of seven
    parts = RepetitionGroup(bundle, [0, 1]).run_padded(*rows(bundle).padded())
    np.testing.assert_array_equal(parts, whole)


def test_models_of_two_kinds_stay_apart(tmp_path):
    bundle = exported_bundle(tmp_path / "bundle", "int4", "one-vs-all", "softmax")
    assert RepetitionGroup(bundle, [0, 2])._joined is not None
    group = RepetitionGroup(bundle, [0, 1])
    assert group._joined is None
    np.testing.assert_array_equal(group.run_padded(*rows(bundle).padded()), alone(bundle, [0, 1]))


def test_large_models_stay_apart(bundle, monkeypatch):
    monkeypatch.setattr(joined, "_MOST_BYTES", 10)
    group = RepetitionGroup(bundle, [0, 2])
    assert group._joined is None
    np.testing.assert_array_equal(group.run_padded(*rows(bundle).padded()), alone(bundle, [0, 2]))


def test_without_onnx_they_stay_apart(bundle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert RepetitionGroup(bundle, [0, 1])._joined is None


def test_models_that_ask_for_other_operators_are_not_joined(bundle):
    models = [onnx.load_model_from_string(bundle.read_model(r)) for r in (0, 1)]
    models[1].opset_import[0].version += 1
    assert join_models(models) is None


def test_a_model_in_the_place_of_another_is_refused(bundle, monkeypatch):
    first = bundle.read_model(0)
    monkeypatch.setattr(type(bundle), "read_model", lambda self, repetition: first)
    with pytest.raises(BundleError, match=r"repetition-001.onnx says mach.repetition=0"):
        RepetitionGroup(bundle, [0, 1])


def test_models_with_other_nodes_are_not_joined(bundle):
    models = [onnx.load_model_from_string(bundle.read_model(r)) for r in (0, 1)]
    assert join_models(models) is not None
    models[1].graph.node[-1].op_type = "Softmax"
    assert join_models(models) is None
