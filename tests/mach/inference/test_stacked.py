"""The GPU's program gives the exported models' answers; here on the CPU provider."""

import ctypes
import threading

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.bundle import Bundle
from mach.errors import BundleError, ConfigError, InvalidInput
from mach.features import SparseBatch
from mach.hashing import UniversalHash
from mach.inference import CudaSettings, LoadedBundle, cuda
from mach.inference.cuda import StackedRunner
from mach.inference.libraries import Readback
from mach.inference.program import build_program
from mach.inference.stacking import RepetitionWeights, read_weights, stack, stack_sizes, unpack_rows
from mach.v1 import shard_pb2
from mach.wire import encode_rows
from tests.bundles import make_bundle
from tests.mach.inference.exported import exported_bundle, random_weights
from trainer.export import build_model, pack_rows

KINDS = [
    (quantization, loss)
    for quantization in ("none", "fp16", "int8", "int4")
    for loss in ("softmax", "one-vs-all")
]
SETTINGS = CudaSettings(max_rows=4, widths=(4, 16))


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(kind, tmp_path_factory):
    return exported_bundle(tmp_path_factory.mktemp("exported") / "bundle", *kind)


@pytest.fixture(scope="module")
def runner(bundle):
    return StackedRunner.load(bundle, [0, 1, 2], SETTINGS, "cpu")


@pytest.fixture(scope="module")
def plain(bundle):
    return LoadedBundle.load(bundle, [0, 1, 2])


def queries(num_features, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return SparseBatch.from_rows(
        (
            rng.integers(0, num_features, n).astype(np.int32),
            (rng.random(n) / max(1, n) ** 0.5).astype(np.float32),
        )
        for n in lengths
    )


def test_answers_are_those_of_the_models(bundle, runner, plain):
    titles = bundle.catalog.table["title"].to_pylist()
    batch = bundle.featurizer.batch(titles)
    found = runner.run(batch)
    for repetition, expected in plain.run(batch, [0, 1, 2]).items():
        assert np.abs(found[repetition] - expected).max() < 0.03
        assert (found[repetition].argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.99


def test_in_single_precision_only_the_order_of_sums_differs(bundle, plain):
    exact = CudaSettings(max_rows=4, widths=(16,), precision="fp32")
    batch = queries(bundle.manifest.num_features, [3, 16, 1, 0])
    found = StackedRunner.load(bundle, [0, 2], exact, "cpu").run(batch)
    for at, repetition in enumerate((0, 2)):
        expected = plain.run(batch, [repetition])[repetition]
        np.testing.assert_allclose(found[at], expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(0, 24), min_size=1, max_size=11), seed=st.integers(0, 99))
def test_padding_and_splitting_change_no_answer(runner, kind, lengths, seed):
    batch = queries(100, lengths, seed)
    together = runner.run(batch)
    assert together.shape == (3, len(lengths), runner.num_buckets)
    for row in range(len(lengths)):
        alone = runner.run(batch.rows(row, row + 1))
        # Sums in another order may round a hidden unit to the next of its 128 steps.
        most = 0.1 if kind[0].startswith("int") else 1e-5
        np.testing.assert_allclose(alone[:, 0], together[:, row], rtol=1e-5, atol=most)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(0, 24), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_the_device_encodes_as_the_wire_does(runner, lengths, seed):
    batch = queries(100, lengths, seed)
    rows = runner.run(batch)
    codes, minimum, step = runner.run_encoded(batch)
    for repetition in range(3):
        expected = encode_rows(rows[repetition], shard_pb2.ENCODING_UINT8)
        theirs = np.frombuffer(expected.data, np.uint8).reshape(codes[repetition].shape)
        # A tie may be rounded either way.
        assert np.abs(codes[repetition].astype(int) - theirs.astype(int)).max(initial=0) <= 1
        assert minimum[repetition].tobytes() == expected.minimum
        assert step[repetition].tobytes() == expected.step


def test_a_row_without_range_is_encoded():
    """All buckets alike: the step is the smallest there is, on a device as on the wire."""
    models = [
        RepetitionWeights(
            "none",
            {
                "embedding": np.zeros((5, 3), np.float32),
                "hidden_bias": np.zeros(3, np.float32),
                "output": np.zeros((3, 4), np.float32),
                "output_bias": np.zeros(4, np.float32),
            },
        )
    ]
    inputs = stack(models, "fp16")
    session = ort.InferenceSession(
        build_program(inputs, "none"), providers=["CPUExecutionProvider"]
    )
    batch = {"indices": np.zeros((1, 2), np.int32), "values": np.zeros((1, 2), np.float32)}
    rows, codes, _, step = session.run(None, batch | inputs)
    expected = encode_rows(rows[0], shard_pb2.ENCODING_UINT8)
    assert codes.tobytes() == expected.data
    assert step.tobytes() == expected.step


def test_large_values_stay_within_half_precision(bundle, runner, plain):
    batch = SparseBatch.from_rows([(np.array([1, 7], np.int32), np.array([1e6, -1e5], np.float32))])
    found = runner.run(batch)
    assert np.isfinite(found).all()
    for repetition, rows in plain.run(batch, [0, 1, 2]).items():
        assert found[repetition].argmax() == rows.argmax()


def test_several_stacks_answer_as_one(bundle, runner, monkeypatch):
    monkeypatch.setattr(cuda, "stack_sizes", lambda *_: [2, 1])
    split = StackedRunner.load(bundle, [0, 1, 2], SETTINGS, "cpu")
    assert split.stacks == [2, 1]
    batch = queries(100, [5, 20, 3, 2, 1, 9])
    np.testing.assert_allclose(split.run(batch), runner.run(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("repetitions", "expected"),
    [(1, [1]), (13, [13]), (14, [7, 7]), (32, [11, 11, 10])],
)
def test_stacks_are_few_and_alike(repetitions, expected):
    assert stack_sizes(repetitions, 80_000, 2_000) == expected  # 13 embeddings make 2^31


def test_an_embedding_that_no_gpu_can_index():
    with pytest.raises(ConfigError, match="too large"):
        stack_sizes(1, 2**21, 2**10)


def test_programs_are_deterministic():
    weights = random_weights(30, 8, 10, 0)
    model = build_model(weights, UniversalHash.draw(9, 10, 1, 0), 0, "int8").SerializeToString()
    inputs = stack([read_weights(model)], "fp16")
    assert inputs["output"].dtype == np.float16
    assert inputs["embedding"].dtype == np.int8
    assert build_program(inputs, "int8") == build_program(inputs, "int8")


def test_weights_beyond_half_precision_are_refused():
    arrays = {
        "embedding": np.zeros((2, 2), np.float32),
        "hidden_bias": np.zeros(2, np.float32),
        "output": np.full((2, 3), 4e4, np.float32),
        "output_bias": np.zeros(3, np.float32),
    }
    models = [RepetitionWeights("none", arrays)]
    with pytest.raises(ConfigError, match="choose fp32"):
        stack(models, "fp16")
    assert stack(models, "fp32")["output"].dtype == np.float32


def test_models_of_another_kind_are_left_as_they_are(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", num_classes=50, num_repetitions=1)
    assert StackedRunner.load(bundle, [0], SETTINGS, "cpu") is None


@given(rows=st.integers(1, 5), half=st.integers(1, 9), seed=st.integers(0, 99))
def test_four_bits_are_unpacked_as_they_were_packed(rows, half, seed):
    codes = np.random.default_rng(seed).integers(-7, 8, (rows, 2 * half)).astype(np.int8)
    unpacked = unpack_rows(pack_rows(codes))
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, codes)


def test_repetitions_of_two_losses_are_no_stack(tmp_path):
    bundle = exported_bundle(tmp_path / "bundle", "int4", "one-vs-all", "softmax")
    with pytest.raises(BundleError, match=r"is of another size, quantization or loss"):
        StackedRunner.load(bundle, [0, 1], SETTINGS, "cpu")


@pytest.mark.parametrize(
    ("quantization", "loss", "message"),
    [
        ("int2", "softmax", "mach.quantization=int2, expected one of none, fp16, int8, int4"),
        ("int8", "hinge", "mach.loss=hinge, expected one of softmax, one-vs-all"),
    ],
)
def test_what_is_unknown_is_refused(quantization, loss, message):
    weights = random_weights(30, 8, 10, 0)
    model = build_model(weights, UniversalHash.draw(9, 10, 1, 0), 0, "int8")
    for entry in model.metadata_props:
        entry.value = {"mach.quantization": quantization, "mach.loss": loss}.get(
            entry.key, entry.value
        )
    with pytest.raises(BundleError, match=message):
        read_weights(model.SerializeToString())


def test_a_device_that_answers_otherwise_is_refused(bundle, monkeypatch):
    run = StackedRunner.run
    monkeypatch.setattr(StackedRunner, "run", lambda self, batch: np.roll(run(self, batch), 1, 2))
    with pytest.raises(BundleError, match="the GPU's log-probabilities differ"):
        StackedRunner.load(bundle, [1], SETTINGS, "cpu")


def test_memory_and_shapes_that_do_not_suffice(bundle):
    many = ("none", 1000, 2000, 300, "softmax")
    weights = [
        RepetitionWeights(
            "none",
            {
                "embedding": np.zeros((1000, 2000), np.float32),
                "hidden_bias": np.zeros(2000, np.float32),
                "output": np.zeros((2000, 300), np.float32),
                "output_bias": np.zeros(300, np.float32),
            },
        )
    ]
    with pytest.raises(ConfigError, match="cuda_memory_mib: the weights of 2 repetitions"):
        StackedRunner([0, 1], many, CudaSettings(memory_mib=9), "cpu").add(weights * 2)
    with pytest.raises(ConfigError, match="cuda_rows and cuda_widths"):
        StackedRunner([0], many, CudaSettings(max_rows=1024, widths=(2048,)), "cpu")


def test_a_query_too_long_for_the_device_is_refused(runner, monkeypatch):
    monkeypatch.setattr(runner, "_per_entry", 2**30)
    with pytest.raises(InvalidInput, match="features are too many"):
        runner.run(queries(100, [2]))


def test_all_work_is_done_by_one_thread(runner, monkeypatch):
    """CUDA graphs are replayed by the thread that captured them."""
    threads = set()
    run = runner._device.run
    monkeypatch.setattr(
        runner._device, "run", lambda *a: (threads.add(threading.get_ident()), run(*a))[1]
    )
    callers = [threading.Thread(target=runner.run, args=(queries(100, [n]),)) for n in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(threads) == 1


class FakeRuntime:
    """CUDA's copy functions on plain memory."""

    def __init__(self, status=0):
        self.locked = []
        self.cudaMemcpy2D = lambda *a: status or self._copy(*a)
        self.cudaHostRegister = lambda address, size, flags: self.locked.append(address) or 0
        self.cudaHostUnregister = self.locked.remove

        class Callable:
            def __init__(self, function):
                self.function = function

            def __call__(self, *arguments):
                return self.function(*arguments)

        for name in ("cudaMemcpy2D", "cudaHostRegister", "cudaHostUnregister"):
            setattr(self, name, Callable(getattr(self, name)))

    @staticmethod
    def _copy(target, target_pitch, source, source_pitch, width, height, _):
        for row in range(height):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
        return 0


def test_only_the_rows_asked_for_are_copied():
    runtime = FakeRuntime()
    readback = Readback(runtime)
    source = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    value = ort.OrtValue.ortvalue_from_numpy(source)
    buffer = readback.buffer(source.nbytes)
    assert runtime.locked == [buffer.ctypes.data]
    np.testing.assert_array_equal(readback.read(value, 3, buffer), source[:, :3])
    np.testing.assert_array_equal(Readback(None).read(value, 3, buffer), source[:, :3])
    del buffer
    assert not runtime.locked


def test_a_copy_that_fails_is_an_error():
    value = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, 1), np.float32))
    readback = Readback(FakeRuntime(status=700))
    with pytest.raises(Exception, match="CUDA's error 700"):
        readback.read(value, 1, readback.buffer(4))


def test_a_stacked_bundle_serves_like_any_other(bundle, plain):
    stacked = LoadedBundle(bundle, [], StackedRunner.load(bundle, [0, 1, 2], SETTINGS, "cpu"))
    assert stacked.together
    batch = queries(100, [3, 0, 20, 7, 7])
    seen = []
    answers = stacked.run_encoded(
        batch, [2, 0], shard_pb2.ENCODING_UINT8, lambda r, s: seen.append(r)
    )
    assert list(answers) == [2, 0]
    assert seen == [0, 1, 2]
    for encoding in (shard_pb2.ENCODING_FLOAT32, shard_pb2.ENCODING_UINT8):
        ours = stacked.run_encoded(batch, [1], encoding)[1]
        theirs = encode_rows(stacked.run(batch, [1])[1], encoding)
        assert (ours.data, ours.minimum, ours.step) == (theirs.data, theirs.minimum, theirs.step)
    assert stacked.seconds(4, 40, 3) == stacked.seconds(4, 40, 1) > 0
    assert stacked.marginal_seconds(4, 40, 3) >= 0
    assert isinstance(bundle, Bundle)
