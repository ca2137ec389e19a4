"""The spans of a shard: a request's wait, and the run it shared with others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mach import tracing
from mach.v1 import shard_pb2

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from shard_server.batcher import Job

__all__ = ["begin_message", "end_message", "trace_run"]


def begin_message(message: shard_pb2.PredictStreamRequest, received: float) -> Span | None:
    """The server's span of a request on a stream; None where its sender gave no trace.

    ``received`` is on the clock of :func:`time.monotonic`.
    """
    spans = tracing.spans()
    if spans is None or not message.traceparent:
        return None
    caller = spans.remote({"traceparent": message.traceparent, "tracestate": message.tracestate})
    if caller is None:
        return None
    return spans.start(
        "mach.v1.ShardService/PredictStream",
        caller,
        kind="server",
        at=received,
        attributes={
            "rpc.system": "grpc",
            "rpc.service": "mach.v1.ShardService",
            "rpc.method": "PredictStream",
        },
    )


def end_message(span: Span | None, code: str) -> None:
    """It was answered with the name of a status code, or cancelled."""
    if span is not None and (spans := tracing.spans()) is not None:
        spans.end_call(span, code)


def trace_run(jobs: Sequence[Job]) -> None:
    """Jobs ran together: record the wait and the run of those that are traced.

    Each has a span of the run in its own trace, with links to the others.
    """
    traced = [(job, job.span) for job in jobs if job.span is not None]
    spans = tracing.spans() if traced else None
    if spans is None:
        return
    rows = sum(len(job.features) for job in jobs)
    for job, span in traced:
        began = job.received + job.queue_seconds
        spans.end(spans.start("mach.queue", span, at=job.received), began)
        run = spans.start(
            "mach.inference",
            span,
            at=began,
            links=[other for _, other in traced if other is not span],
            attributes={
                "mach.queries": len(job.features),
                "mach.queries.together": rows,
                "mach.repetitions": list(job.repetitions),
                "mach.provider": job.loaded.provider,
            },
        )
        spans.end(run, began + job.inference_seconds)
