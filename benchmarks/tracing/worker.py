"""A client, an aggregator and shards in one process, over gRPC on loopback.

Reads ``IN_FLIGHT CALLS`` from stdin, makes the calls, and answers with a line: CPU seconds of
the whole process for each. It runs checkouts of before tracing too, so it imports little.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry

from aggregator.service import AggregatorService
from aggregator.settings import AggregatorSettings
from mach.bundle import Bundle
from mach.serving import ErrorInterceptor, Health, MetricsInterceptor
from mach.serving.metrics import ServerMetrics
from mach.v1 import search_pb2, search_pb2_grpc
from shard_server.service import ShardService
from shard_server.settings import ShardSettings

try:
    from mach.serving.calls import CallInterceptor
    from mach.tracing import configure
except ImportError:  # a checkout of before
    CallInterceptor = configure = None


async def serve(make, settings, starts_traces):
    """A service at a free port, ready."""
    registry = CollectorRegistry()
    service = make(settings, registry)
    around = [MetricsInterceptor(ServerMetrics(registry)), ErrorInterceptor()]
    if CallInterceptor is not None:
        around.insert(0, CallInterceptor(starts_traces=starts_traces))
    server = grpc.aio.server(interceptors=around)
    service.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    health = Health(service.names)
    await service.start(health)
    return f"127.0.0.1:{port}", server


async def main(path: Path) -> None:
    if configure is not None:
        configure("benchmark")
    bundle = Bundle.open(path)
    repetitions = range(bundle.manifest.num_repetitions)
    shards = [
        await serve(ShardService, ShardSettings(bundle=path, repetition=[r]), False)
        for r in repetitions
    ]
    settings = AggregatorSettings(
        bundle=path, shards=[address for address, _ in shards], minimum_repetitions=len(shards)
    )
    address, _server = await serve(AggregatorService, settings, True)
    titles = bundle.catalog.table["title"].to_pylist()
    requests = [
        search_pb2.SearchRequest(
            query=search_pb2.Query(text=title), options=search_pb2.SearchOptions(k=10)
        )
        for title in titles
    ]
    async with grpc.aio.insecure_channel(address) as channel:
        search = search_pb2_grpc.SearchServiceStub(channel).Search
        while True:  # until all shards are known
            try:
                await search(requests[0], timeout=5)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            in_flight, calls = map(int, line.split())
            print(
                await measure(partial(search, timeout=10), requests, in_flight, calls), flush=True
            )


async def measure(search, requests, in_flight: int, calls: int) -> float:
    """CPU seconds a call."""
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            await search(requests[number % len(requests)])

    started = time.process_time()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return (time.process_time() - started) / calls


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
