"""What happened to every request, and the figures made of it."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

__all__ = ["UNSENT", "LoadReport", "Outcomes"]

_SHED = grpc.StatusCode.RESOURCE_EXHAUSTED.name
#: What stands for a status of requests that the generator did not come to send.
UNSENT = "NOT_SENT"


@dataclass
class Outcomes:
    """Requests of one measurement: 32 bytes an answer, so hours fit in memory.

    Attributes:
        seconds: latency of each answered request. In an open loop it counts from the moment
            the request was due, so that a stall is charged to all whom it kept waiting
            (Tene's "coordinated omission").
        finished: when each answer came, on the clock of the measurement.
        coverage: fraction of repetitions each answer rests on.
        late: open loop: how long after it was due each request was sent.
        statuses: gRPC statuses of the requests that were not answered.
    """

    seconds: array[float] = field(default_factory=lambda: array("d"))
    finished: array[float] = field(default_factory=lambda: array("d"))
    coverage: array[float] = field(default_factory=lambda: array("d"))
    late: array[float] = field(default_factory=lambda: array("d"))
    statuses: Counter[str] = field(default_factory=Counter)

    def answered(self, seconds: float, finished: float, coverage: float) -> None:
        """Count an answer."""
        self.seconds.append(seconds)
        self.finished.append(finished)
        self.coverage.append(coverage)


@dataclass(frozen=True)
class LoadReport:
    """Figures of one measurement.

    Attributes:
        mode: ``closed`` (fixed concurrency) or ``open`` (fixed rate).
        offered_qps: requests a second that were sent.
        qps: requests a second that were answered, until the last answer.
        p50_ms, p90_ms, p99_ms, p999_ms, max_ms: latency of the answered, in milliseconds.
        queries: answered.
        late_ms: open loop: how long after it was due a request was sent, 99th percentile. That is
            the generator's own doing, and latencies contain it.
        errors: requests that failed for a reason other than being shed, those not sent included.
        shed: requests that the fleet refused at its limit.
        coverage: mean fraction of repetitions in an answer.
        statuses: how often each gRPC status other than OK came.
        cpu_seconds_per_1000_queries: of the fleet, where its metrics were read; else None.
        seconds: length of the measurement, until the last answer.
    """

    mode: str
    offered_qps: float
    qps: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    late_ms: float
    queries: int
    errors: int
    shed: int
    coverage: float
    statuses: dict[str, int]
    cpu_seconds_per_1000_queries: float | None
    seconds: float

    @classmethod
    def of(
        cls,
        mode: str,
        outcomes: Outcomes,
        seconds: float,
        cpu_seconds: float | None,
        offered_seconds: float | None = None,
    ) -> LoadReport:
        """Work the figures out.

        Args:
            mode: ``closed`` or ``open``.
            outcomes: what happened.
            seconds: until the last answer.
            cpu_seconds: of the fleet, if known.
            offered_seconds: for which requests were sent; ``seconds`` where not given.
        """
        latencies = np.frombuffer(outcomes.seconds, np.float64) * 1e3
        answered = len(latencies)
        at = (50, 90, 99, 99.9, 100)
        percentiles = np.percentile(latencies, at) if answered else np.full(len(at), np.nan)
        shed = outcomes.statuses[_SHED]
        failed = outcomes.statuses.total()
        per_thousand = (
            cpu_seconds / answered * 1e3 if cpu_seconds is not None and answered else None
        )
        return cls(
            mode=mode,
            offered_qps=(answered + failed - outcomes.statuses[UNSENT])
            / (offered_seconds or seconds),
            qps=answered / seconds,
            p50_ms=float(percentiles[0]),
            p90_ms=float(percentiles[1]),
            p99_ms=float(percentiles[2]),
            p999_ms=float(percentiles[3]),
            max_ms=float(percentiles[4]),
            late_ms=float(np.percentile(outcomes.late, 99)) * 1e3 if outcomes.late else 0.0,
            queries=answered,
            errors=failed - shed,
            shed=shed,
            coverage=float(np.mean(outcomes.coverage)) if answered else 0.0,
            statuses=dict(outcomes.statuses),
            cpu_seconds_per_1000_queries=per_thousand,
            seconds=seconds,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; figures that do not exist are null."""
        fields = dict(vars(self))
        return {
            name: None if isinstance(value, float) and np.isnan(value) else value
            for name, value in fields.items()
        }
