"""Loading repetitions, and refusing what is not what the manifest says."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.bundle import FEATURES_FILE, Bundle, repetition_file
from mach.errors import BundleError, ConfigError, InvalidInput, RepetitionNotFound
from mach.features import SparseBatch
from mach.inference import LoadedBundle, RunCost
from tests.bundles import make_model


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A copy of the bundle that may be damaged."""
    shutil.copytree(tiny_bundle.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def loaded(tiny_bundle):
    return LoadedBundle.load(tiny_bundle, [0, 2, 3])


def test_it_answers_with_normalised_log_probabilities(loaded, tiny_bundle):
    titles = tiny_bundle.catalog.table["title"].to_pylist()
    answers = loaded.run(loaded.featurizer.batch(titles), [0, 3])
    assert set(answers) == {0, 3}
    for repetition, rows in answers.items():
        assert rows.shape == (len(titles), loaded.num_buckets)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1, rtol=1e-5)
        buckets = tiny_bundle.hash.buckets(repetition, np.arange(len(titles)))
        assert (rows.argmax(axis=1) == buckets).mean() > 0.9


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(0, 99))
def test_rows_answer_alike_alone_together_and_in_groups(loaded, lengths, seed):
    rng = np.random.default_rng(seed)
    batch = SparseBatch.from_rows(
        (
            rng.integers(0, loaded.num_features, n).astype(np.int32),
            rng.normal(size=n).astype(np.float32),
        )
        for n in lengths
    )
    alone = np.concatenate([loaded.run(batch.rows(i, i + 1), [2])[2] for i in range(len(lengths))])
    together = loaded.run(batch, [2])[2]
    grouping = LoadedBundle(loaded.bundle, loaded._groups)
    grouping.cost = RunCost(1e-9, 0, 1)  # padding is what costs: as many groups as lengths
    grouped = grouping.run(batch, [2])[2]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grouped, alone, rtol=1e-5, atol=1e-5)


def test_selecting_repetitions(loaded):
    assert loaded.select([]) == (0, 2, 3)
    assert loaded.select([3, 0]) == (3, 0)
    with pytest.raises(RepetitionNotFound, match=r"1 is not held here, only 0, 2, 3"):
        loaded.select([0, 1])
    with pytest.raises(InvalidInput, match="twice"):
        loaded.select([0, 0])


def test_costs_are_measured(loaded):
    assert loaded.cost.fixed > 0
    assert loaded.seconds(10, 100, 2) > loaded.seconds(1, 10, 1) > 0


@pytest.mark.parametrize("repetitions", [[], [4], [-1], [1, 1]])
def test_repetitions_that_are_not_there(tiny_bundle, repetitions):
    with pytest.raises(InvalidInput, match="repetition"):
        LoadedBundle.load(tiny_bundle, repetitions)


@pytest.mark.parametrize("name", [repetition_file(1), FEATURES_FILE])
def test_a_flipped_bit_is_refused(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} differs from the manifest"):
        LoadedBundle.load(Bundle.open(copy), [1])


def test_only_what_is_needed_is_read(copy):
    data = (copy / repetition_file(0)).read_bytes()
    (copy / repetition_file(0)).write_bytes(data[::-1])  # the same length, another content
    assert LoadedBundle.load(Bundle.open(copy), [1]).repetitions == (1,)


GOOD = {"mach.repetition": 0, "mach.num_buckets": 16, "mach.num_features": 510}


@pytest.mark.parametrize(
    ("properties", "names", "message"),
    [
        ({**GOOD, "mach.repetition": 1}, ("indices", "values"), "mach.repetition=1, expected 0"),
        ({**GOOD, "mach.num_buckets": 8}, ("indices", "values"), "mach.num_buckets=8"),
        ({**GOOD, "mach.num_features": 9}, ("indices", "values"), "mach.num_features=9"),
        ({}, ("indices", "values"), "mach.repetition=None"),
        ({**GOOD, "mach.loss": "hinge"}, ("indices", "values"), "mach.loss=hinge, expected one of"),
        (GOOD, ("features", "values"), "has inputs"),
    ],
)
def test_a_model_of_another_kind_is_refused(tiny_bundle, monkeypatch, properties, names, message):
    weights = np.zeros((510, 16), np.float32)
    model = make_model(weights, properties, input_names=names)
    monkeypatch.setattr(Bundle, "read_model", lambda self, repetition: model)
    with pytest.raises(BundleError, match=message):
        LoadedBundle.load(tiny_bundle, [0])


@pytest.mark.parametrize(
    ("tag", "length"), [(b"\x0a", b"\x08"), (b"\x0a", b"\x88\x00"), (b"\x8a\x00", b"\x88\x80\x00")]
)
def test_a_model_that_reads_other_files_is_refused(tiny_bundle, monkeypatch, tag, length):
    """However the reference is written: a parser takes numbers with bytes to spare."""

    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    entry = onnx.StringStringEntryProto(value="/etc/passwd").SerializeToString()
    tensor = onnx.TensorProto(
        name="more", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL
    ).SerializeToString()
    tensor += field(13, tag + length + b"location" + entry)  # external_data
    # A message that is written twice is merged: the graph gets another initializer.
    data = make_model(np.zeros((510, 16), np.float32), GOOD) + field(7, field(5, tensor))
    assert onnx.load_from_string(data).graph.initializer[-1].external_data[0].key == "location"
    monkeypatch.setattr(Bundle, "read_model", lambda self, repetition: data)
    with pytest.raises(BundleError, match="outside the bundle"):
        LoadedBundle.load(tiny_bundle, [0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros((510, 15), np.float32), r"of shape \(1, 15\)"),
        (np.zeros((510, 16), np.float64), "repetition-000.onnx"),
        (np.full((510, 16), np.nan, np.float32), "no log-probabilities"),
    ],
)
def test_a_model_whose_answers_make_no_sense_is_refused(tiny_bundle, monkeypatch, weights, message):
    monkeypatch.setattr(Bundle, "read_model", lambda self, repetition: make_model(weights, GOOD))
    with pytest.raises(BundleError, match=message):
        LoadedBundle.load(tiny_bundle, [0])


def test_bytes_that_are_no_model_are_refused(tiny_bundle, monkeypatch):
    monkeypatch.setattr(Bundle, "read_model", lambda self, repetition: b"not a model")
    with pytest.raises(BundleError, match=r"repetition-000\.onnx cannot be loaded"):
        LoadedBundle.load(tiny_bundle, [0])


def test_cuda_is_never_quietly_replaced(tiny_bundle, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="cuda was asked for"):
        LoadedBundle.load(tiny_bundle, [0], provider="cuda")
    assert LoadedBundle.load(tiny_bundle, [0], provider="auto").provider == "cpu"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this has CUDA"
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_is_listed_but_does_not_start_is_refused(tiny_bundle, monkeypatch):
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    with pytest.raises((ConfigError, BundleError), match=r"(?i)cuda"):
        LoadedBundle.load(tiny_bundle, [0], provider="cuda")
