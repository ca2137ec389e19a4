"""Spans of this process, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, StaticSampler

from mach import tracing
from mach.tracing.making import Spans

__all__ = ["NEVER", "Recorder", "recorded"]

#: Samples what its parent samples, and nothing else.
NEVER = ParentBased(StaticSampler(Decision.DROP))


class Recorder:
    """What was recorded; ``spans`` makes more."""

    def __init__(self, sampler: Sampler | None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.spans = Spans(self.provider.get_tracer("tests"))

    @property
    def finished(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """In the order they ended."""
        return [span for span in self.finished if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@contextmanager
def recorded(sampler: Sampler | None = None) -> Iterator[Recorder]:
    """Tracing is on within the block; every trace is sampled unless the sampler says otherwise."""
    recorder = Recorder(sampler)
    tracing.install(recorder.spans)
    try:
        yield recorder
    finally:
        tracing.install(None)
        recorder.provider.shutdown()


def ids(span: ReadableSpan) -> tuple[int, int]:
    """Trace and span id."""
    return span.context.trace_id, span.context.span_id


def links(span: ReadableSpan) -> set[tuple[int, int]]:
    """Trace and span ids that it is linked to."""
    return {(link.context.trace_id, link.context.span_id) for link in span.links}
