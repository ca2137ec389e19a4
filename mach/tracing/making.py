"""Making spans; the only module of the servers that imports OpenTelemetry's API."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Literal

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from mach.tracing.state import Headers

__all__ = ["Spans"]

_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_PROPAGATOR = TraceContextTextMapPropagator()
_CLOCK_STEP_NS = 1_000_000
#: Statuses that are the server's fault, by OpenTelemetry's conventions for RPC.
_SERVER_ERRORS = {
    "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
}  # fmt: skip


class Spans:
    """Makes spans by a tracer of OpenTelemetry.

    Times are on the clock of :func:`time.monotonic`, which is the event loop's; now where
    not given.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._epoch = 0

    def _wall(self, at: float | None) -> int:
        """Nanoseconds since the epoch of a time on the clock of :func:`time.monotonic`."""
        now = time.monotonic_ns()
        epoch = time.time_ns() - now
        # Two clocks are never read at once: only a step of one of them changes the difference,
        # or spans that follow each other would seem to overlap.
        if abs(epoch - self._epoch) > _CLOCK_STEP_NS:
            self._epoch = epoch
        return self._epoch + (now if at is None else int(at * 1e9))

    def start(
        self,
        name: str,
        parent: Span | None,
        *,
        kind: Literal["server", "client", "internal"] = "internal",
        links: Iterable[Span] = (),
        at: float | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> Span:
        """Begin a span; whether it is sampled is the sampler's choice, by its parent.

        Args:
            name: what it is; one of few.
            parent: what it is part of; None begins a trace.
            kind: its side of a call between processes.
            links: spans of other traces that it has to do with.
            at: when it began.
            attributes: what else to say.
        """
        # A context of its own: the task's may be about something else.
        context = Context()
        if parent is not None:
            context = trace.set_span_in_context(parent, context)
        return self._tracer.start_span(
            name,
            context,
            kind=_KINDS[kind],
            links=[trace.Link(other.get_span_context()) for other in links],
            start_time=self._wall(at),
            attributes=attributes,
        )

    def end(self, span: Span, at: float | None = None) -> None:
        """End a span."""
        span.end(self._wall(at))

    def end_call(self, span: Span, code: str, at: float | None = None) -> None:
        """End the span of a gRPC call with the name of its status code."""
        span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
        if code in _SERVER_ERRORS:
            span.set_status(Status(StatusCode.ERROR, code))
        span.end(self._wall(at))

    def remote(self, headers: Mapping[str, str]) -> Span | None:
        """The caller's span, by its headers; None where they are missing or malformed."""
        span = trace.get_current_span(_PROPAGATOR.extract(headers, Context()))
        return span if span.get_span_context().is_valid else None

    def headers(self, span: Span) -> Headers:
        """The headers by which another process continues the trace."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
        return tuple(carrier.items())
