"""What a shard shows to Prometheus; documented in ``docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mach.inference import LoadedBundle
from mach.serving import LATENCY_BUCKETS

__all__ = ["ShardMetrics"]

_INFERENCE_BUCKETS = (0.00005, 0.0001, 0.0002, *LATENCY_BUCKETS[:-3])
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ShardMetrics:
    """The metrics of one shard process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queue_depth = Gauge(
            "mach_shard_queue_depth", "Queries waiting for inference.", registry=registry
        )
        self.in_flight = Gauge(
            "mach_shard_in_flight",
            "Requests accepted and not yet computed, on streams and off.",
            registry=registry,
        )
        self.streams = Gauge("mach_shard_streams", "Streams open.", registry=registry)
        self.queue_wait = Histogram(
            "mach_shard_queue_wait_seconds",
            "Time from a request's receipt to the start of its inference.",
            buckets=_INFERENCE_BUCKETS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "mach_shard_batch_size",
            "Queries run together.",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        inference = Histogram(
            "mach_shard_inference_seconds",
            "Time of one batch in one repetition's model.",
            ("repetition",),
            buckets=_INFERENCE_BUCKETS,
            registry=registry,
        )
        requests = Counter(
            "mach_shard_requests",
            "Requests answered, on streams and off, by status code.",
            ("code",),
            registry=registry,
        )
        dropped = Counter(
            "mach_shard_dropped",
            "Requests dropped before they cost inference: expired or cancelled.",
            ("reason",),
            registry=registry,
        )
        self.shed = Counter(
            "mach_shard_shed",
            "Requests refused because the queue was full or the wait would exceed their time.",
            registry=registry,
        )
        self._info = Gauge(
            "mach_shard_info",
            "1 for each bundle version loaded, labelled with its state: active or standby.",
            ("bundle_version", "provider", "repetitions", "state"),
            registry=registry,
        )
        # labels() takes longer than inc(): look each child up once.
        self.inference: Callable[[int], Any] = lru_cache(maxsize=None)(inference.labels)
        self.requests: Callable[[str], Any] = lru_cache(maxsize=None)(requests.labels)
        self.dropped: Callable[[str], Any] = lru_cache(maxsize=None)(dropped.labels)
        for reason in ("expired", "cancelled"):
            self.dropped(reason)

    def show_bundles(self, active: LoadedBundle | None, standby: LoadedBundle | None) -> None:
        """Show what is loaded."""
        self._info.clear()
        for loaded, state in ((active, "active"), (standby, "standby")):
            if loaded is not None:
                repetitions = ",".join(map(str, loaded.repetitions))
                self._info.labels(loaded.version, loaded.provider, repetitions, state).set(1)
