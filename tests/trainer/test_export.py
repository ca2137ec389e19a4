"""ONNX against PyTorch, however the weights are stored."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from mach.errors import ConfigError, MachError
from mach.features import SparseBatch
from mach.hashing import UniversalHash
from trainer.export import (
    Weights,
    build_model,
    check_size,
    pack_rows,
    quantize_rows,
    write_model,
)
from trainer.model import Classifier
from trainer.parity import TOLERANCES, check_parity, open_session, stored_weights

F, H, B = 300, 32, 50
QUANTIZATIONS = ["none", "fp16", "int8", "int4"]
HASH = UniversalHash.draw(1000, B, 3, 0)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return Weights(
        rng.normal(size=(F, H)).astype(np.float32),
        rng.normal(size=H).astype(np.float32),
        rng.normal(size=(B, H)).astype(np.float32),
        rng.normal(size=B).astype(np.float32),
    )


def session_of(weights, quantization, loss="one-vs-all"):
    return open_session(build_model(weights, HASH, 2, quantization, loss).SerializeToString())


def torch_log_probabilities(weights, batch, loss="one-vs-all"):
    model = Classifier(F, H, B, loss=loss)
    model.load_state_dict({name: torch.from_numpy(a) for name, a in vars(weights).items()})
    return model.log_probabilities(batch)


def queries(n, seed=1):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        indices = rng.choice(F, rng.integers(0, 12), replace=False).astype(np.int32)
        values = rng.random(len(indices)).astype(np.float32)
        rows.append((np.sort(indices), values / max(1e-6, np.linalg.norm(values))))
    return SparseBatch.from_rows(rows)


def run(session, batch, width=None):
    indices, values = batch.padded(width)
    return session.run(["log_probabilities"], {"indices": indices, "values": values})[0]


@pytest.mark.parametrize("loss", ["one-vs-all", "softmax"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_exported_models_agree_with_pytorch(weights, quantization, loss):
    batch = queries(200)
    parity = check_parity(
        session_of(weights, quantization, loss),
        batch,
        torch_log_probabilities(weights, batch, loss),
        torch_log_probabilities(stored_weights(weights, quantization), batch, loss),
        quantization,
    )
    assert parity.queries == 200
    assert parity.max_difference <= TOLERANCES[quantization].graph
    assert np.isfinite(parity.mean_divergence)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_model_of_large_logits_is_no_other(weights, quantization):
    """Rounding moves an improbable bucket of a well-trained model by more than half."""
    batch = queries(100)
    large = replace(weights, output=weights.output * 40)
    trained = torch_log_probabilities(large, batch)
    assert (trained.max(axis=1) - trained.min(axis=1)).max() > 100
    stored = torch_log_probabilities(stored_weights(large, quantization), batch)
    # What storing such random weights costs is not looked at here.
    check_parity(session_of(large, quantization), batch, stored, stored, quantization)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_model_that_disagrees_is_refused(weights, quantization):
    batch = queries(20)
    trained = torch_log_probabilities(weights, batch)
    stored = torch_log_probabilities(stored_weights(weights, quantization), batch)
    session = session_of(weights, quantization)
    wrong = stored.copy()
    wrong[3, 4] += 2 * TOLERANCES[quantization].graph
    with pytest.raises(MachError, match="does not agree with the trained one"):
        check_parity(session, batch, trained, wrong, quantization)
    with pytest.raises(MachError, match="does not agree"):
        check_parity(session, batch, np.roll(trained, 1, axis=1), stored, quantization)
    with pytest.raises(MachError, match="does not agree"):
        check_parity(session, batch, trained, np.full_like(stored, np.nan), quantization)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_an_answer_does_not_depend_on_its_batch_or_padding(weights, quantization):
    session, batch = session_of(weights, quantization), queries(64)
    together = run(session, batch)
    for row in range(0, 64, 7):
        alone = run(session, batch.rows(row, row + 1))
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-5)
        padded = run(session, batch.rows(row, row + 1), width=40)
        np.testing.assert_allclose(padded, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_query_without_features_gets_the_bias(weights, quantization):
    none = SparseBatch.from_rows([(np.empty(0, np.int32), np.empty(0, np.float32))])
    expected = torch_log_probabilities(stored_weights(weights, quantization), none)
    found = run(session_of(weights, quantization), none)
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[quantization].graph)


def test_extreme_logits_have_sound_log_probabilities():
    """Far from 0 either way, where a sigmoid rounds to 0 or 1 in float32."""
    zero = np.zeros((F, H), np.float32)
    bias = np.linspace(-200, 60, B, dtype=np.float32)
    weights = Weights(zero, np.zeros(H, np.float32), np.zeros((B, H), np.float32), bias)
    batch = queries(2)
    found = run(session_of(weights, "none"), batch)
    np.testing.assert_allclose(found, torch_log_probabilities(weights, batch), atol=1e-3)


def test_integers_do_not_saturate():
    """All hidden units and weights at their largest: where 8-bit activations would overflow."""
    weights = Weights(
        np.ones((F, H), np.float32),
        np.zeros(H, np.float32),
        np.linspace(-1, 1, B, dtype=np.float32)[:, None].repeat(H, axis=1) * 0.05,
        np.zeros(B, np.float32),
    )
    batch = SparseBatch.from_rows([(np.array([0], np.int32), np.ones(1, np.float32))])
    found = run(session_of(weights, "int8"), batch)
    np.testing.assert_allclose(found, torch_log_probabilities(weights, batch), atol=1e-3)


def test_hidden_units_all_zero_are_no_division_by_zero(weights):
    dead = Weights(weights.embedding, np.full(H, -1e6, np.float32), weights.output, weights.output_bias)  # fmt: skip  # noqa: E501
    batch = queries(5)
    expected = torch_log_probabilities(dead, batch)
    for quantization in QUANTIZATIONS:
        np.testing.assert_allclose(run(session_of(dead, quantization), batch), expected, atol=1e-5)


def test_quantized_rows_are_within_half_a_step():
    matrix = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)
    matrix[3] = 0
    codes, scales = quantize_rows(matrix)
    assert np.abs(codes).max() <= 127
    assert (np.abs(codes * scales[:, None] - matrix) <= scales[:, None] * 0.5001).all()


def test_four_bits_are_packed_two_a_byte():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(40, 10)).astype(np.float32)
    codes, scales = quantize_rows(matrix, 4)
    assert np.abs(codes).max() == 7
    assert (np.abs(codes * scales[:, None] - matrix) <= scales[:, None] * 0.5001).all()
    packed = pack_rows(codes)
    assert packed.shape == (40, 5)
    upper = np.rint(packed / 16)
    np.testing.assert_array_equal(np.concatenate([packed - 16 * upper, upper], axis=1), codes)


def test_what_the_file_says_of_itself(weights, tmp_path):
    path = tmp_path / "model.onnx"
    write_model(build_model(weights, HASH, 2, "int8"), path)
    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["mach.repetition"] == "2"
    assert properties["mach.num_buckets"] == str(B)
    assert properties["mach.num_features"] == str(F)
    assert properties["mach.num_classes"] == "1000"
    assert properties["mach.loss"] == "softmax"
    assert json.loads(properties["mach.hash"])["coefficients"] == HASH.coefficients[2].tolist()
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    again = build_model(weights, HASH, 2, "int8").SerializeToString(deterministic=True)
    assert path.read_bytes() == again


def test_models_that_no_file_can_hold_are_refused():
    check_size(1_000_000, 256, 2000, "int8")
    with pytest.raises(ConfigError, match="lower hidden or max_features"):
        check_size(3_000_000, 256, 2000, "none")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_sizes(weights, quantization):
    size = len(build_model(weights, HASH, 2, quantization).SerializeToString())
    width = {"none": 4, "fp16": 2, "int8": 1, "int4": 0.5}[quantization]
    weights_size = F * H * width + B * H * max(width, 1)
    assert weights_size < size < weights_size + 4 * (F + B) + 6000
