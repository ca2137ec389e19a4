"""The spans of a batch, which may carry the queries of many calls.

A span has one parent, so the batch is part of the first sampled call's trace: there are its
messages to the shards and its merges, and there the shards go on. It has links to the other
sampled calls, and each of these has a span of its own for the same time, with a link to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aggregator.coverage import Coverage
from aggregator.fanout.batch import Job
from mach import tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from mach.tracing.making import Spans

__all__ = ["BatchTrace"]

_BATCH = "mach.batch"


class BatchTrace:
    """The spans of one batch. Times are loop times.

    Attributes:
        span: the batch's own.
    """

    def __init__(self, spans: Spans, jobs: Sequence[Job], traced: Sequence[Job], at: float) -> None:
        self._spans = spans
        for job in traced:
            waited = spans.start("mach.queue", job.span, at=job.queued_at)
            spans.end(waited, at)
        lead = traced[0].span
        calls = list(dict.fromkeys(job.span for job in traced if job.span is not None))
        others = [call for call in calls if call is not lead]
        about: dict[str, AttributeValue] = {
            "mach.bundle_version": jobs[0].served.version,
            "mach.queries": sum(map(len, jobs)),
            "mach.jobs": len(jobs),
        }
        self.span: Span = spans.start(_BATCH, lead, links=others, at=at, attributes=about)
        self._of_call: dict[Span, Span] = {
            call: spans.start(_BATCH, call, links=[self.span], at=at, attributes=about)
            for call in others
        }
        self._merging = 0
        self._is_closed = False

    @classmethod
    def begin(cls, jobs: Sequence[Job], at: float) -> BatchTrace | None:
        """Begin the spans of jobs taken from the queue at ``at``; None if no call is sampled."""
        traced = [job for job in jobs if job.span is not None]
        spans = tracing.spans() if traced else None
        return cls(spans, jobs, traced, at) if spans is not None else None

    def featurized(self, began: float, ended: float) -> None:
        """Texts became features."""
        self._spans.end(self._spans.start("mach.featurize", self.span, at=began), ended)

    def message(
        self, address: str, repetitions: Sequence[int], *, is_hedge: bool, is_retry: bool, at: float
    ) -> Span:
        """A message goes to a shard; end it with :meth:`message_ended`."""
        return self._spans.start(
            "mach.message",
            self.span,
            kind="client",
            at=at,
            attributes={
                "mach.endpoint": address,
                "mach.repetitions": list(repetitions),
                "mach.hedge": is_hedge,
                "mach.retry": is_retry,
            },
        )

    def headers(self, message: Span) -> tracing.Headers:
        """What lets the shard continue the trace."""
        return self._spans.headers(message)

    def message_ended(self, message: Span, outcome: str, at: float | None = None) -> None:
        """A message was answered, failed or was taken back."""
        message.set_attribute("mach.outcome", outcome)
        self._spans.end(message, at)

    def merging(self) -> None:
        """Some of the jobs are about to be answered; :meth:`merged` follows."""
        self._merging += 1

    def merged(self, jobs: Sequence[Job], coverage: Coverage, began: float, ended: float) -> None:
        """They were answered."""
        span = self._spans.start(
            "mach.merge",
            self.span,
            at=began,
            attributes={
                "mach.queries": sum(map(len, jobs)),
                "mach.repetitions.answered": coverage.answered,
                "mach.repetitions.total": coverage.total,
            },
        )
        self._spans.end(span, ended)
        for job in jobs:
            if job.span is not None and (own := self._of_call.pop(job.span, None)) is not None:
                self._spans.end(own, ended)
        self._merging -= 1
        if self._is_closed:
            self.close()

    def close(self) -> None:
        """No more messages and no more merges; those under way are waited for."""
        self._is_closed = True
        if self._merging:
            return
        for span in (*self._of_call.values(), self.span):
            self._spans.end(span)
        self._of_call.clear()
