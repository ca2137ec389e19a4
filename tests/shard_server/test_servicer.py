"""mach.v1.ShardService over real gRPC, inference held back where a test needs it."""

import asyncio
import time

import grpc
import numpy as np
import pytest

from mach.features import SparseBatch
from mach.v1 import features_pb2, shard_pb2
from mach.wire import EncodedRows, decode_rows, sparse_to_proto
from tests.shard_server.helpers import request, rows, serving

Request = shard_pb2.PredictRequest
Stream = shard_pb2.PredictStreamRequest


def decoded(response):
    return {
        part.repetition: decode_rows(
            EncodedRows(part.data, part.minimum, part.step),
            response.encoding,
            response.num_queries,
            response.num_buckets,
        )
        for part in response.repetitions
    }


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("encoding", "tolerance"),
    [("UNSPECIFIED", 0.05), ("UINT8", 0.05), ("FLOAT16", 0.02), ("FLOAT32", 1e-5)],
)
async def test_it_answers_what_the_model_says(loaded, encoding, tolerance):
    value = shard_pb2.Encoding.Value(f"ENCODING_{encoding}")
    async with serving(loaded) as (stub, _, _):
        response = await stub.Predict(request(loaded, 5, encoding=value, repetitions=[3, 1]))
    assert response.bundle_version == loaded.version
    assert response.num_queries == 5
    assert response.num_buckets == loaded.num_buckets
    assert response.encoding == (value or shard_pb2.ENCODING_UINT8)
    assert [part.repetition for part in response.repetitions] == [3, 1]
    assert response.inference_us > 0
    expected = loaded.run(rows(loaded, 5), [3, 1])
    for repetition, got in decoded(response).items():
        np.testing.assert_allclose(got, expected[repetition], atol=tolerance)


async def test_text_and_its_features_answer_alike(loaded, tiny_bundle):
    titles = tiny_bundle.catalog.table["title"].to_pylist()[:40]
    texts = [*titles, "no such words", "  "]
    features = sparse_to_proto(tiny_bundle.featurizer.batch(texts))
    async with serving(loaded) as (stub, _, _):
        by_text = await stub.Predict(Request(texts=shard_pb2.TextBatch(texts=texts)))
        by_features = await stub.Predict(Request(features=features))
    assert [part.repetition for part in by_text.repetitions] == [0, 1, 2, 3]
    assert by_text.repetitions == by_features.repetitions


def features(indices, values, splits):
    return features_pb2.SparseFeatures(
        indices=np.array(indices, "<i4").tobytes(),
        values=np.array(values, "<f4").tobytes(),
        splits=np.array(splits, "<i4").tobytes(),
    )


BAD_REQUESTS = {
    "no input": (Request(), "input: "),
    "no query": (Request(features=features([], [], [0])), "features.splits: needs 1 to 8"),
    "no splits": (Request(features=features([], [], [])), "features.splits: "),
    "too many": (Request(features=features([], [], [0] * 10)), "features.splits: needs 1 to 8"),
    "half an int": (
        Request(features=features_pb2.SparseFeatures(indices=b"123")), "features.indices: 3 bytes",
    ),
    "falling": (Request(features=features([1, 2], [1, 1], [0, 2, 1, 2])), "features.splits: "),
    "wrapping": (
        Request(features=features([1], [1], [0, 2**31 - 1, -(2**31), 1])), "features.splits: ",
    ),
    "not from 0": (Request(features=features([1, 2], [1, 1], [1, 2])), "features.splits: "),
    "short": (Request(features=features([1, 2], [1, 1], [0, 1])), "features.splits: "),
    "value missing": (Request(features=features([1, 2], [1], [0, 2])), "features.values: 1 values"),
    "feature too high": (Request(features=features([510], [1], [0, 1])), "features.indices: "),
    "feature negative": (Request(features=features([-1], [1], [0, 1])), "features.indices: "),
    "NaN": (Request(features=features([1], [np.nan], [0, 1])), "features.values: "),
    "infinite": (Request(features=features([1], [-np.inf], [0, 1])), "features.values: "),
    "huge": (Request(features=features([1], [3e38], [0, 1])), "features.values: "),
    "too many features": (
        Request(features=features([1] * 21, [1] * 21, [0, 21])), "features.splits: a query has 21",
    ),
    "no text": (Request(texts=shard_pb2.TextBatch()), "texts: needs 1 to 8"),
    "too many texts": (Request(texts=shard_pb2.TextBatch(texts=["a"] * 9)), "texts: needs 1 to 8"),
    "empty text": (Request(texts=shard_pb2.TextBatch(texts=["a", ""])), "texts[1]: "),
    "long text": (
        Request(texts=shard_pb2.TextBatch(texts=["a", "b", "c" * 101])), "texts[2]: ",
    ),
    "encoding": (Request(features=features([1], [1], [0, 1]), encoding=9), "encoding: 9"),
    "repetition twice": (
        Request(features=features([1], [1], [0, 1]), repetitions=[1, 1]), "repetitions: ",
    ),
}  # fmt: skip
LIMITS = {"max_batch_size": 8, "max_nonzeros": 20, "max_text_characters": 100}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_is_told_its_field(loaded, name):
    bad, message = BAD_REQUESTS[name]
    async with serving(loaded, **LIMITS) as (stub, _, _):
        error = await failure(stub.Predict(bad))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().startswith(message)
        assert (await stub.Predict(request(loaded, 8))).num_queries == 8  # at the limit


async def test_a_bad_request_on_a_stream_leaves_it_open(loaded):
    async with serving(loaded, **LIMITS) as (stub, _, registry):
        call = stub.PredictStream()
        for number, (bad, message) in enumerate(BAD_REQUESTS.values(), start=1):
            await call.write(Stream(id=number, request=bad))
            answer = await call.read()
            assert answer.id == number
            assert answer.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert answer.message.startswith(message)
        await call.write(Stream(id=0, request=request(loaded, 2)))
        answer = await call.read()
        assert (answer.id, answer.code, answer.response.num_queries) == (0, 0, 2)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        count = registry.get_sample_value("mach_shard_requests_total", {"code": "INVALID_ARGUMENT"})
        assert count == len(BAD_REQUESTS)


async def test_versions_and_repetitions_not_held_here(loaded):
    one = request(loaded)
    async with serving(loaded) as (stub, _, _):
        one.bundle_version = loaded.version
        assert (await stub.Predict(one)).bundle_version == loaded.version
        one.bundle_version = "f" * 64
        error = await failure(stub.Predict(one))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert loaded.version in error.details()
        assert "f" * 64 in error.details()
        error = await failure(stub.Predict(request(loaded, repetitions=[0, 4])))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details().startswith("repetitions: 4 ")


async def test_before_the_bundle_is_loaded_it_is_unavailable(loaded):
    async with serving(loaded) as (stub, service, _):
        service.bundles._set(None, None)
        describe = shard_pb2.DescribeShardRequest()
        for call in (stub.Predict(request(loaded)), stub.DescribeShard(describe)):
            assert (await failure(call)).code() is grpc.StatusCode.UNAVAILABLE


async def test_an_answer_that_cannot_be_sent_is_refused_and_the_stream_goes_on(loaded):
    async with serving(loaded, max_message_bytes=4000) as (stub, _, _):
        most = (await stub.DescribeShard(shard_pb2.DescribeShardRequest())).max_batch_size
        assert 30 < most < 40  # 4 repetitions, 16 buckets
        call = stub.PredictStream()
        for number, (count, encoding) in enumerate([(most, 3), (most + 1, 3), (most, 1), (1, 1)]):
            one = request(loaded, count, encoding=encoding)
            await call.write(shard_pb2.PredictStreamRequest(id=number, request=one))
            answer = await call.read()
            assert answer.id == number
            assert answer.ByteSize() <= 4000
            if number in (0, 3):
                assert answer.response.num_queries == count
            else:
                assert answer.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
                assert answer.message.startswith("repetitions: 4 of 16 buckets for ")
                assert answer.message.endswith("than the 4000 of --max-message-bytes")
        await call.done_writing()
        error = await failure(stub.Predict(request(loaded, most + 1)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_describe(loaded):
    async with serving(loaded, max_batch_size=77) as (stub, _, _):
        answer = await stub.DescribeShard(shard_pb2.DescribeShardRequest())
    assert answer.bundle_version == loaded.version
    assert list(answer.repetitions) == [0, 1, 2, 3]
    assert (answer.num_buckets, answer.num_features) == (16, 510)
    assert (answer.provider, answer.max_batch_size) == ("cpu", 77)
    assert list(answer.bundle_versions) == [loaded.version]


async def test_answers_come_in_any_order_by_id(gated, loaded):
    async with serving(gated) as (stub, _, _):
        call = stub.PredictStream()
        await call.write(Stream(id=1, request=request(gated, 1)))
        await until(gated.started.is_set)
        # Text that is refused needs no inference: its answer overtakes.
        await call.write(Stream(id=2, request=Request()))
        assert (await call.read()).id == 2
        for number in (7, 5, 9):
            one = request(gated, number, seed=number, encoding=shard_pb2.ENCODING_FLOAT32)
            await call.write(Stream(id=number, request=one))
        gated.gate.set()
        answers = {answer.id: answer for answer in [await call.read() for _ in range(4)]}
        assert set(answers) == {1, 5, 7, 9}
        for number in (5, 7, 9):
            expected = loaded.run(rows(loaded, number, number), loaded.repetitions)
            for repetition, got in decoded(answers[number].response).items():
                np.testing.assert_allclose(got, expected[repetition], atol=1e-5)
        call.cancel()


async def test_a_request_that_runs_out_of_time_is_told_so(gated):
    async with serving(gated) as (stub, _, registry):
        call = stub.PredictStream()
        await call.write(Stream(id=1, request=request(gated, 1)))
        await until(gated.started.is_set)
        await call.write(Stream(id=2, request=request(gated, 2), timeout_us=200_000))
        await call.write(Stream(id=3, request=request(gated, 3)))
        await until(lambda: registry.get_sample_value("mach_shard_in_flight") == 3)
        await asyncio.sleep(0.3)
        gated.gate.set()
        answers = {answer.id: answer for answer in [await call.read() for _ in range(3)]}
        assert answers[2].code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert answers[1].code == answers[3].code == 0
        assert [count for count, _ in gated.calls] == [1, 3]
        call.cancel()


async def test_a_request_that_is_cancelled_is_neither_run_nor_answered(gated):
    async with serving(gated) as (stub, _, registry):
        call = stub.PredictStream()
        await call.write(Stream(id=1, request=request(gated, 1)))
        await until(gated.started.is_set)
        await call.write(Stream(id=2, request=request(gated, 2)))
        await call.write(Stream(id=3, request=request(gated, 3)))
        await call.write(Stream(id=2, cancel=True))
        await call.write(Stream(id=99, cancel=True))  # not in flight: nothing to withdraw
        # Its id is free again at once.
        await call.write(Stream(id=2, request=request(gated, 4)))
        await until(lambda: registry.get_sample_value("mach_shard_in_flight") == 4)
        gated.gate.set()
        answers = [await call.read() for _ in range(3)]
        assert sorted((a.id, a.response.num_queries) for a in answers) == [(1, 1), (2, 4), (3, 3)]
        assert [count for count, _ in gated.calls] == [1, 7]
        call.cancel()


async def test_an_id_in_flight_is_not_taken_twice(gated):
    async with serving(gated) as (stub, _, _):
        call = stub.PredictStream()
        await call.write(Stream(id=1, request=request(gated, 1)))
        await call.write(Stream(id=1, request=request(gated, 2)))
        answer = await call.read()
        assert (answer.id, answer.code) == (1, grpc.StatusCode.INVALID_ARGUMENT.value[0])
        assert answer.message.startswith("id: 1 ")
        gated.gate.set()
        assert (await call.read()).response.num_queries == 1
        call.cancel()


async def test_a_stream_is_not_read_beyond_its_bound(gated):
    async with serving(gated, max_in_flight_per_stream=4) as (stub, _, registry):
        call = stub.PredictStream()
        for number in range(20):
            await call.write(Stream(id=number, request=request(gated)))
        await until(lambda: registry.get_sample_value("mach_shard_in_flight") == 4)
        await asyncio.sleep(0.1)
        assert registry.get_sample_value("mach_shard_in_flight") == 4
        gated.gate.set()
        assert {(await call.read()).id for _ in range(20)} == set(range(20))
        call.cancel()


async def test_a_full_queue_answers_and_the_stream_goes_on(gated):
    async with serving(gated, queue_capacity=3) as (stub, _, registry):
        call = stub.PredictStream()
        await call.write(Stream(id=1, request=request(gated)))
        await until(gated.started.is_set)
        await call.write(Stream(id=2, request=request(gated, 3)))
        await call.write(Stream(id=3, request=request(gated)))
        answer = await call.read()
        assert (answer.id, answer.code) == (3, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        error = await failure(stub.Predict(request(gated)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert any(key == "grpc-retry-pushback-ms" for key, _ in error.trailing_metadata())
        assert registry.get_sample_value("mach_shard_shed_total") == 2
        gated.gate.set()
        assert {(await call.read()).id for _ in range(2)} == {1, 2}
        await call.write(Stream(id=4, request=request(gated)))
        assert (await call.read()).code == 0
        call.cancel()


async def test_a_caller_that_goes_away_costs_nothing_more(gated):
    async with serving(gated) as (stub, _, registry):
        blocker = asyncio.ensure_future(stub.Predict(request(gated, 1)))
        await until(gated.started.is_set)
        call = stub.PredictStream()
        await call.write(Stream(id=1, request=request(gated, 2)))
        unary = stub.Predict(request(gated, 4))
        await until(lambda: registry.get_sample_value("mach_shard_in_flight") == 3)
        call.cancel()
        unary.cancel()
        await until(lambda: registry.get_sample_value("mach_shard_streams") == 0)
        await asyncio.sleep(0.1)
        gated.gate.set()
        await blocker
        await until(lambda: registry.get_sample_value("mach_shard_in_flight") == 0)
        assert [count for count, _ in gated.calls] == [1]


async def test_the_deadline_of_a_unary_call_reaches_the_queue(gated):
    async with serving(gated) as (stub, _, _):
        blocker = asyncio.ensure_future(stub.Predict(request(gated, 1)))
        await until(gated.started.is_set)
        error = await failure(stub.Predict(request(gated, 2), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        gated.gate.set()
        await blocker
        await asyncio.sleep(0.05)
        assert [count for count, _ in gated.calls] == [1]


async def test_a_drain_answers_what_was_accepted_and_ends_the_stream(gated):
    async with serving(gated) as (stub, service, registry):
        call = stub.PredictStream()
        for number in (1, 2, 3):
            await call.write(Stream(id=number, request=request(gated, number)))
        await until(lambda: registry.get_sample_value("mach_shard_in_flight") == 3)
        await service.drain()
        gated.gate.set()
        assert {(await call.read()).id for _ in range(3)} == {1, 2, 3}
        assert (await failure(call.read())).code() is grpc.StatusCode.UNAVAILABLE
        late = stub.PredictStream()
        assert (await failure(late.read())).code() is grpc.StatusCode.UNAVAILABLE


async def test_switching_never_mixes_versions(loaded, tmp_path):
    from mach.inference import LoadedBundle
    from tests.bundles import make_bundle

    other = LoadedBundle.load(make_bundle(tmp_path / "other", seed=1), [0, 1, 2, 3])
    assert other.version != loaded.version
    one = {bundle.version: request(bundle, 3) for bundle in (loaded, other)}
    async with serving(loaded) as (stub, service, registry):
        service.bundles._set(other, loaded)
        for version, bundle in ((loaded.version, loaded), (other.version, other)):
            wanted = one[version]
            wanted.bundle_version = version
            wanted.encoding = shard_pb2.ENCODING_FLOAT32
            response = await stub.Predict(wanted)
            assert response.bundle_version == version
            expected = bundle.run(rows(bundle, 3), [2])[2]
            np.testing.assert_allclose(decoded(response)[2], expected, atol=1e-5)
        assert (await stub.Predict(request(other))).bundle_version == other.version
        labels = {"provider": "cpu", "repetitions": "0,1,2,3"}
        for version, state in ((loaded.version, "standby"), (other.version, "active")):
            everything = {**labels, "bundle_version": version, "state": state}
            assert registry.get_sample_value("mach_shard_info", everything) == 1
        service.bundles.activate(loaded.version)  # and back
        assert (await stub.Predict(request(loaded))).bundle_version == loaded.version


async def test_rows_of_callers_never_mix_under_load(loaded):
    async with serving(loaded, max_batch_size=16) as (stub, _, _):
        rng = np.random.default_rng(0)

        async def caller(seed):
            for turn in range(6):
                count = int(rng.integers(1, 9))
                number = seed * 1000 + turn
                response = await stub.Predict(
                    request(loaded, count, number, encoding=shard_pb2.ENCODING_FLOAT32)
                )
                expected = loaded.run(rows(loaded, count, number), loaded.repetitions)
                for repetition, got in decoded(response).items():
                    np.testing.assert_allclose(got, expected[repetition], atol=1e-5)

        await asyncio.gather(*(caller(seed) for seed in range(12)))


def test_helpers_make_valid_batches(loaded):
    batch = rows(loaded, 3)
    assert isinstance(batch, SparseBatch)
    batch.check(loaded.num_features)
