"""The Prometheus registry of a server process, its metrics port, and the metrics of gRPC."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from mach import __version__, tracing
from mach.errors import ConfigError
from mach.serving.binding import reason_of
from mach.serving.settings import split_address

__all__ = ["LATENCY_BUCKETS", "ServerMetrics", "new_registry", "start_metrics_server"]

#: Seconds; from half a millisecond, which is where a shard's answers lie.
LATENCY_BUCKETS = (
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip

_METHOD = ("grpc_type", "grpc_service", "grpc_method")


def new_registry(component: str) -> CollectorRegistry:
    """A registry with the process's own metrics and ``mach_build_info``."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    Gauge(
        "mach_build_info",
        "1, labelled with what this process runs.",
        ("component", "version", "python", "grpc"),
        registry=registry,
    ).labels(component, __version__, platform.python_version(), grpc.__version__).set(1)
    return registry


class ServerMetrics:
    """``grpc_server_*``, named and labelled as other gRPC servers do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        started = Counter("grpc_server_started", "Calls begun.", _METHOD, registry=registry)
        handled = Counter(
            "grpc_server_handled",
            "Calls ended, by status code.",
            (*_METHOD, "grpc_code"),
            registry=registry,
        )
        seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from a call's start to its end.",
            _METHOD,
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        # labels() takes longer than inc(): look each child up once.
        self._started: Callable[..., Any] = lru_cache(maxsize=None)(started.labels)
        self._handled: Callable[..., Any] = lru_cache(maxsize=None)(handled.labels)
        self._seconds: Callable[..., Any] = lru_cache(maxsize=None)(seconds.labels)

    def started(self, rpc: tuple[str, str, str]) -> None:
        """A call of ``rpc`` = (type, service, method) began."""
        self._started(*rpc).inc()

    def handled(self, rpc: tuple[str, str, str], code: str, seconds: float) -> None:
        """It ended with a status code after some seconds."""
        self._handled(*rpc, code).inc()
        self._seconds(*rpc).observe(seconds, tracing.exemplar(tracing.sampled()))


def start_metrics_server(
    address: str, registry: CollectorRegistry
) -> tuple[str, Callable[[], None]]:
    """Serve ``registry`` over HTTP on its own thread.

    Returns:
        The address bound, its port resolved, and a function that closes it.

    Raises:
        ConfigError: if the address cannot be bound.
    """
    host, port = split_address(address)
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--metrics-listen {address}: {reason_of(error)}") from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return f"{address.rpartition(':')[0]}:{server.server_port}", close
