"""CUDA itself where there is a GPU; where there is none, what is said about it."""

import ctypes

import numpy as np
import onnxruntime as ort
import pytest

from mach.bundle import Bundle
from mach.errors import ConfigError
from mach.inference import CudaSettings, LoadedBundle
from mach.inference.cuda import StackedRunner
from mach.inference.libraries import cuda_runtime, preload, why_cuda_fails
from mach.merge import TopK
from mach.simulation import simulate_store
from mach.v1 import shard_pb2
from mach.wire import decode_rows
from trainer.interactions import read_queries
from trainer.progress import Reporter
from trainer.run import Job, train
from trainer.settings import TrainSettings

K = 10
HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers() and why_cuda_fails() in (
    "there is no GPU, or its driver is too old for this ONNX Runtime",
)
needs_gpu = pytest.mark.skipif(
    not HAS_CUDA, reason=f"no CUDA provider that could start here: {why_cuda_fails()}"
)


@pytest.fixture(scope="module", params=["int8", pytest.param("fp16", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """A bundle trained on a store's clicks, and queries it has not seen."""
    path = tmp_path_factory.mktemp("trained")
    store = simulate_store(path / "store", 200, 2000, 3, num_held_out=1000)
    settings = TrainSettings(
        repetitions=4, buckets=64, hidden=32, epochs=2, learning_rate=0.02, hash_bits=18,
        workers=1, quantization=request.param,
    )  # fmt: skip
    train(Job([store.clicks], store.products, path / "bundle", settings), Reporter.silent())
    queries = [text for text, _ in read_queries([store.held_out])]
    return Bundle.open(path / "bundle"), queries


def check_agreement(bundle, queries, runner):
    """The same top-k on 99.9 % of queries: the best product's, and K products' share."""
    plain = LoadedBundle.load(bundle, range(bundle.manifest.num_repetitions))
    engine, rule = TopK(bundle.buckets), bundle.merge_rule
    batch = bundle.featurizer.batch(queries)
    cpu = np.stack([*plain.run(batch, plain.repetitions).values()], axis=1)
    device = np.ascontiguousarray(runner.run(batch).swapaxes(0, 1))
    best, shared = [], []
    for ours, theirs in zip(device, cpu, strict=True):
        found = engine.search(rule.transform(ours), K).classes.tolist()
        expected = engine.search(rule.transform(theirs), K).classes.tolist()
        best.append(found[:1] == expected[:1])
        shared.append(len(set(found) & set(expected)) / K)
    assert np.mean(best) >= 0.999
    assert np.mean(shared) >= 0.999


def test_the_program_agrees_with_the_models(trained):
    bundle, queries = trained
    settings = CudaSettings(max_rows=64, widths=(64, 128))
    check_agreement(bundle, queries, StackedRunner.load(bundle, range(4), settings, "cpu"))


@needs_gpu
@pytest.mark.parametrize("graphs", [True, False])
def test_a_gpu_agrees_with_the_cpu(trained, graphs):
    bundle, queries = trained
    runner = StackedRunner.load(bundle, range(4), CudaSettings(graphs=graphs))
    check_agreement(bundle, queries, runner)


@needs_gpu
def test_a_gpu_serves_a_bundle(trained):
    bundle, queries = trained
    loaded = LoadedBundle.load(bundle, [0, 3], provider="cuda", cuda=CudaSettings(memory_mib=4096))
    assert (loaded.provider, loaded.together) == ("cuda", True)
    batch = loaded.featurizer.batch(queries[:100])
    rows = loaded.run(batch, [3])[3]
    encoded = loaded.run_encoded(batch, [3], shard_pb2.ENCODING_UINT8)[3]
    decoded = decode_rows(encoded, shard_pb2.ENCODING_UINT8, 100, loaded.num_buckets)
    step = (rows.max(axis=1) - rows.min(axis=1)) / 255
    assert (np.abs(decoded - rows) <= step[:, None] * 0.51).all()


@pytest.mark.skipif(HAS_CUDA, reason="this has CUDA")
def test_libraries_can_be_looked_for_anywhere():
    preload()
    assert cuda_runtime() is None
    assert "not built for CUDA" in why_cuda_fails()


@pytest.mark.parametrize(
    ("failing", "message", "expected"),
    [
        (
            "libonnxruntime_providers_cuda.so",
            "libcudnn.so.9: cannot open shared object file: No such file or directory",
            "the library libcudnn.so.9 is missing",
        ),
        (
            "libonnxruntime_providers_cuda.so",
            "libcublasLt.so.13: cannot open shared object file: No such file or directory",
            "the library libcublasLt.so.13 is missing",
        ),
        ("libcuda.so.1", "libcuda.so.1: cannot open", r"the NVIDIA driver \(libcuda.so.1\)"),
        ("nothing", "", "there is no GPU, or its driver is too old"),
    ],
)
def test_the_missing_library_is_named(tiny_bundle, monkeypatch, failing, message, expected):
    def load(name, *_, **__):
        if failing in name:
            raise OSError(message)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    session = ort.InferenceSession

    def without_cuda(model, options, providers, **_):
        return session(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", without_cuda)
    with pytest.raises(ConfigError, match=expected):
        LoadedBundle.load(tiny_bundle, [0], provider="cuda")
    assert LoadedBundle.load(tiny_bundle, [0], provider="auto").provider == "cpu"


def test_without_the_package_onnx_a_gpu_is_refused(tiny_bundle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ConfigError, match="needs the package onnx"):
        LoadedBundle.load(tiny_bundle, [0], provider="cuda")
