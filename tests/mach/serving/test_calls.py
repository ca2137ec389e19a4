"""Request ids, and what is logged and counted during a call."""

import json
from urllib.request import Request, urlopen

import grpc
import pytest

from mach.v1 import shard_pb2, shard_pb2_grpc
from tests.collector import Collector
from tests.servers import ServerProcess

SAMPLE = "tests/mach/serving/sample_server.py"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-00f067aa0ba902b7-0{flag}" for flag in (1, 0))


@pytest.fixture(scope="module")
def collector():
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def server(collector):
    arguments = [SAMPLE, "--log-format", "json"]
    with ServerProcess(*arguments, env=collector.environment()) as running:
        yield running


@pytest.fixture
def stub(server):
    with server.channel() as channel:
        yield shard_pb2_grpc.ShardServiceStub(channel)


def call(stub, version="fine", **metadata):
    """Status code and trailers of a call."""
    pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    request = shard_pb2.PredictRequest(bundle_version=version)
    try:
        _, done = stub.Predict.with_call(request, metadata=pairs, timeout=5)
    except grpc.RpcError as error:
        done = error
    return done.code().name, dict(done.trailing_metadata())


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ("fine", "OK"),
        ("invalid", "INVALID_ARGUMENT"),
        ("overloaded", "RESOURCE_EXHAUSTED"),
        ("crash", "INTERNAL"),
        ("abort", "DATA_LOSS"),
    ],
)
def test_a_callers_request_id_comes_back(stub, version, code):
    got, trailers = call(stub, version, x_request_id="order-7:a/b_c.d+e=f@g")
    assert got == code
    assert trailers["x-request-id"] == "order-7:a/b_c.d+e=f@g"
    assert ("grpc-retry-pushback-ms" in trailers) == (version == "overloaded")


@pytest.mark.parametrize("given", ["", " ", "-begins-ill", "a b", "a" * 65, 'a"b', "a%0Ab"])
def test_an_id_that_is_none_is_replaced(stub, given):
    _, trailers = call(stub, x_request_id=given)
    made = trailers["x-request-id"]
    assert len(made) == 16
    assert int(made, 16) >= 0
    assert call(stub)[1]["x-request-id"] != made


def test_a_stream_has_one_too(stub):
    stream = stub.PredictStream(iter([shard_pb2.PredictStreamRequest(id=1)]))
    assert [answer.id for answer in stream] == [1]
    assert dict(stream.trailing_metadata())["x-request-id"]


def log_of(server, request_id):
    lines = [json.loads(line) for line in server.stderr.splitlines() if line.startswith("{")]
    return next(line for line in lines if line.get("request_id") == request_id)


def test_lines_of_a_call_carry_its_ids(server, stub, collector):
    call(stub, "crash", x_request_id="traced", traceparent=SAMPLED)
    call(stub, "crash", x_request_id="plain")
    traced, plain = log_of(server, "traced"), log_of(server, "plain")
    assert traced["message"] == plain["message"] == "mach.v1.ShardService.Predict failed"
    assert traced["trace_id"] == TRACE
    assert "trace_id" not in plain
    spans = collector.wait_for(lambda spans: any(s.failed for s in spans), "the failed call")
    (span,) = [span for span in spans if span.attributes.get("mach.request_id") == "traced"]
    assert span.span_id == traced["span_id"]
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert "request_id" not in json.loads(server.stderr.splitlines()[0])  # outside calls


def test_an_unsampled_call_is_logged_with_its_trace(server, stub, collector):
    call(stub, "crash", x_request_id="unsampled", traceparent=UNSAMPLED)
    assert log_of(server, "unsampled")["trace_id"] == TRACE
    call(stub, "abort", x_request_id="later", traceparent=SAMPLED)

    def ids(spans):
        return {span.attributes.get("mach.request_id") for span in spans}

    assert "unsampled" not in ids(collector.wait_for(lambda s: "later" in ids(s), "the later call"))


def test_latencies_have_the_trace_as_an_example(server, stub):
    call(stub, "invalid", traceparent=SAMPLED)
    accept = "application/openmetrics-text; version=1.0.0"
    request = Request(f"http://{server.metrics_address}/metrics", headers={"Accept": accept})
    with urlopen(request, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    examples = [line for line in lines if f'trace_id="{TRACE}"' in line.partition(" # ")[2]]
    assert examples
    assert all(line.startswith("grpc_server_handling_seconds_bucket{") for line in examples)
