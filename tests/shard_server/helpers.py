"""A shard whose inference waits for the test, and one behind real gRPC in this process."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
from prometheus_client import CollectorRegistry

from mach.features import SparseBatch
from mach.inference import LoadedBundle
from mach.serving.interceptors import ErrorInterceptor
from mach.v1 import shard_pb2, shard_pb2_grpc
from mach.wire import sparse_to_proto
from shard_server.service import ShardService
from shard_server.settings import ShardSettings


class GatedBundle(LoadedBundle):
    """Inference waits until ``gate`` is set; ``calls`` lists the rows and repetitions of each."""

    def __init__(self, loaded: LoadedBundle) -> None:
        super().__init__(loaded.bundle, loaded._groups)
        self.gate = threading.Event()
        self.started = threading.Event()
        self.calls: list[tuple[int, tuple[int, ...]]] = []
        self.failing_rows: set[int] = set()

    def seconds(self, rows: int, entries: int, num_repetitions: int) -> float:
        return 30.0  # far above what runs on the event loop

    def run(self, batch, repetitions, observe=None):
        self.calls.append((len(batch), tuple(repetitions)))
        self.started.set()
        assert self.gate.wait(20)
        if len(batch) in self.failing_rows:
            raise RuntimeError("out of memory")
        return super().run(batch, repetitions, observe)


def rows(loaded: LoadedBundle, count: int, seed: int = 0) -> SparseBatch:
    """Random queries."""
    rng = np.random.default_rng(seed)
    return SparseBatch.from_rows(
        (
            rng.choice(loaded.num_features, 5, replace=False).astype(np.int32),
            rng.random(5, np.float32),
        )
        for _ in range(count)
    )


def request(loaded: LoadedBundle, count: int = 1, seed: int = 0, **fields) -> object:
    """A PredictRequest of random queries."""
    return shard_pb2.PredictRequest(features=sparse_to_proto(rows(loaded, count, seed)), **fields)


@asynccontextmanager
async def serving(loaded: LoadedBundle, **settings) -> AsyncIterator[tuple]:
    """(stub, service, registry) of a shard in this process with ``loaded`` as its bundle."""
    registry = CollectorRegistry()
    service = ShardService(
        ShardSettings(bundle=loaded.bundle.path, repetition=[0], **settings), registry
    )
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    service.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    service.bundles._set(loaded, None)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield shard_pb2_grpc.ShardServiceStub(channel), service, registry
    finally:
        if isinstance(loaded, GatedBundle):
            loaded.gate.set()
        await service.drain()
        await server.stop(5)
        await service.close()
