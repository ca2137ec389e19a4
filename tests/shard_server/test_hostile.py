"""Messages nobody should send: the shard answers each, stays up, and does not grow."""

import contextlib
import random

import grpc
import numpy as np
import pytest

from mach.v1 import shard_pb2, shard_pb2_grpc
from tests.servers import ServerProcess
from tests.shard_server.helpers import request

MESSAGES = 1500
PREDICT = "/mach.v1.ShardService/Predict"
STREAM = "/mach.v1.ShardService/PredictStream"


@pytest.fixture(scope="module")
def server(tiny_bundle):
    arguments = ["--bundle", str(tiny_bundle.path), "--repetition", "0,1"]
    with ServerProcess("-m", "shard_server", *arguments) as server:
        yield server


def mutated(rng, valid):
    """Random bytes, or a valid message with bytes changed, cut, doubled or inserted."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(valid)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        if kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = data[at : at + 20]
        else:
            data[at:at] = rng.randbytes(4)
    return bytes(data)


def hostile_features(rng):
    """Well-formed messages whose arrays are anything."""
    count = rng.randrange(6)
    splits = np.array([rng.choice([0, 1, count, -1, 2**31 - 1, -(2**31)]) for _ in range(4)], "<i4")
    indices = np.array([rng.choice([0, 509, 510, -1, 2**31 - 1]) for _ in range(count)], "<i4")
    values = np.array([rng.choice([0, 1, np.nan, np.inf, 3e38, -1e9]) for _ in range(count)], "<f4")
    message = shard_pb2.PredictRequest()
    message.features.indices = indices.tobytes()
    message.features.values = values.tobytes()[: rng.choice([None, 3])]
    message.features.splits = splits.tobytes()
    message.repetitions.extend(rng.choices([0, 1, 2, 2**32 - 1], k=rng.randrange(3)))
    return message.SerializeToString()


def memory(server):
    return server.metrics()["process_resident_memory_bytes"]


ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}


def test_it_survives_malformed_calls(server, loaded):
    rng = random.Random(0)
    valid = request(loaded, 3).SerializeToString()
    codes = {}
    with server.channel() as channel:
        call = channel.unary_unary(PREDICT)

        def batch(count):
            futures = [
                call.future(mutated(rng, valid) if i % 2 else hostile_features(rng), timeout=20)
                for i in range(count)
            ]
            for future in futures:
                code = future.code().name
                codes[code] = codes.get(code, 0) + 1

        batch(200)
        before = memory(server)
        for _ in range(MESSAGES // 100):
            batch(100)
        assert memory(server) < before + 20e6
        assert set(codes) <= ALLOWED, codes
        assert codes["INVALID_ARGUMENT"] > MESSAGES / 4
        answer = shard_pb2_grpc.ShardServiceStub(channel).Predict(request(loaded, 3))
        assert answer.num_queries == 3
    assert server.health() == "SERVING"
    assert "Traceback" not in server.stderr


def test_it_survives_malformed_streams(server, loaded):
    rng = random.Random(1)
    valid = shard_pb2.PredictStreamRequest(id=1, request=request(loaded, 3)).SerializeToString()
    codes = set()
    with server.channel() as channel:
        for _ in range(100):
            messages = [valid, *(mutated(rng, valid) for _ in range(5)), valid]
            stream = channel.stream_stream(STREAM)(iter(messages), timeout=20)
            with contextlib.suppress(grpc.RpcError):
                list(stream)
            codes.add(stream.code().name)
    assert codes <= {"OK", "INVALID_ARGUMENT"}
    assert server.health() == "SERVING"
    assert server.metrics()["mach_shard_in_flight"] == 0
    assert server.metrics()["mach_shard_streams"] == 0
    assert "Traceback" not in server.stderr


def test_it_survives_clients_that_vanish(server, loaded):
    for turn in range(20):
        channel = server.channel()
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        stream = stub.PredictStream(
            iter([shard_pb2.PredictStreamRequest(id=i, request=request(loaded)) for i in range(9)])
        )
        if turn % 2:
            next(stream)
        channel.close()
    with server.channel() as channel:
        answer = shard_pb2_grpc.ShardServiceStub(channel).Predict(request(loaded))
        assert answer.num_queries == 1
    assert "Traceback" not in server.stderr


def test_a_message_above_the_limit(tiny_bundle, loaded):
    arguments = ["--bundle", str(tiny_bundle.path), "--repetition", "0"]
    with (
        ServerProcess("-m", "shard_server", *arguments, "--max-message-bytes", "5000") as server,
        server.channel() as channel,
    ):
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request(loaded, 200))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Predict(request(loaded, 2)).num_queries == 2
