"""The aggregator as a process: what is loaded and connected, and when it is ready."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry

from aggregator.core import Aggregator
from aggregator.merging import warm_up
from aggregator.metrics import AggregatorMetrics
from aggregator.served import ServedBundle
from aggregator.servicer import SearchServicer
from aggregator.settings import AggregatorSettings
from aggregator.transport import (
    RenewingTransport,
    ShardTransport,
    StreamTransport,
    UnaryTransport,
)
from aggregator.transport.channel import open_channel
from mach.bundle import Bundle, files_for
from mach.errors import ConfigError
from mach.serving import Health, Service, Watched
from mach.serving.bundles import BundleHost
from mach.tls import ClientTls
from mach.v1 import search_pb2, search_pb2_grpc

__all__ = ["AggregatorService", "connect"]


def connect(
    address: str,
    name: str = "",
    *,
    transport: str,
    max_message_bytes: int,
    tls: ClientTls | None = None,
) -> ShardTransport:
    """A transport for one shard address.

    Args:
        address: HOST:PORT or unix:PATH.
        name: the name by which it was found; its certificate must have it, where ``tls`` names
            no other.
        transport: ``stream`` or ``unary``.
        max_message_bytes: the largest message sent or received.
        tls: certificates; plain text where not given.
    """
    kind = StreamTransport if transport == "stream" else UnaryTransport
    if tls is None:
        return kind(address, open_channel(address, max_message_bytes=max_message_bytes))

    def open_secure() -> ShardTransport:
        channel = open_channel(
            address,
            max_message_bytes=max_message_bytes,
            credentials=tls.credentials(),
            server_name=tls.server_name or name,
        )
        return kind(address, channel)

    return RenewingTransport(open_secure, lambda: tls.files.value)


class AggregatorService(Service):
    """A bundle and the shards that answer for it; and, while it is switched, two bundles.

    SERVING while enough repetitions of the active bundle are reachable; a process whose shards
    are all away is alive nonetheless, and becomes ready when they come.
    """

    bundles: BundleHost[ServedBundle]
    starts_traces = True
    names = (search_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name,)

    def __init__(self, settings: AggregatorSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._health: Health | None = None
        tls = settings.shard_tls
        if tls is not None:
            self.watched = [Watched(tls.files, tls.expires, self._connect_anew)]
        self.bundles = BundleHost(
            self._open,
            self._load,
            registry,
            root=settings.bundle_root or settings.bundle.absolute().parent,
            on_change=self._bundles_changed,
            before_activate=self._check_shards,
        )
        self._aggregator = Aggregator(
            self.bundles,
            settings.targets,
            partial(
                connect,
                transport=settings.transport,
                max_message_bytes=settings.max_message_bytes,
                tls=tls,
            ),
            policy=settings.policy,
            limits=settings.limits,
            metrics=AggregatorMetrics(registry),
            merge_threads=settings.merge_threads,
            on_ready=self._tell,
        )

    def _connect_anew(self) -> None:
        self._aggregator.fleet.ask_again()

    def register(self, server: grpc.aio.Server) -> None:
        """See :class:`Service`."""
        servicer = SearchServicer(
            self._aggregator,
            default_seconds=self._settings.default_timeout_seconds,
            margin_seconds=self._settings.deadline_margin_seconds,
            max_message_bytes=self._settings.max_message_bytes,
            log_queries=self._settings.log_queries,
        )
        search_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)

    def _open(self, path: Path) -> Bundle:
        return Bundle.open(path, files=lambda manifest: files_for(manifest, "aggregator"))

    def _load(self, bundle: Bundle) -> ServedBundle:
        """Called on a thread."""
        minimum = self._settings.minimum_repetitions or 1
        if minimum > bundle.manifest.num_repetitions:
            raise ConfigError(
                f"--minimum-repetitions {minimum} is more than the bundle's "
                f"{bundle.manifest.num_repetitions}"
            )
        served = ServedBundle(bundle)
        warm_up(served, self._settings.encoding_number)
        return served

    def _bundles_changed(self, active: ServedBundle | None, standby: ServedBundle | None) -> None:
        self._aggregator.bundles_changed()

    async def _check_shards(self, served: ServedBundle) -> None:
        await self._aggregator.check_shards(served)

    def _tell(self, ready: bool) -> None:
        if self._health is not None:
            self._health.set_serving(ready)

    async def start(self, health: Health) -> None:
        """See :class:`Service`."""
        self._health = health
        await self.bundles.load_first(self._settings.bundle)
        await self._aggregator.start()

    async def close(self) -> None:
        """See :class:`Service`."""
        await self._aggregator.close()
