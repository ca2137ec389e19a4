"""10,000 malformed messages at each port: right statuses, nothing kept, right answers after."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from mach.v1 import admin_pb2, admin_pb2_grpc, search_pb2, shard_pb2, shard_pb2_grpc
from mach.wire import sparse_to_proto
from tests.chaos.checking import Load, resident_mb
from tests.chaos.conftest import addresses, aggregator_over, assert_nothing_unforeseen
from tests.chaos.malformed import Mutator, send_calls, send_connections, send_on_streams
from tests.servers import ServerProcess, wait_until

#: The statuses that a malformed request may end with; INTERNAL, UNKNOWN, UNAVAILABLE and
#: DEADLINE_EXCEEDED are not among them. OK: some stay right by chance.
REFUSED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}


def features_of(bundle, *titles):
    return sparse_to_proto(bundle.featurizer.batch(titles))


def search_requests(bundle):
    row = features_of(bundle, "acme drill red")
    options = [
        search_pb2.SearchOptions(k=3),
        search_pb2.SearchOptions(include_attributes=True, explain=True, minimum_repetitions=2),
        search_pb2.SearchOptions(filter='category = "tools" AND price < 50'),
        search_pb2.SearchOptions(filter='NOT (in_stock = true) OR title IN ("a", "b")', k=1),
        search_pb2.SearchOptions(allowed_product_ids=["P00001", "P00002"], bundle_version="x"),
        search_pb2.SearchOptions(blocked_product_ids=["P00001"], bundle_version=bundle.version),
    ]
    queries = [search_pb2.Query(text="red drill"), search_pb2.Query(features=row)]
    single = [search_pb2.SearchRequest(query=q, options=o) for q in queries for o in options]
    batches = [search_pb2.SearchBatchRequest(queries=queries, options=o) for o in options]
    return [m.SerializeToString() for m in single], [m.SerializeToString() for m in batches]


def shard_requests(bundle):
    texts = shard_pb2.TextBatch(texts=["red drill", "acme"])
    requests = [
        shard_pb2.PredictRequest(features=features_of(bundle, "acme drill", "red"), encoding=3),
        shard_pb2.PredictRequest(features=features_of(bundle, "x"), repetitions=[0, 2]),
        shard_pb2.PredictRequest(texts=texts, bundle_version=bundle.version, encoding=1),
        shard_pb2.PredictRequest(texts=texts, repetitions=[3], encoding=2),
    ]
    streamed = [
        shard_pb2.PredictStreamRequest(id=number, request=request, timeout_us=10**6)
        for number, request in enumerate(requests)
    ]
    streamed.append(shard_pb2.PredictStreamRequest(id=1, cancel=True))
    return [m.SerializeToString() for m in requests], [m.SerializeToString() for m in streamed]


def admin_requests(bundle):
    return [
        message.SerializeToString()
        for message in (
            admin_pb2.LoadBundleRequest(path=str(bundle.path), bundle_version=bundle.version),
            admin_pb2.LoadBundleRequest(path="another", bundle_version="0" * 64),
            admin_pb2.LoadBundleRequest(path="../../../etc"),
            admin_pb2.ActivateBundleRequest(bundle_version="0" * 64),
        )
    ]


@asynccontextmanager
async def unharmed(server):
    """Nothing of what happens within is kept in the server's memory, or is a fault of its own."""
    before = resident_mb(server.pid)
    yield
    assert resident_mb(server.pid) < before + 25
    assert_nothing_unforeseen(server.stderr)
    ended = {name: n for name, n in server.metrics().items() if "server_handled_total" in name}
    unforeseen = ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert sum(ended.values()) > 4000
    assert [name for name in ended if any(f'"{code}"' in name for code in unforeseen)] == []


@pytest.fixture(scope="module")
def shard(tiny_bundle, tmp_path_factory):
    """A real shard that holds everything, with an admin port."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(tiny_bundle.path, root / "bundle")
    arguments = ["-m", "shard_server", "--bundle", str(root / "bundle"), "--repetition", "0,1,2,3"]
    with ServerProcess(*arguments, "--admin-listen", "127.0.0.1:0") as running:
        yield running
        assert running.stop() == 0, running.stderr


@pytest.fixture(scope="module")
def server(tiny_bundle, fakes):
    """An aggregator of its own, whose counts begin at 0."""
    with aggregator_over(tiny_bundle, addresses(fakes)) as running:
        wait_until(lambda: running.metrics()["mach_aggregator_repetitions_ready"] == 4, "all ready")
        yield running
        assert running.stop() == 0, running.stderr


def allowed(statuses, *more):
    assert statuses.keys() <= REFUSED | set(more), statuses
    return statuses


async def attack_beside_the_point(channel, seed):
    """Services that every port has, and methods that none has: 1,500 messages."""
    mutator = Mutator([b"\x0a\x04name"], seed)
    allowed(await send_calls(channel, "/grpc.health.v1.Health/Check", mutator, 500))
    statuses = await send_calls(channel, "/mach.v1.Nobody/Knows", mutator, 500)
    assert statuses == {"UNIMPLEMENTED": 500}
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    await send_on_streams(channel, reflection, mutator, 500)


async def test_the_aggregator(tiny_bundle, server, oracle):
    single, batches = search_requests(tiny_bundle)
    service = "/mach.v1.SearchService"
    # Well-formed searches go on in between, and each answer is checked.
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        Load(server.address, oracle, concurrency=1) as load,
    ):
        await send_calls(channel, f"{service}/Search", Mutator(single, 1), 500)
        async with unharmed(server):
            statuses = await send_calls(channel, f"{service}/Search", Mutator(single, 2), 4500)
            assert allowed(statuses)["INVALID_ARGUMENT"] > 1000
            allowed(await send_calls(channel, f"{service}/SearchBatch", Mutator(batches, 3), 2500))
            await send_calls(channel, f"{service}/DescribeFleet", Mutator(single, 4), 500)
            await attack_beside_the_point(channel, 5)
            await send_connections(server.address, Mutator([], 6), 500)
        complete = load.seen.complete
        await load.until(lambda: load.seen.complete > complete + 20)
        assert load.errors == []


async def test_a_shard(tiny_bundle, shard):
    unary, streamed = shard_requests(tiny_bundle)
    service = "/mach.v1.ShardService"
    async with grpc.aio.insecure_channel(shard.address) as channel:
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        request = shard_pb2.PredictRequest.FromString(unary[0])
        good = await stub.Predict(request, timeout=5)
        await send_calls(channel, f"{service}/Predict", Mutator(unary, 1), 500)
        async with unharmed(shard):
            statuses = allowed(
                await send_calls(channel, f"{service}/Predict", Mutator(unary, 2), 3000)
            )
            assert statuses["INVALID_ARGUMENT"] > 1000
            await send_on_streams(channel, f"{service}/PredictStream", Mutator(streamed, 3), 4000)
            await send_calls(channel, f"{service}/DescribeShard", Mutator(unary, 4), 500)
            await attack_beside_the_point(channel, 5)
            await send_connections(shard.address, Mutator([], 6), 500)
        again = await stub.Predict(request, timeout=5)
        assert again.repetitions == good.repetitions
    metrics = ("mach_shard_streams", "mach_shard_in_flight", "mach_shard_queue_depth")
    await asyncio.to_thread(
        wait_until, lambda: all(shard.metrics()[name] == 0 for name in metrics), "nothing left"
    )


async def test_the_admin_port(tiny_bundle, shard):
    requests = admin_requests(tiny_bundle)
    service = "/mach.v1.AdminService"
    before = resident_mb(shard.pid)
    async with grpc.aio.insecure_channel(shard.admin_address) as channel:
        describe = admin_pb2_grpc.AdminServiceStub(channel).DescribeBundles
        loaded = await describe(admin_pb2.DescribeBundlesRequest(), timeout=5)
        for seed, method in enumerate(("LoadBundle", "ActivateBundle", "UnloadBundle")):
            mutator = Mutator(requests, seed)
            allowed(await send_calls(channel, f"{service}/{method}", mutator, 2800), "OK")
        await send_calls(channel, f"{service}/DescribeBundles", Mutator(requests, 3), 100)
        # The service for queries is not offered here.
        statuses = await send_calls(
            channel, "/mach.v1.ShardService/Predict", Mutator(requests, 4), 100
        )
        assert statuses == {"UNIMPLEMENTED": 100}
        await attack_beside_the_point(channel, 5)
        await send_connections(shard.admin_address, Mutator([], 6), 500)
        assert await describe(admin_pb2.DescribeBundlesRequest(), timeout=5) == loaded
    assert resident_mb(shard.pid) < before + 25
    assert_nothing_unforeseen(shard.stderr)


@pytest.mark.parametrize("which", ["server", "shard"])
async def test_a_metrics_port(which, request):
    """HTTP for the eyes of the operator only; strangers cannot stop it either."""
    running = request.getfixturevalue(which)
    before = resident_mb(running.pid)
    await send_connections(running.metrics_address, Mutator([], 1), 1000)
    metrics = await asyncio.to_thread(running.metrics)
    assert metrics["process_resident_memory_bytes"] > 0
    assert resident_mb(running.pid) < before + 25
