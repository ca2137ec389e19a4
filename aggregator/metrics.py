"""The aggregator's Prometheus metrics, ``mach_aggregator_*``; all times are in seconds."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from aggregator.coverage import Coverage
from mach.serving.metrics import LATENCY_BUCKETS

__all__ = ["AggregatorMetrics"]

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARE_BUCKETS = (0.0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0)
_CANDIDATE_BUCKETS = tuple(10**power for power in range(2, 9))


class AggregatorMetrics:
    """What the aggregator counts and times."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "mach_aggregator_"

        def histogram(
            name: str, text: str, buckets: tuple[float, ...] = LATENCY_BUCKETS, labels: str = ""
        ) -> Histogram:
            return Histogram(
                prefix + name, text, labels.split(), buckets=buckets, registry=registry
            )

        def counter(name: str, text: str, labels: str = "") -> Counter:
            return Counter(prefix + name, text, labels.split(), registry=registry)

        def gauge(name: str, text: str, labels: str = "") -> Gauge:
            return Gauge(prefix + name, text, labels.split(), registry=registry)

        self.queries_in_flight = gauge("queries_in_flight", "Queries accepted and not answered.")
        self.queue_depth = gauge("queue_depth", "Queries waiting to be sent to the shards.")
        self.queue_wait = histogram("queue_wait_seconds", "Wait before a call's queries are sent.")
        self.batch_size = histogram(
            "batch_size", "Queries sent to the shards together.", _BATCH_BUCKETS
        )
        self.fanout = histogram(
            "fanout_seconds", "From a batch's first message to its last answer used."
        )
        self.merge = histogram("merge_seconds", "Merge, top-k and product look-up of a batch.")
        self.candidates = histogram(
            "candidates", "Products looked at for a query, mean of a batch.", _CANDIDATE_BUCKETS
        )
        self._coverage = histogram(
            "coverage_ratio", "Share of the repetitions a call's answers rest on.", _SHARE_BUCKETS
        )
        self._degraded = counter(
            "degraded_total", "Repetitions missing from calls answered, by reason.", "reason"
        )
        self.shed = counter("shed_total", "Calls refused because of load, by reason.", "reason")
        self.dropped = counter(
            "dropped_total", "Calls dropped before they were sent to a shard, by reason.", "reason"
        )
        self.hedges = counter(
            "hedges_total", "Messages sent again to another replica, by outcome.", "outcome"
        )
        self.retries = counter("retries_total", "Messages sent again because a replica failed.")
        self.ejections = counter("ejections_total", "Endpoints left out for a while.")
        self.repetitions_ready = gauge(
            "repetitions_ready", "Repetitions that an endpoint in use holds."
        )
        self.repetitions = gauge("repetitions", "Repetitions of the bundle served.")
        self._num_repetitions = 0
        self._repetition_ready = gauge(
            "repetition_ready_endpoints", "Endpoints in use that hold a repetition.", "repetition"
        )
        self.endpoints = gauge("endpoints", "Shard addresses, by state.", "state")
        self._bundles = gauge(
            "bundle_info", "1 for each bundle version loaded.", "bundle_version state"
        )
        self._rpc = histogram(
            "shard_rpc_seconds",
            "From a message to a shard to its answer, by repetition and outcome.",
            LATENCY_BUCKETS,
            "repetition outcome",
        )
        self._rpc_children: dict[tuple[int, str], Histogram] = {}

    def show_bundles(self, versions: Sequence[str]) -> None:
        """These are loaded, the active one first."""
        self._bundles.clear()
        for version, state in zip(versions, ("active", "standby"), strict=False):
            self._bundles.labels(version, state).set(1)

    def show_repetitions(self, endpoints: Sequence[int]) -> None:
        """So many endpoints in use hold repetition 0, 1 and so on; there are no others."""
        for repetition, count in enumerate(endpoints):
            self._repetition_ready.labels(str(repetition)).set(count)
        # Those of a bundle of more would otherwise say for ever what they said last.
        for repetition in range(len(endpoints), self._num_repetitions):
            self._repetition_ready.remove(str(repetition))
        self._num_repetitions = len(endpoints)

    def rpc(
        self,
        repetitions: tuple[int, ...],
        outcome: str,
        seconds: float,
        exemplar: dict[str, str] | None = None,
    ) -> None:
        """A shard answered, failed, or was given up; in a trace, if there is an exemplar."""
        for repetition in repetitions:
            child = self._rpc_children.get((repetition, outcome))
            if child is None:
                child = self._rpc.labels(str(repetition), outcome)
                self._rpc_children[repetition, outcome] = child
            child.observe(seconds, exemplar)

    def covered(self, coverage: Coverage) -> None:
        """A call was answered."""
        self._coverage.observe(coverage.answered / coverage.total)
        for reason in coverage.missing.values():
            self._degraded.labels(reason.name.lower()).inc()
