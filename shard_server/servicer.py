"""``mach.v1.ShardService``: a thin layer over the core."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mach.errors import MachError, status_of
from mach.v1 import shard_pb2, shard_pb2_grpc
from shard_server.batcher import Job
from shard_server.core import ShardCore
from shard_server.messages import fill_response, make_job
from shard_server.metrics import ShardMetrics
from shard_server.stream import PredictStreams

__all__ = ["ShardServicer"]


class ShardServicer(shard_pb2_grpc.ShardServiceServicer):
    """Parses, calls the core, and leaves errors to the interceptor."""

    def __init__(self, core: ShardCore, streams: PredictStreams, metrics: ShardMetrics) -> None:
        self._core = core
        self._streams = streams
        self._metrics = metrics

    async def Predict(self, request: shard_pb2.PredictRequest, context: Any) -> Any:
        """One batch."""
        received = time.monotonic()
        remaining = context.time_remaining()
        deadline = None if remaining is None else received + remaining
        try:
            response = await self._predict(request, received, deadline)
        except MachError as error:
            self._metrics.requests(status_of(error).name).inc()
            raise
        self._metrics.requests("OK").inc()
        return response

    async def _predict(
        self, request: shard_pb2.PredictRequest, received: float, deadline: float | None
    ) -> shard_pb2.PredictResponse:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_done(_: Job) -> None:
            if not done.done():
                done.set_result(None)

        job = await make_job(self._core, request, on_done, received=received, deadline=deadline)
        self._core.submit(job)
        try:
            await done
        except asyncio.CancelledError:
            job.cancel()
            raise
        if job.error is not None:
            raise job.error
        response = shard_pb2.PredictResponse()
        fill_response(response, job)
        return response

    async def PredictStream(  # type: ignore[override] # reads and writes through the context
        self, request_iterator: Any, context: Any
    ) -> None:
        """Batches on a long-lived stream."""
        await self._streams.serve(context)

    async def DescribeShard(self, request: Any, context: Any) -> shard_pb2.DescribeShardResponse:
        """What is loaded."""
        bundles = self._core.bundles
        active = bundles.active
        return shard_pb2.DescribeShardResponse(
            bundle_version=active.version,
            repetitions=active.repetitions,
            num_buckets=active.num_buckets,
            num_features=active.num_features,
            provider=active.provider,
            max_batch_size=self._core.max_rows(active, shard_pb2.ENCODING_UINT8),
            bundle_versions=bundles.versions,
        )
