"""A server for the tests: the shard's contract, answers chosen by the bundle_version asked for."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from pydantic_settings import SettingsConfigDict

from mach.errors import BundleError, InvalidInput, Overloaded, Unavailable, VersionNotFound
from mach.serving import Health, Service, ServingSettings, main
from mach.v1 import shard_pb2, shard_pb2_grpc


class SampleSettings(ServingSettings):
    model_config = SettingsConfigDict(env_prefix="MACH_SAMPLE_")

    start_when: Path | None = None
    """Loading ends when this file is there."""
    load_seconds: float = 0.0
    """How long a thread loads, which nothing interrupts."""
    fail: str = ""
    """The sentence, or 'crash', that loading fails with."""
    drain_streams: bool = True
    """Whether streams end on drain."""


class SampleServicer(shard_pb2_grpc.ShardServiceServicer):
    def __init__(self) -> None:
        self.draining = asyncio.Event()

    async def Predict(self, request: Any, context: Any) -> Any:
        match request.bundle_version:
            case "invalid":
                raise InvalidInput("texts", "are wrong")
            case "overloaded":
                raise Overloaded("the queue is full", retry_after_ms=70)
            case "unavailable":
                raise Unavailable("not yet")
            case "unknown":
                raise VersionNotFound("no such version")
            case "crash":
                raise RuntimeError("secret detail")
            case "abort":
                await context.abort(grpc.StatusCode.DATA_LOSS, "lost")
            case "slow":
                await asyncio.sleep(1.0)
            case "forever":
                await asyncio.sleep(3600)
        return shard_pb2.PredictResponse(bundle_version=request.bundle_version)

    async def PredictStream(self, request_iterator: Any, context: Any) -> None:
        draining = asyncio.create_task(self.draining.wait())
        while True:
            reading = asyncio.create_task(context.read())
            await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                reading.cancel()
                raise Unavailable("draining")
            request = reading.result()
            if request is grpc.aio.EOF:
                return
            await context.write(shard_pb2.PredictStreamResponse(id=request.id))


class SampleService(Service):
    names = ("mach.v1.ShardService",)

    def __init__(self, settings: SampleSettings, registry: CollectorRegistry) -> None:
        self.settings = settings
        self.servicer = SampleServicer()

    def register(self, server: grpc.aio.Server) -> None:
        shard_pb2_grpc.add_ShardServiceServicer_to_server(self.servicer, server)

    def _waiting(self) -> bool:
        return self.settings.start_when is not None and not self.settings.start_when.exists()

    async def start(self, health: Health) -> None:
        while self._waiting():  # noqa: ASYNC110 - another process ends it
            await asyncio.sleep(0.01)
        if self.settings.load_seconds:
            await asyncio.to_thread(time.sleep, self.settings.load_seconds)
        if self.settings.fail == "crash":
            raise RuntimeError("a defect")
        if self.settings.fail:
            raise BundleError(self.settings.fail)
        health.set_serving(True)

    async def drain(self) -> None:
        if self.settings.drain_streams:
            self.servicer.draining.set()


if __name__ == "__main__":
    sys.exit(main(SampleSettings, SampleService, component="sample"))
