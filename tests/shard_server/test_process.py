"""``python -m shard_server`` as a process: start-up mistakes, metrics, drain."""

import json
import logging
import shutil
import signal
import subprocess

import grpc
import pytest

from mach.bundle import MANIFEST_FILE, repetition_file
from mach.serving import main
from mach.v1 import shard_pb2, shard_pb2_grpc
from shard_server.service import ShardService
from shard_server.settings import ShardSettings
from tests.servers import ServerProcess, assert_one_sentence, run_server, wait_until
from tests.shard_server.helpers import request


def arguments(path, *more):
    return ["-m", "shard_server", "--bundle", str(path), *more]


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle.path, tmp_path / "copy")
    return tmp_path / "copy"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def refused(capfd):
    """Starts a shard in this process, which is quicker, and returns how it ended."""
    root, asyncio_level = logging.getLogger(), logging.getLogger("asyncio").level
    handlers, level = root.handlers[:], root.level

    def start(path, *flags):
        argv = ["--bundle", str(path), "--listen", "127.0.0.1:0", *flags]
        code = main(ShardSettings, ShardService, component="shard_server", argv=argv)
        return subprocess.CompletedProcess(argv, code, stderr=capfd.readouterr().err)

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("asyncio").setLevel(asyncio_level)


def test_a_missing_bundle(tmp_path):
    result = run_server(
        arguments(tmp_path / "none", "--repetition", "1", "--listen", "127.0.0.1:0")
    )
    assert_one_sentence(result, str(tmp_path / "none"), "no such directory")


def test_a_corrupt_model(copy, refused):
    flip(copy / repetition_file(1))
    assert_one_sentence(refused(copy, "--repetition", "1"), repetition_file(1), "corrupt")


def test_a_truncated_model(copy, refused):
    path = copy / repetition_file(1)
    path.write_bytes(path.read_bytes()[:-100])
    assert_one_sentence(
        refused(copy, "--repetition", "1"), repetition_file(1), "bytes, the manifest says"
    )


def test_a_truncated_manifest(copy, refused):
    path = copy / MANIFEST_FILE
    path.write_bytes(path.read_bytes()[:200])
    assert_one_sentence(refused(copy, "--repetition", "1"), MANIFEST_FILE, "not valid JSON")


def test_an_edited_manifest(copy, refused):
    path = copy / MANIFEST_FILE
    fields = json.loads(path.read_text())
    fields["num_classes"] += 1
    path.write_text(json.dumps(fields))
    assert_one_sentence(refused(copy, "--repetition", "1"), MANIFEST_FILE, "version does not match")


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--repetition", "9"], ["repetition: 9", "0 to 3"]),
        (["--repetition", "0,x"], ["--repetition", "'x'"]),
        (["--repetition", "0,0"], ["--repetition", "different"]),
        (["--repetition", ""], ["--repetition", "at least one"]),
        ([], ["--repetition is required", "MACH_SHARD_REPETITION"]),
        (["--repetition", "0", "--threads", "0"], ["--threads"]),
        (["--repetition", "0", "--provider", "tpu"], ["--provider", "'tpu'"]),
        (["--repetition", "0", "--repetitions", "0"], ["--repetitions"]),
        (
            ["--repetition", "0", "--max-connection-age-seconds", "300"],
            ["--max-connection-age-seconds", "is for aggregators: a shard would cut their streams"],
        ),
    ],
)
def test_a_wrong_flag(tiny_bundle, refused, flags, fragments):
    assert_one_sentence(refused(tiny_bundle.path, *flags), *fragments)


def test_cuda_asked_for_and_not_there(tiny_bundle, refused):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    result = refused(tiny_bundle.path, "--repetition", "0", "--provider", "cuda")
    assert_one_sentence(result, "cuda was asked for")


def test_settings_come_from_the_environment(tiny_bundle):
    env = {
        "MACH_SHARD_BUNDLE": str(tiny_bundle.path),
        "MACH_SHARD_REPETITION": "1,3",
        "MACH_SHARD_MAX_BATCH_SIZE": "9",
    }
    with ServerProcess("-m", "shard_server", env=env) as server, server.channel() as channel:
        answer = shard_pb2_grpc.ShardServiceStub(channel).DescribeShard(
            shard_pb2.DescribeShardRequest()
        )
    assert list(answer.repetitions) == [1, 3]
    assert answer.max_batch_size == 9


def test_metrics_and_drain(tiny_bundle, loaded):
    with (
        ServerProcess(*arguments(tiny_bundle.path, "--repetition", "2")) as server,
        server.channel() as channel,
    ):
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        stub.Predict(request(loaded, 3))
        stream = stub.PredictStream(requests(server, loaded))
        assert next(stream).id == 1
        metrics = server.metrics()
        assert metrics["mach_shard_batch_size_sum"] == 5
        assert metrics['mach_shard_requests_total{code="OK"}'] == 2
        assert metrics['mach_shard_inference_seconds_count{repetition="2"}'] == 2
        assert metrics["mach_shard_queue_wait_seconds_count"] == 2
        assert metrics["mach_shard_streams"] == 1
        assert metrics["mach_shard_shed_total"] == 0
        assert metrics['mach_shard_dropped_total{reason="expired"}'] == 0
        assert metrics["mach_bundle_load_seconds"] > 0
        assert metrics['mach_bundle_loads_total{outcome="ok"}'] == 1
        assert metrics['mach_bundle_loads_total{outcome="failed"}'] == 0
        info = (
            f'mach_shard_info{{bundle_version="{tiny_bundle.version}",provider="cpu",'
            'repetitions="2",state="active"}'
        )
        assert metrics[info] == 1
        assert any(name.startswith("mach_build_info{") for name in metrics)
        assert "process_resident_memory_bytes" in metrics
        server.signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "the shard is draining"
        assert server.wait() == 0
        assert "Traceback" not in server.stderr


def requests(server, loaded):
    yield shard_pb2.PredictStreamRequest(id=1, request=request(loaded, 2))
    wait_until(lambda: server._process.poll() is not None, "the end", 30)


def test_logs_hold_no_query_text(tiny_bundle):
    with (
        ServerProcess(
            *arguments(tiny_bundle.path, "--repetition", "2", "--log-level", "debug")
        ) as server,
        server.channel() as channel,
    ):
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        texts = shard_pb2.TextBatch(texts=["confidential words", ""])
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(shard_pb2.PredictRequest(texts=texts))
        assert caught.value.details().startswith("texts[1]: ")
        stub.Predict(shard_pb2.PredictRequest(texts=shard_pb2.TextBatch(texts=texts.texts[:1])))
        assert server.stop() == 0
        assert "confidential" not in server.stderr
