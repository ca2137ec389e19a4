"""The shard as a :class:`mach.serving.Service`."""

from __future__ import annotations

from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry

from mach.bundle import Bundle, files_for
from mach.inference import LoadedBundle
from mach.serving import Health, Service
from mach.serving.bundles import BundleHost
from mach.v1 import shard_pb2, shard_pb2_grpc
from shard_server.batcher import Batcher
from shard_server.core import Limits, ShardCore
from shard_server.metrics import ShardMetrics
from shard_server.servicer import ShardServicer
from shard_server.settings import ShardSettings
from shard_server.stream import PredictStreams

__all__ = ["ShardService"]


class ShardService(Service):
    """Loads the repetitions it is told to and serves them."""

    bundles: BundleHost[LoadedBundle]
    asks_for_tokens = False  # aggregators have certificates
    names = (shard_pb2.DESCRIPTOR.services_by_name["ShardService"].full_name,)

    def __init__(self, settings: ShardSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._metrics = ShardMetrics(registry)
        self._batcher = Batcher(
            self._metrics,
            max_batch_size=settings.max_batch_size,
            queue_capacity=settings.queue_capacity,
            workers=settings.workers,
            inline_seconds=settings.inline_microseconds * 1e-6,
        )
        limits = Limits(
            settings.max_batch_size,
            settings.max_nonzeros,
            settings.max_text_characters,
            settings.max_message_bytes,
        )
        self.bundles = BundleHost(
            self._open,
            self._load,
            registry,
            root=settings.bundle_root or settings.bundle.absolute().parent,
            on_change=self._metrics.show_bundles,
        )
        self._core = ShardCore(limits, self.bundles, self._batcher)
        self._streams = PredictStreams(self._core, self._metrics, settings.max_in_flight_per_stream)

    def register(self, server: grpc.aio.Server) -> None:
        """Add ``mach.v1.ShardService``."""
        servicer = ShardServicer(self._core, self._streams, self._metrics)
        shard_pb2_grpc.add_ShardServiceServicer_to_server(servicer, server)

    def _open(self, path: Path) -> Bundle:
        return Bundle.open(
            path, files=lambda manifest: files_for(manifest, "shard", self._settings.repetition)
        )

    def _load(self, bundle: Bundle) -> LoadedBundle:
        return LoadedBundle.load(
            bundle,
            self._settings.repetition,
            provider=self._settings.provider,
            threads=self._settings.threads,
            workers=self._settings.workers,
            cuda=self._settings.cuda,
        )

    async def start(self, health: Health) -> None:
        """Verify, load, warm up."""
        await self.bundles.load_first(self._settings.bundle)
        health.set_serving(True)

    async def drain(self) -> None:
        """End the streams."""
        self._streams.drain()

    async def close(self) -> None:
        """End the worker threads."""
        self._batcher.close()
