"""Clients that go away, do not read, or send too much; the servers shrug."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import grpc
import grpc.aio
import pytest

from mach.v1 import search_pb2, search_pb2_grpc, shard_pb2, shard_pb2_grpc
from mach.wire import sparse_to_proto
from tests.chaos.checking import Load, resident_mb
from tests.chaos.conftest import assert_nothing_unforeseen
from tests.servers import ROOT, ServerProcess, wait_until

MEBIBYTE = 1 << 20

LEAVES = """
import asyncio, sys
from mach.client import AsyncMachClient

async def main():
    client = AsyncMachClient(sys.argv[1], timeout=30)
    searches = [asyncio.create_task(client.search("red drill %d" % i)) for i in range(50)]
    await asyncio.sleep(0.3)
    print("sent", flush=True)
    await asyncio.gather(*searches)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def shard(tiny_bundle):
    """A real shard that holds everything."""
    arguments = ["-m", "shard_server", "--bundle", str(tiny_bundle.path)]
    limits = ["--repetition", "0,1,2,3", "--max-message-bytes", str(MEBIBYTE)]
    with ServerProcess(*arguments, *limits) as running:
        yield running
        assert running.stop() == 0, running.stderr
        assert_nothing_unforeseen(running.stderr)


def predict_request(bundle, count=1):
    titles = bundle.catalog.table["title"].to_pylist()[:count]
    return shard_pb2.PredictRequest(features=sparse_to_proto(bundle.featurizer.batch(titles)))


def in_flight(server: ServerProcess) -> float:
    return server.metrics()["mach_aggregator_queries_in_flight"]


async def test_cancelled_searches_cost_the_shards_nothing_more(
    tiny_bundle, aggregator, faulty, fakes, oracle
):
    faulty.delay = None
    request = search_pb2.SearchRequest(
        query=search_pb2.Query(text="red drill"),
        options=search_pb2.SearchOptions(minimum_repetitions=4),
    )
    async with grpc.aio.insecure_channel(aggregator.address) as channel:
        search = search_pb2_grpc.SearchServiceStub(channel).Search

        async def begin_and_leave(seconds):
            call = search(request, timeout=30)
            await asyncio.sleep(seconds)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

        await asyncio.gather(*(begin_and_leave(0.002 * i) for i in range(100)))
        before = resident_mb(aggregator.pid)
        for _ in range(10):
            await asyncio.gather(*(begin_and_leave(0.0005 * i) for i in range(100)))
    await asyncio.to_thread(wait_until, lambda: in_flight(aggregator) == 0, "nothing in flight")
    assert resident_mb(aggregator.pid) < before + 10
    assert faulty.cancelled > 0
    faulty.behave()
    async with Load(aggregator.address, oracle) as load:
        await load.until(lambda: load.seen.complete > 20)


async def test_a_client_killed_in_mid_call(aggregator, faulty, oracle):
    faulty.delay = 20.0
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LEAVES, aggregator.address, cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert client.stdout is not None and await client.stdout.readline() == b"sent\n"
    finally:
        client.kill()
        await client.wait()
    await asyncio.to_thread(wait_until, lambda: in_flight(aggregator) == 0, "nothing in flight")
    faulty.behave()
    async with Load(aggregator.address, oracle) as load:
        await load.until(lambda: load.seen.complete > 20)
        assert load.errors == []


async def test_a_stream_whose_answers_are_not_read(tiny_bundle, shard):
    """The shard stops reading too: what it holds for such a caller is bounded."""
    request = shard_pb2.PredictStreamRequest(request=predict_request(tiny_bundle, 40))
    async with grpc.aio.insecure_channel(
        shard.address, [("grpc.http2.lookahead_bytes", 65536)]
    ) as channel:
        call = shard_pb2_grpc.ShardServiceStub(channel).PredictStream()
        before, sent = resident_mb(shard.pid), 0
        while sent < 20_000:
            request.id = sent = sent + 1
            try:
                await asyncio.wait_for(call.write(request), 1)
            except TimeoutError:
                break
        assert 100 < sent < 20_000
        # 20,000 answers would be 52 MB.
        assert resident_mb(shard.pid) < before + 20
        call.cancel()
        answer = await shard_pb2_grpc.ShardServiceStub(channel).Predict(
            predict_request(tiny_bundle), timeout=5
        )
        assert len(answer.repetitions) == 4
    streams = "mach_shard_streams"
    await asyncio.to_thread(wait_until, lambda: shard.metrics()[streams] == 0, "no stream")


async def test_streams_opened_and_broken_off(tiny_bundle, shard):
    request = shard_pb2.PredictStreamRequest(id=1, request=predict_request(tiny_bundle, 20))

    async def open_and_leave():
        async with grpc.aio.insecure_channel(
            shard.address, [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = shard_pb2_grpc.ShardServiceStub(channel).PredictStream()
            await call.write(request)

    await asyncio.gather(*(open_and_leave() for _ in range(20)))
    before = resident_mb(shard.pid)
    for _ in range(5):
        await asyncio.gather(*(open_and_leave() for _ in range(20)))
    metrics = ("mach_shard_streams", "mach_shard_in_flight")
    await asyncio.to_thread(
        wait_until, lambda: all(shard.metrics()[name] == 0 for name in metrics), "nothing left"
    )
    assert resident_mb(shard.pid) < before + 10


async def expect(code, call):
    start = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    assert failure.value.code() is code, failure.value
    assert time.monotonic() - start < 9


async def test_messages_over_the_limit(tiny_bundle, aggregator, shard, oracle):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    large = "x" * (MEBIBYTE + 1)
    query = search_pb2.Query(text="red drill")
    async with grpc.aio.insecure_channel(aggregator.address) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        single = search_pb2.SearchRequest(query=search_pb2.Query(text=large))
        batch = search_pb2.SearchBatchRequest(queries=[search_pb2.Query(text=large)])
        await asyncio.gather(
            *(expect(code, stub.Search(single, timeout=10)) for _ in range(20)),
            *(expect(code, stub.SearchBatch(batch, timeout=10)) for _ in range(20)),
        )
        # The answer would be too large, not the request.
        options = search_pb2.SearchOptions(k=200, include_attributes=True, explain=True)
        request = search_pb2.SearchBatchRequest(queries=[query] * 40, options=options)
        await expect(grpc.StatusCode.INVALID_ARGUMENT, stub.SearchBatch(request, timeout=9))
    async with Load(aggregator.address, oracle) as load:
        await load.until(lambda: load.seen.complete > 20)
        assert load.errors == []

    async with grpc.aio.insecure_channel(shard.address) as channel:
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        message = shard_pb2.PredictRequest(texts=shard_pb2.TextBatch(texts=[large]))

        async def on_a_stream():
            call = stub.PredictStream(timeout=10)
            await call.write(shard_pb2.PredictStreamRequest(request=message))
            await call.read()

        await asyncio.gather(
            *(expect(code, stub.Predict(message, timeout=10)) for _ in range(20)),
            *(expect(code, on_a_stream()) for _ in range(20)),
        )
        answer = await stub.Predict(predict_request(tiny_bundle), timeout=5)
        assert len(answer.repetitions) == 4
