"""The life of a server process, seen from outside."""

import json
import signal
import socket
import time

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from mach.v1 import shard_pb2, shard_pb2_grpc
from tests.servers import ServerProcess, assert_one_sentence, run_server, wait_until

SAMPLE = "tests/mach/serving/sample_server.py"
SERVICE = "mach.v1.ShardService"


@pytest.fixture(scope="module")
def server():
    with ServerProcess(SAMPLE) as server:
        yield server


@pytest.fixture
def stub(server):
    with server.channel() as channel:
        yield shard_pb2_grpc.ShardServiceStub(channel)


def predict(stub, version, **kwargs):
    return stub.Predict(shard_pb2.PredictRequest(bundle_version=version), **kwargs)


def handled(server, code, method="Predict", kind="unary"):
    return server.metrics().get(
        f'grpc_server_handled_total{{grpc_code="{code}",grpc_method="{method}",'
        f'grpc_service="{SERVICE}",grpc_type="{kind}"}}',
        0.0,
    )


def started(server):
    return server.metrics().get(
        f'grpc_server_started_total{{grpc_method="Predict",grpc_service="{SERVICE}",'
        'grpc_type="unary"}',
        0.0,
    )


@pytest.mark.parametrize(
    ("version", "code", "details"),
    [
        ("invalid", "INVALID_ARGUMENT", "texts: are wrong"),
        ("overloaded", "RESOURCE_EXHAUSTED", "the queue is full"),
        ("unavailable", "UNAVAILABLE", "not yet"),
        ("unknown", "NOT_FOUND", "no such version"),
        ("abort", "DATA_LOSS", "lost"),
        ("crash", "INTERNAL", "the server failed; see its log"),
    ],
)
def test_an_error_becomes_its_status_and_is_counted(server, stub, version, code, details):
    before = handled(server, code)
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, version)
    assert caught.value.code().name == code
    assert caught.value.details() == details
    wait_until(lambda: handled(server, code) == before + 1, "the count")


def test_overload_carries_push_back(stub):
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, "overloaded")
    assert ("grpc-retry-pushback-ms", "70") in caught.value.trailing_metadata()


def test_only_the_unforeseen_is_logged_with_its_traceback(server, stub):
    for version in ("crash", "invalid"):
        with pytest.raises(grpc.RpcError):
            predict(stub, version)
    assert "RuntimeError: secret detail" in server.stderr
    assert "InvalidInput" not in server.stderr


def test_a_deadline_is_counted_as_one(server, stub):
    before = handled(server, "DEADLINE_EXCEEDED")
    with pytest.raises(grpc.RpcError):
        predict(stub, "forever", timeout=0.1)
    wait_until(lambda: handled(server, "DEADLINE_EXCEEDED") == before + 1, "the count")


def call_raw(channel, method, data):
    path = f"/{SERVICE}/{method}"
    if method == "Predict":
        return channel.unary_unary(path)(data)
    return list(channel.stream_stream(path)(iter([data])))


@pytest.mark.parametrize("method", ["Predict", "PredictStream"])
def test_bytes_that_are_no_message_are_the_callers_mistake(server, method):
    with server.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        call_raw(channel, method, b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be decoded" in caught.value.details()
    assert "DecodeError" not in server.stderr


def test_success_is_counted_and_timed(server, stub):
    before = handled(server, "OK")
    assert predict(stub, "fine").bundle_version == "fine"
    wait_until(lambda: handled(server, "OK") == before + 1, "the count")
    metrics = server.metrics()
    labels = f'grpc_method="Predict",grpc_service="{SERVICE}",grpc_type="unary"'
    assert metrics[f"grpc_server_started_total{{{labels}}}"] >= before + 1
    assert metrics[f"grpc_server_handling_seconds_count{{{labels}}}"] >= before + 1
    assert f'grpc_server_handling_seconds_bucket{{{labels},le="0.0005"}}' in metrics
    build = [name for name in metrics if name.startswith("mach_build_info{")]
    assert len(build) == 1
    assert 'component="sample"' in build[0]


def test_an_unknown_method_leaves_no_trace_in_the_metrics(server):
    with server.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/made.up/Method")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not any("made.up" in name for name in server.metrics())


def test_reflection_describes_the_services(server):
    with server.channel() as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
        service = DescriptorPool(database).FindServiceByName(SERVICE)
        assert {method.name for method in service.methods} >= {"Predict", "PredictStream"}


def test_reflection_can_be_turned_off():
    with ServerProcess(SAMPLE, "--no-reflection") as server, server.channel() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_turns_to_serving_after_loading_and_back_on_drain(tmp_path):
    go = tmp_path / "go"
    with ServerProcess(SAMPLE, "--start-when", str(go), serving=False) as server:
        assert server.health() == "NOT_SERVING"
        assert server.health(SERVICE) == "NOT_SERVING"
        assert server.health("other.Service") == "NOT_FOUND"
        with server.channel() as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=20
            )
            name = health_pb2.HealthCheckResponse.ServingStatus.Name
            assert name(next(watch).status) == "NOT_SERVING"
            go.touch()
            assert name(next(watch).status) == "SERVING"
            assert server.health() == "SERVING"
            server.signal(signal.SIGTERM)
            assert name(next(watch).status) == "NOT_SERVING"
            with pytest.raises(StopIteration):  # a watch does not hold up the drain
                next(watch)
        assert server.wait() == 0


def test_a_drain_lets_calls_in_flight_finish_and_ends_streams():
    with ServerProcess(SAMPLE) as server, server.channel() as channel:
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        stream = stub.PredictStream(iter_then_wait(shard_pb2.PredictStreamRequest(id=7)))
        assert next(stream).id == 7
        slow = stub.Predict.future(shard_pb2.PredictRequest(bundle_version="slow"))
        wait_until(lambda: started(server), "the call")
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        assert slow.result(timeout=20).bundle_version == "slow"
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "draining"
        assert server.wait() == 0
        assert time.monotonic() - start < 10
        assert "Traceback" not in server.stderr


def iter_then_wait(*requests):
    """Requests, then nothing more: the client's side stays open."""
    yield from requests
    time.sleep(30)


@pytest.mark.parametrize("second_signal", [False, True])
def test_a_drain_ends_when_its_time_is_up_or_at_a_second_signal(second_signal):
    seconds = "30" if second_signal else "0.5"
    with ServerProcess(SAMPLE, "--drain-seconds", seconds) as server, server.channel() as channel:
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        forever = stub.Predict.future(shard_pb2.PredictRequest(bundle_version="forever"))
        wait_until(lambda: started(server), "the call")
        server.signal(signal.SIGINT)
        time.sleep(0.2)
        assert not forever.done()
        if second_signal:
            server.signal(signal.SIGINT)
        assert server.wait(10) == 0
        assert forever.exception(timeout=5).code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        )


def test_sigterm_while_loading_ends_it():
    with ServerProcess(SAMPLE, "--start-when", "/never", serving=False) as server:
        assert server.stop() == 0


def test_sigterm_does_not_wait_for_a_thread_that_loads():
    with ServerProcess(SAMPLE, "--load-seconds", "60", serving=False) as server:
        assert server.stop(15) == 0
        assert "stopped" in server.stderr


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
def test_a_port_in_use_is_one_sentence(flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = [] if flag == "--listen" else ["--listen", "127.0.0.1:0"]
        result = run_server([SAMPLE, flag, address, *listen])
    assert_one_sentence(result, flag, address, "in use")


def test_two_servers_never_share_a_port(server):
    assert_one_sentence(run_server([SAMPLE, "--listen", server.address]), server.address)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--fail", "the bundle is bad"], ["the bundle is bad"]),
        (["--nonsense"], ["--nonsense"]),
        (["--listen", "192.0.2.1:1"], ["--listen 192.0.2.1:1", "assign"]),
        (["--listen", "no-such-host.invalid:1"], ["no-such-host.invalid"]),
        (["--listen", "a..b:0"], ["--listen a..b:0", "not a valid name"]),
        (["--metrics-listen", "a..b:0"], ["--metrics-listen a..b:0", "not a valid name"]),
        (["--health-listen", "unix:"], ["--health-listen unix:", "a path must follow"]),
        (["--listen", f"unix:/tmp/{'x' * 200}"], ["too long"]),
        (["--admin-listen", "127.0.0.1:0"], ["--admin-listen", "no bundles"]),
        (["--ready-file", "/no/such/dir/file"], ["--ready-file /no/such/dir/file"]),
    ],
)
def test_what_stops_a_start_is_one_sentence(arguments, fragments):
    if "--listen" not in arguments:
        arguments = [*arguments, "--listen", "127.0.0.1:0"]
    assert_one_sentence(run_server([SAMPLE, *arguments]), *fragments)


def test_a_defect_at_start_is_logged_and_exits_with_1():
    result = run_server([SAMPLE, "--listen", "127.0.0.1:0", "--fail", "crash"])
    assert result.returncode == 1
    assert "RuntimeError: a defect" in result.stderr


def test_json_logs_are_json_to_the_last_line():
    arguments = ["--listen", "127.0.0.1:0", "--log-format", "json", "--fail", "no bundle"]
    result = run_server([SAMPLE, *arguments])
    assert result.returncode == 2
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert lines[-1]["message"] == "no bundle"
    assert lines[-1]["level"] == "error"


def test_a_unix_socket_serves_too(tmp_path):
    address = f"unix:{tmp_path / 'socket'}"
    with ServerProcess(SAMPLE, listen=address) as server, server.channel() as channel:
        assert server.address == address
        assert predict(shard_pb2_grpc.ShardServiceStub(channel), "x").bundle_version == "x"


def test_a_unix_socket_is_taken_from_no_server_that_answers(tmp_path):
    path = tmp_path / "socket"
    address = f"unix:{path}"
    with ServerProcess(SAMPLE, listen=address) as server:
        for same in (address, f"unix://{path}"):
            second = run_server([SAMPLE, "--listen", same])
            assert_one_sentence(second, f"--listen {same}", "another server answers there")
        assert server.health() == "SERVING"
        server.signal(signal.SIGKILL)  # so that the socket stays
        server.wait()
    assert path.exists()
    with ServerProcess(SAMPLE, listen=address) as server:
        assert server.health() == "SERVING"
        assert server.stop() == 0


def test_a_message_above_the_limit_is_refused():
    with (
        ServerProcess(SAMPLE, "--max-message-bytes", "2000") as server,
        server.channel() as channel,
    ):
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        assert predict(stub, "x" * 1000).bundle_version
        with pytest.raises(grpc.RpcError) as caught:
            predict(stub, "x" * 5000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_beyond_the_limit_are_refused():
    with (
        ServerProcess(SAMPLE, "--max-concurrent-rpcs", "1") as server,
        server.channel() as channel,
    ):
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        slow = stub.Predict.future(shard_pb2.PredictRequest(bundle_version="forever"))
        wait_until(lambda: started(server), "the call")
        with pytest.raises(grpc.RpcError) as caught:
            predict(stub, "fine")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not slow.done()
        slow.cancel()
