"""The span of the call at hand, known to servers without OpenTelemetry too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from mach.tracing.making import Spans

__all__ = ["Headers", "current", "enter", "exemplar", "install", "sampled", "spans", "use"]

#: ``traceparent`` and ``tracestate`` of W3C Trace Context, as metadata.
Headers = tuple[tuple[str, str], ...]

_current: ContextVar[Span | None] = ContextVar("mach_span", default=None)
_spans: Spans | None = None


def spans() -> Spans | None:
    """What makes spans; None while tracing is off."""
    return _spans


def install(made_by: Spans | None) -> None:
    """Make spans with this from now on; None turns tracing off."""
    global _spans  # noqa: PLW0603 - one for the process, as the exporter is
    _spans = made_by


def current() -> Span | None:
    """The span of the call at hand, sampled or not; None where there is none."""
    return _current.get()


def sampled() -> Span | None:
    """The span of the call at hand if it is sampled, so that it may have children."""
    span = _current.get()
    return span if span is not None and span.is_recording() else None


def enter(span: Span | None) -> None:
    """Make a span the current one for the rest of this task."""
    _current.set(span)


@contextmanager
def use(span: Span | None) -> Iterator[None]:
    """Make a span the current one within the block."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


def exemplar(span: Span | None) -> dict[str, str] | None:
    """What a histogram keeps as an example with an observation; None without a sampled span."""
    if span is None or not (context := span.get_span_context()).trace_flags.sampled:
        return None
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
