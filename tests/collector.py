"""An OTLP collector for tests: what processes export to it, it keeps."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.servers import wait_until


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it arrived; ids in hexadecimal, times in nanoseconds."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any] = field(hash=False)
    links: tuple[tuple[str, str], ...] = ()


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(entry) for entry in value.array_value.values]
    return getattr(value, kind)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """``with Collector() as collector``: listens on a free port of 127.0.0.1.

    Attributes:
        endpoint: what ``OTEL_EXPORTER_OTLP_ENDPOINT`` says.
        resources: attributes of each process, by service name.
    """

    def __init__(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.resources: dict[str, dict[str, Any]] = {}
        self._spans: list[ReceivedSpan] = []
        self._lock = threading.Lock()

    def environment(self, **more: str) -> dict[str, str]:
        """Variables that make a server export to it, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            **more,
        }

    @property
    def spans(self) -> list[ReceivedSpan]:
        """What has come so far."""
        with self._lock:
            return list(self._spans)

    def wait_for(self, condition: Any, what: str, seconds: float = 20) -> list[ReceivedSpan]:
        """Wait until ``condition(spans)``; the spans."""
        wait_until(lambda: condition(self.spans), f"{what}, got {self.spans}", seconds)
        return self.spans

    def Export(self, request: Any, context: Any) -> Any:
        found = []
        for batch in request.resource_spans:
            resource = _attributes(batch.resource.attributes)
            service = resource["service.name"]
            self.resources[service] = resource
            for scope in batch.scope_spans:
                found += [
                    ReceivedSpan(
                        service,
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.kind,
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        _attributes(span.attributes),
                        tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    )
                    for span in scope.spans
                ]
        with self._lock:
            self._spans += found
        return trace_service_pb2.ExportTraceServiceResponse()

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.stop(0).wait()
