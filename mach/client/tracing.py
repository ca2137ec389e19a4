"""The client's span of a call, where the application that calls uses OpenTelemetry.

Nothing is imported for it: an application that traces has imported OpenTelemetry's API itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mach.errors import MachError, status_of

__all__ = ["Metadata", "traced"]

Metadata = list[tuple[str, str]]

_API = "opentelemetry.trace"
_SERVICE = "mach.v1.SearchService"


@contextmanager
def traced(method: str, metadata: Metadata) -> Iterator[None]:
    """A span for the call made in the block, its context added to ``metadata``.

    The tracer and the propagator are the application's. An error is named in the span by its
    gRPC status.
    """
    if _API not in sys.modules:
        yield
        return
    from opentelemetry import propagate, trace  # noqa: PLC0415

    attributes: dict[str, Any] = {
        "rpc.system": "grpc",
        "rpc.service": _SERVICE,
        "rpc.method": method,
    }
    with trace.get_tracer("mach.client").start_as_current_span(
        f"{_SERVICE}/{method}",
        kind=trace.SpanKind.CLIENT,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        headers: dict[str, str] = {}
        propagate.inject(headers)
        # gRPC refuses capitals, which some propagators' headers have.
        metadata.extend((name.lower(), value) for name, value in headers.items())
        try:
            yield
        except MachError as error:
            status = status_of(error)
            span.set_attribute("rpc.grpc.status_code", status.value[0])
            span.set_status(trace.Status(trace.StatusCode.ERROR, status.name))
            raise
        span.set_attribute("rpc.grpc.status_code", 0)
